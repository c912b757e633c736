"""One update of the engine's weights after a training step, by path; torchrun --nproc-per-node 2, result to argv[1].

`shared`: the engine's parameters are the trainer's memory. `gather`: pieces straight to their places, one bucket.
`whole tensors`: the peers' way, every tensor made whole on every rank, then sliced. `memcpy`: the bytes of a rank's
engine copied once, the floor of anything that moves them.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ralign.engine.generator import checksum, gather
from ralign.engine.policy.policy import Policy
from ralign.engine.runtime import cluster as cluster_module
from timing import timed_s

SHAPE = dict(
    vocab_size=8000, hidden_size=1024, intermediate_size=3072, num_hidden_layers=8, num_attention_heads=16,
    num_key_value_heads=8, head_dim=64, max_position_embeddings=512, tie_word_embeddings=False,
)  # fmt: skip
BUCKET_BYTES = 32 << 20
NUM_ROUNDS = 5


def seconds(function) -> float:
    """The fastest of some rounds, on the slowest rank, until the device is done."""
    best = float("inf")
    for _ in range(NUM_ROUNDS):
        dist.barrier()
        best = min(best, timed_s(function))
    slowest = torch.tensor(best)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return slowest.item()


def whole_tensors(source: dict, target: dict, world: gather.World, group) -> None:
    """TP 2 to 1: all-gather each tensor, stack it, copy it."""
    for name, shard in source.items():
        sharding = world.catalog[name][1]
        if sharding.split_dim is None:
            target[name].copy_(shard)
            continue
        shards = [torch.empty_like(shard) for _ in range(world.tensor)]
        dist.all_gather(shards, shard, group=group)
        spans = [sharding.spans(world.tensor, rank) for rank in range(world.tensor)]
        pieces = [
            shards[rank].narrow(sharding.split_dim, local, length)
            for part in range(len(sharding.parts))
            for rank in range(world.tensor)
            for _, local, length in [spans[rank][part]]
        ]
        target[name].copy_(torch.cat(pieces, dim=sharding.split_dim))


def measure(folder: Path, *, tensor: int = 1, pipeline: int = 1, generate: int = 1) -> dict:
    reference = Policy(folder, cluster_module.start(tensor=generate), dtype="bf16").vllm_parameters()
    cluster = cluster_module.start(tensor=tensor, pipeline=pipeline)
    policy = Policy(folder, cluster, dtype="bf16")
    world = gather.describe(policy.gpt, cluster, generate)
    source = {n: x for n, x in policy.vllm_parameters().items() if world.catalog[n][0] == cluster.pp_rank}
    target = {name: torch.zeros_like(x) for name, x in reference.items()}
    path = gather.WeightGather(world, cluster.rank, source, target, BUCKET_BYTES)
    result = {
        "bytes_moved": path.num_received_bytes,
        "extra_bytes": BUCKET_BYTES,
        "seconds": seconds(path.update),
        "num_buckets": path.num_buckets,
        "exact": checksum.checksums(target.items()) == checksum.checksums(reference.items()),
    }
    if pipeline == 1:
        result["whole_tensors_s"] = seconds(lambda: whole_tensors(source, target, world, cluster.tp_group))
        result["whole_tensors_extra_bytes"] = 2 * max(x.nbytes for x in target.values())
    result["memcpy_s"] = seconds(lambda: [x.copy_(reference[name]) for name, x in target.items()])
    return result


def measure_shared(folder: Path) -> dict:
    """A real engine on views of the trainer's parameters."""
    from ralign.engine.config.run import GeneratorConfig
    from ralign.engine.generator.generator import Generator

    cluster = cluster_module.start(tensor=2)
    policy = Policy(folder, cluster, dtype="bf16")
    config = GeneratorConfig(kv_cache_gib=0.1, max_num_seqs=8)
    generator = Generator(policy, cluster, config, max_model_len=128, eos_token_id=0)
    ours = policy.vllm_parameters()
    engine = generator.llm.apply_model(lambda model: dict(model.named_parameters()))[0]
    copied = sum(x.nbytes for name, x in engine.items() if x.data_ptr() != ours[name].data_ptr())

    def update() -> None:
        generator.weights_updated()
        generator.sync_weights()

    row = {"bytes_moved": copied, "extra_bytes": copied, "seconds": seconds(update)}
    generator.verify()
    generator.close()
    return row


def main(result: str) -> None:
    torch.set_num_threads(1)
    world = cluster_module.start()
    folder = Path(result).parent / "model"
    if world.is_first_rank:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model("qwen3", eos_token_id=0, **SHAPE)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    dist.barrier()
    report = {
        "gather, tp 2 to 1": measure(folder, tensor=2, generate=1),
        "gather, pp 2 to 1": measure(folder, pipeline=2, generate=1),
        "gather, pp 2 to 2": measure(folder, pipeline=2, generate=2),
        "shared, tp 2 to 2": measure_shared(folder),
    }
    if world.is_first_rank:
        Path(result).write_text(json.dumps(report))
    cluster_module.stop()


if __name__ == "__main__":
    main(sys.argv[1])
