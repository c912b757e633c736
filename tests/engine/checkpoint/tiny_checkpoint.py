"""Programs of one process for tests: a run folder with two checkpoints of a tiny model, and resumes from folders.

python tiny_checkpoint.py make RUN
python tiny_checkpoint.py resume FOLDER_OF_CHECKPOINTS...      a JSON line each: the steps done, or the error
"""

import json
import sys
from pathlib import Path

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from ralign.engine.checkpoint.checkpoints import Checkpoints
from ralign.engine.runtime import cluster as cluster_module
from ralign.engine.runtime.errors import UserError

VOCAB_SIZE, WIDTH = 6, 4


class TinyModel:
    """As much of a `MegatronModel` as checkpoints use. Its vocabulary is padded by two rows."""

    def __init__(self) -> None:
        self.weights = {
            "model.embed_tokens.weight": torch.zeros(VOCAB_SIZE + 2, WIDTH),
            "model.norm.weight": torch.zeros(WIDTH),
        }

    def train(self, step: int) -> None:
        for number, weight in enumerate(self.weights.values()):
            weight.copy_(torch.arange(weight.numel()).reshape(weight.shape) + 100 * step + number)

    def sharded_state(self, prefix: str) -> dict[str, list[ShardedTensor]]:
        return {
            f"{prefix}{kind}/{name}": [ShardedTensor.from_rank_offsets(f"{prefix}{kind}/{name}", weight)]
            for kind in ("param", "exp_avg")
            for name, weight in self.weights.items()
        }

    def training_state(self) -> dict[str, int]:
        return {"adam_step": 7}

    def resume_training(self, state: dict[str, int]) -> None:
        assert state == {"adam_step": 7}


def make(run: Path) -> None:
    cluster = cluster_module.start()
    model = TinyModel()
    checkpoints = Checkpoints(run / "stage" / "checkpoints", cluster, {"policy": model})
    for step in (1, 2):
        model.train(step)
        checkpoints.save(step, {"num_steps_done": step})
    checkpoints.wait()
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text(json.dumps({"vocab_size": VOCAB_SIZE}))
    (run / "model" / "tokenizer.json").write_text("{}")
    settings = {"model": {"hf_path": None}, "parallel": {"dtype": "fp32"}}
    (run / "config.json").write_text(json.dumps(settings))


def resume(folder: Path, cluster: cluster_module.Cluster) -> dict:
    model = TinyModel()
    try:
        state = Checkpoints(folder, cluster, {"policy": model}).restore()
    except UserError as error:
        return {"error": str(error)}
    assert state is not None
    trained = TinyModel()
    trained.train(state["num_steps_done"])
    for name, weight in trained.weights.items():
        assert torch.equal(weight, model.weights[name]), name
    return state


def main(action: str, *folders: str) -> None:
    torch.set_num_threads(1)
    if action == "make":
        make(Path(folders[0]))
    else:
        cluster = cluster_module.start()
        for folder in folders:
            print(json.dumps(resume(Path(folder), cluster)), flush=True)
    cluster_module.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
