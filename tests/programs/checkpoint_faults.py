"""What goes wrong with a checkpoint, and with an update, on two data-parallel ranks; every rank's errors as JSON."""

import json
import math
import resource
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ralign.engine.algorithms.losses import SupervisedLoss, supervised_loss
from ralign.engine.checkpoint import folders
from ralign.engine.checkpoint.checkpoints import Checkpoints
from ralign.engine.runtime import cluster as cluster_module
from ralign.engine.runtime.errors import UserError
from worlds import make_stage, one_step


def error_of(action) -> str | None:
    try:
        action()
    except UserError as error:
        return str(error)
    return None


def full_disk(cluster, checkpoints, stage, *, rank: int, step: int) -> dict:
    """`rank` may write files of 50 kB at most; then space is back."""
    if cluster.rank == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))

    def save() -> None:
        checkpoints.save(step, stage.state_dict())
        checkpoints.wait()

    error = error_of(save)
    names = sorted(path.name for path in checkpoints.folder.iterdir())
    dist.barrier()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    save()
    return {
        "error": error,
        "names": names,
        "after": [path.name for path in folders.complete(checkpoints.folder)],
    }


def metadata_not_written(cluster, checkpoints, stage) -> str | None:
    """Rank 0 alone fails, at the very end."""

    class Failing:
        def __init__(self, save):
            self.save, self.checksums, self.draft = save, save.checksums, save.draft

        def finish(self):
            self.save.finish()
            if cluster.is_first_rank:
                raise OSError("rank 0: no room for .metadata")

    checkpoints.save(4, stage.state_dict())
    step, score, save = checkpoints._pending
    checkpoints._pending = step, score, Failing(save)
    return error_of(checkpoints.wait)


def damages(cluster, checkpoints) -> dict[str, str | None]:
    """Every way to spoil the newest checkpoint, with the error that `restore` gives."""
    newest = folders.complete(checkpoints.folder)[-1]
    shard = "__1_0.distcp"

    def flip(name: str) -> None:
        data = bytearray((newest / name).read_bytes())
        data[len(data) // 2] ^= 1
        (newest / name).write_bytes(data)

    ways = {
        "missing shard": lambda: (newest / shard).unlink(),
        "short shard": lambda: (newest / shard).write_bytes((newest / shard).read_bytes()[:-100]),
        "flipped bit": lambda: flip(shard),
        "flipped metadata": lambda: flip(".metadata"),
        "no manifest": lambda: (newest / folders.MANIFEST).unlink(),
        "garbage manifest": lambda: (newest / folders.MANIFEST).write_text("[]"),
    }
    errors = {}
    for name, spoil in ways.items():
        backup = newest.with_name("backup")
        if cluster.is_first_rank:
            shutil.copytree(newest, backup)
            spoil()
        dist.barrier()
        before = {f.name: f.stat().st_size for f in newest.iterdir()}
        errors[name] = error_of(checkpoints.restore)
        assert before == {f.name: f.stat().st_size for f in newest.iterdir()}
        dist.barrier()
        if cluster.is_first_rank:
            shutil.rmtree(newest)
            backup.rename(newest)
        dist.barrier()
    return errors


class SpoiledLoss(SupervisedLoss):
    """Not a number, either way it is computed."""

    def __call__(self, *args):
        loss, metrics = super().__call__(*args)
        return loss * math.nan, metrics

    def from_hidden(self, *args, **head):
        loss, metrics = super().from_hidden(*args, **head)
        return loss * math.nan, metrics


def not_finite(cluster, policy, stage) -> list[dict]:
    """A loss, then a gradient, that is not finite on rank 1 alone; then a good update."""
    rows = []

    def spoil_gradient() -> None:
        if cluster.rank == 1:
            grads = policy.model.buffers[0].grad_data
            grads[len(grads) // 2 + 3] = math.inf  # in the half that rank 1 updates

    for name in ("loss", "gradient", "nothing"):
        before, state = policy.weights_identity(), policy.training_state()
        policy.forward_backward(
            stage.plan(), SpoiledLoss() if name == "loss" and cluster.rank == 1 else supervised_loss
        )
        if name == "gradient":  # both ranks hold the reduced gradient of their own half: spoil rank 1's
            spoil_gradient()
        policy.optimizer_step()
        rows.append(
            {
                "spoiled": name,
                "same_weights": policy.weights_identity() == before,
                "same_state": {k: v for k, v in policy.training_state().items() if k != "num_skipped_updates"}
                == {k: v for k, v in state.items() if k != "num_skipped_updates"},
                "num_skipped": policy.num_skipped_updates,
            }
        )
    return rows


def main(result: str) -> None:
    torch.set_num_threads(1)
    folder = Path(result).parent
    cluster, policy, stage = make_stage(folder, "sft", {}, "fp32")
    checkpoints = Checkpoints(folder / "checkpoints", cluster, {"policy": policy})
    one_step(stage)
    checkpoints.save(1, stage.state_dict())
    one_step(stage)
    report = {"full_disk": full_disk(cluster, checkpoints, stage, rank=1, step=2)}
    report["damages"] = damages(cluster, checkpoints)
    report["restored"] = checkpoints.restore()["num_steps_done"]
    report["full_disk_of_rank_0"] = full_disk(cluster, checkpoints, stage, rank=0, step=3)
    report["metadata_not_written"] = metadata_not_written(cluster, checkpoints, stage)
    report["not_finite"] = not_finite(cluster, policy, stage)
    every = [None] * cluster.world_size
    dist.all_gather_object(every, report)
    if cluster.is_first_rank:
        Path(result).write_text(json.dumps(every))
    cluster_module.stop()


if __name__ == "__main__":
    main(sys.argv[1])
