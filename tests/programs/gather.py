"""Weights of a trainer's layout into an engine's, on real process groups, without an engine.

For each case: whether every rank's tensors have the bits that a policy loaded in the engine's layout has; the
checksums of both sides; what was staged; the most memory that an update took.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from measure import peak_bytes
from ralign.engine.generator import checksum, gather
from ralign.engine.policy.policy import Policy
from ralign.engine.runtime import cluster as cluster_module
from tiny import make_model

# (tensor, pipeline, context) of the trainer -> tensor of the engine
CASES = {
    2: {
        "tp2 to 1": ((2, 1, 1), 1),
        "pp2 to 1": ((1, 2, 1), 1),
        "dp2 to 1": ((1, 1, 1), 1),
        "dp2 to 2": ((1, 1, 1), 2),
        "cp2 to 2": ((1, 1, 2), 2),
        "tp2 to 2": ((2, 1, 1), 2),
    },
    4: {
        "tp2 x pp2 to 2": ((2, 2, 1), 2),
        "tp2 x pp2 to 4": ((2, 2, 1), 4),
        "tp4 to 2": ((4, 1, 1), 2),
        "pp2 x dp2 to 1": ((1, 2, 1), 1),
    },
}
BUCKET_BYTES = 8192  # smaller than most tensors of the model


def compare(folder: Path, family: str, layout, generate: int, dtype: str) -> dict:
    reference_cluster = cluster_module.start(tensor=generate)
    reference = Policy(folder, reference_cluster, dtype=dtype).vllm_parameters()
    tensor, pipeline, context = layout
    cluster = cluster_module.start(tensor=tensor, pipeline=pipeline, context=context)
    policy = Policy(folder, cluster, dtype=dtype)
    world = gather.describe(policy.gpt, cluster, generate)
    source = {
        name: x for name, x in policy.vllm_parameters().items() if world.catalog[name][0] == cluster.pp_rank
    }
    target = {name: torch.zeros_like(x) for name, x in reference.items()}
    path = gather.WeightGather(world, cluster.rank, source, target, BUCKET_BYTES)
    path.update()
    peak = peak_bytes(path.update)
    speaks = cluster.dp_rank == cluster.cp_rank == 0
    written = {
        name: checksum.shard_checksum(x, world.catalog[name][1], tensor, cluster.tp_rank)
        for name, x in source.items()
        if speaks
    }
    place = cluster.rank % generate
    read = {
        name: checksum.shard_checksum(x, world.catalog[name][1], generate, place)
        for name, x in target.items()
    }
    equal = all(torch.equal(reference[name], x) for name, x in target.items())
    first = cluster.rank - place
    written = checksum.add_up(written, range(cluster.world_size))
    read = checksum.add_up(read, range(first, first + generate))
    name = "model.layers.1.mlp.down_proj.weight"
    target[name].view(-1)[7] += 1  # one value off must show
    wrong = checksum.shard_checksum(target[name], world.catalog[name][1], generate, place)
    return {
        "equal": equal,
        "checksums_equal": written == read,
        "sees_a_wrong_value": wrong
        != checksum.shard_checksum(reference[name], world.catalog[name][1], generate, place),
        "peak_bytes": peak,
        "num_buckets": path.num_buckets,
        "received_bytes": path.num_received_bytes,
        "engine_bytes": sum(x.nbytes for x in target.values()),
    }


def main(result: str) -> None:
    torch.set_num_threads(1)
    world = cluster_module.start()
    report = {}
    families = {2: ("qwen3", True, "fp32"), 4: ("qwen2", False, "bf16")}
    for family, tied, dtype in (families[world.world_size],):
        folder = Path(result).parent / f"model-{family}"
        if world.is_first_rank:
            make_model(folder, family, tied=tied)
        dist.barrier()
        for name, (layout, generate) in CASES[world.world_size].items():
            rows: list = [None] * world.world_size
            dist.all_gather_object(rows, compare(folder, family, layout, generate, dtype))
            report[f"{name}, {family} {dtype}"] = rows
    if world.is_first_rank:
        Path(result).write_text(json.dumps(report))
    cluster_module.stop()


if __name__ == "__main__":
    main(sys.argv[1])
