"""Steps 1 to 6 with a checkpoint at 3, then SIGKILL; argv[2] is `first` or, in the next job, `again`: 4 to 6.

argv[3] is `all` or `some`: kinds of stage, layouts and dtypes. The second job also goes on in other layouts. Metrics
and the bits of weights and moments go to first.json and again.json beside the result.
"""

import json
import os
import signal
import sys
import zlib
from pathlib import Path

import torch
import torch.distributed as dist
from ralign.engine.checkpoint.checkpoints import Checkpoints
from ralign.engine.runtime import cluster as cluster_module
from worlds import LAYOUTS, make_stage, one_step

SAVED, LAST = 3, 6
ALL = [(k, layout, dtype) for k in ("sft", "rl", "ppo") for layout in LAYOUTS for dtype in ("fp32", "bf16")]
SOME = [("sft", "tp2", "fp32"), ("sft", "dp2", "bf16"), ("sft", "pp2", "fp32"), ("rl", "tp2", "bf16"),
        ("rl", "dp2", "fp32"), ("rl", "pp2", "bf16"), ("ppo", "pp2", "fp32"), ("ppo", "tp2", "bf16")]  # fmt: skip
RESHARDED = [("sft", "tp2", "dp2"), ("sft", "tp2", "pp2"), ("sft", "pp2", "tp2"), ("sft", "pp2", "dp2"),
             ("ppo", "pp2", "dp2")]  # fmt: skip


def pieces_of(stage) -> dict:
    """Fp32 weights and moments of all of the stage's models."""
    return {k: x for name, model in stage.models.items() for k, x in model.sharded_state(f"{name}/").items()}


def bits(cluster, stage) -> list:
    """Checksums of every rank's weights, fp32 weights and moments."""
    pieces = pieces_of(stage)
    mine = {
        name: [zlib.crc32(s.data.contiguous().cpu().numpy().tobytes()) for s in shards]
        for name, shards in pieces.items()
    }
    mine |= {f"{name}'s identity": model.weights_identity() for name, model in stage.models.items()}
    every = [None] * cluster.world_size
    dist.all_gather_object(every, mine)
    return every


def assembled(cluster, stage) -> dict[str, torch.Tensor]:
    """Whole tensors of fp32 weights and moments in host memory, put together from every rank's rectangles."""
    mine = [
        (s.key, s.global_shape, s.global_offset, s.data.cpu().clone(), s.replica_id)
        for shards in pieces_of(stage).values()
        for s in shards
    ]
    every = [None] * cluster.world_size
    dist.all_gather_object(every, mine)
    whole: dict[str, torch.Tensor] = {}
    for key, shape, offset, data, replica in (piece for rank in every for piece in rank):
        if replica == 0:
            target = whole.setdefault(key, torch.full(shape, float("nan")))
            target[tuple(slice(o, o + n) for o, n in zip(offset, data.shape, strict=True))] = data
    assert not any(tensor.isnan().any() for tensor in whole.values())
    return whole


def run(folder: Path, phase: str, kind: str, layout: str, dtype: str, source: str | None = None) -> dict:
    """One stage; in phase `again`, from the checkpoint of the layout `source` (by default the same)."""
    cluster, _, stage = make_stage(folder, kind, LAYOUTS[layout], dtype)
    name = f"{kind}-{source or layout}-{dtype}"
    checkpoints = Checkpoints(folder / name, cluster, stage.models)
    report = {"steps": []}
    if phase == "again":
        stage.load_state_dict(checkpoints.restore())
        report["resumed_at"] = stage.num_steps_done
        report["bits_at_resume"] = bits(cluster, stage)
        whole, saved = assembled(cluster, stage), torch.load(folder / f"{name}.pt")
        report["same_values"] = whole.keys() == saved.keys() and all(
            torch.equal(whole[key], saved[key]) for key in saved
        )
    while stage.num_steps_done < LAST:
        report["steps"].append(one_step(stage))
        if all(cluster.all_true(checkpoints.is_written)):
            checkpoints.wait()
        if phase == "first" and stage.num_steps_done == SAVED:
            checkpoints.save(SAVED, stage.state_dict())
            report["bits_at_save"] = bits(cluster, stage)
            torch.save(assembled(cluster, stage), folder / f"{name}.pt")
    report["bits"] = bits(cluster, stage)
    checkpoints.wait()
    return report


def main(result: str, phase: str, which: str) -> None:
    torch.set_num_threads(1)
    folder = Path(result).parent
    world = cluster_module.start()
    cases = ALL if which == "all" else SOME
    report = {" ".join(case): run(folder, phase, *case) for case in cases}
    if phase == "again":
        for kind, source, layout in RESHARDED:
            case = f"{kind} {source} to {layout} fp32"
            report[case] = run(folder, phase, kind, layout, "fp32", source=source)
    if world.is_first_rank:
        (folder / f"{phase}.json").write_text(json.dumps(report))
    dist.barrier()
    if phase == "first":
        os.kill(os.getpid(), signal.SIGKILL)
    Path(result).write_text(json.dumps(report))
    cluster_module.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
