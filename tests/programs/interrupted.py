"""A stage with a checkpoint after every step, to be killed. RANK and WORLD_SIZE come from the environment.

argv: folder, last step, steps between checkpoints (0: none). Prints `ready N` when it goes on after step N.
"""

import sys
from pathlib import Path

import torch
from ralign.engine.checkpoint.checkpoints import Checkpoints
from ralign.engine.report.metrics_log import MetricsLog
from ralign.engine.runtime import cluster as cluster_module
from worlds import make_stage


def main(folder: str, last: int, every: int) -> None:
    torch.set_num_threads(1)
    cluster, policy, stage = make_stage(Path(folder), "sft", {}, "fp32", num_steps=10**6)
    checkpoints = Checkpoints(
        Path(folder) / "checkpoints", cluster, {"policy": policy}, keep_last=2, keep_best=1
    )
    if (state := checkpoints.restore()) is not None:
        stage.load_state_dict(state)
    log = MetricsLog(
        Path(folder) / "metrics.jsonl", next_step=stage.num_steps_done + 1, enabled=cluster.is_first_rank
    )
    print(f"ready {stage.num_steps_done}", flush=True)
    while stage.num_steps_done < last:
        metrics, _ = stage.step()
        log.write(metrics.pop("step"), metrics)
        if all(cluster.all_true(checkpoints.is_written)):
            checkpoints.wait()
        if every and stage.num_steps_done % every == 0:
            checkpoints.save(stage.num_steps_done, stage.state_dict(), score=-metrics["policy/loss"])
    checkpoints.wait()
    print(f"weights {policy.weights_identity()}", flush=True)
    cluster_module.stop()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
