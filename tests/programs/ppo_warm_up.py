"""Five steps of PPO, four of them warm-up: who learned, and what was logged."""

import json
import sys
from pathlib import Path

import torch
from ralign.engine.runtime import cluster as cluster_module
from worlds import make_stage


def main(result: str) -> None:
    torch.set_num_threads(1)
    _, _, trainer = make_stage(Path(result).parent, "ppo", {}, "fp32", num_steps=5)
    report = {name: [model.weights_identity()] for name, model in trainer.models.items()}
    report |= {"weight_versions": [], "metrics": []}
    while trainer.num_steps_done < 5:
        metrics, _ = trainer.step()
        for name, model in trainer.models.items():
            report[name].append(model.weights_identity())
        report["weight_versions"].append(metrics["policy/weight_version"])
        report["metrics"].append(sorted(metrics))
    Path(result).write_text(json.dumps(report))
    cluster_module.stop()


if __name__ == "__main__":
    main(sys.argv[1])
