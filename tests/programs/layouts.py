"""Five updates of the policy loss on the same samples in every layout of the world; losses and gradient norms.

The gradient of a clipped objective jumps where a token's ratio crosses an edge. If a ratio is within rounding of an
edge, two correct layouts (or CPUs) may differ by the token's whole gradient: each row has the distance of the nearest
ratio.

In a `poisoned` layout, the gradients of keys that belong to no sequence are NaN; CUDA's varlen kernels leave them
uninitialised.
"""

import json
import math
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ralign.engine.algorithms.losses import ReinforceLoss
from ralign.engine.config.algo import AlgoConfig, OptimConfig
from ralign.engine.config.run import KernelsConfig
from ralign.engine.policy import attention
from ralign.engine.policy.policy import Policy
from ralign.engine.runtime import cluster as cluster_module
from tiny import make_model, make_samples, pack

LAYOUTS = {
    1: {
        "one": {},
        "one, small micro-batches": {"token_budget": 64},
        "one, recompute": {"recompute": True},
        "one, loss apart from the head": {"fold_loss": False},
        "one, bf16": {"dtype": "bf16"},
        "olmo2 one": {"family": "olmo2"},  # tensor-parallel ranks split its norms over all heads
    },
    2: {
        "tp2": {"tensor": 2},
        "tp2 sequence parallel": {"tensor": 2, "sequence": True},
        "pp2": {"pipeline": 2, "token_budget": 96},
        "cp2": {"context": 2, "poisoned": True},
        "cp2 recompute": {"context": 2, "recompute": True, "token_budget": 96},
        "dp2": {"token_budget": 128},
        "tp2 sequence parallel bf16": {"tensor": 2, "sequence": True, "dtype": "bf16"},
        "olmo2 tp2": {"family": "olmo2", "tensor": 2},
        "olmo2 tp2 sequence parallel recompute": {
            "family": "olmo2",
            "tensor": 2,
            "sequence": True,
            "recompute": True,
        },
    },
    4: {
        "tp2 sequence parallel cp2": {"tensor": 2, "context": 2, "sequence": True, "poisoned": True},
        "tp2 sequence parallel pp2": {"tensor": 2, "pipeline": 2, "sequence": True, "token_budget": 96},
    },
}
SEED = (
    3  # of the samples: no token comes near an edge of the objective (seed 0: 1e-6 before the fifth update)
)
attention_by_length = attention._attention_by_length


def attention_with_poison(query, key, value, packed):
    def poison(gradient):
        gradient = gradient.clone()
        gradient[packed.cu_seqlens_kv[-1] :] = float("nan")
        return gradient

    for tensor in (key, value):
        if tensor.requires_grad:
            tensor.register_hook(poison)
    return attention_by_length(query, key, value, packed)


def five_updates(
    folders,
    *,
    family="qwen3",
    tensor=1,
    pipeline=1,
    context=1,
    sequence=False,
    recompute=False,
    dtype="fp32",
    token_budget=4096,
    fold_loss=True,
    poisoned=False,
):
    attention._attention_by_length = attention_with_poison if poisoned else attention_by_length
    cluster = cluster_module.start(tensor=tensor, pipeline=pipeline, context=context)
    kernels = KernelsConfig(fold_loss=fold_loss)
    policy = Policy(
        folders / family,
        cluster,
        dtype=dtype,
        sequence_parallel=sequence,
        recompute=recompute,
        kernels=kernels,
    )
    policy.start_training(OptimConfig(lr=1e-3, weight_decay=0.1, warmup_steps=2, clip_grad=0.5), num_steps=5)
    samples = make_samples(24, seed=SEED)
    batches = pack(samples, cluster, token_budget=token_budget, pad_multiple=policy.pad_multiple)
    for batch, output in zip(batches, policy.logprobs(batches), strict=True):
        batch.per_token["old_logprobs"] = output[0]
        same: list = [None] * cluster.pp_size
        dist.all_gather_object(same, output.tolist(), group=cluster.pp_group)
        assert all(part == same[0] for part in same), "the stages know different logprobs"
    algo = AlgoConfig(kl_coef=0.1, entropy_coef=0.01)
    loss = ReinforceLoss(algo)
    policy.freeze_reference()
    rows = []
    for _ in range(5):
        with policy.as_reference():
            for batch, output in zip(batches, policy.logprobs(batches), strict=True):
                batch.per_token["ref_logprobs"] = output[0]
        margin = edge_margin(policy, batches, algo)
        stats = policy.update(batches, loss)
        extremes = stats.metrics["ratio_min"], stats.metrics["ratio_max"]
        row = {"loss": stats.loss, "grad_norm": stats.grad_norm, "ratio_extremes": extremes}
        rows.append(row | {"edge_margin": margin})
    return rows


def edge_margin(policy, batches, algo: AlgoConfig) -> float:
    """How near any token's log ratio is to one of the objective's edges, on this rank."""
    clip_low, clip_high = algo.clip_range
    edges = [math.log(ratio) for ratio in (1 - clip_low, 1 + clip_high, algo.dual_clip)]
    nearest = math.inf
    for batch, output in zip(batches, policy.logprobs(batches), strict=True):
        log_ratio = (output[0] - batch.per_token["old_logprobs"])[batch.targets >= 0]
        nearest = min(nearest, *((log_ratio - edge).abs().min().item() for edge in edges))
    return nearest


def main(result: str) -> None:
    torch.set_num_threads(1)
    world = cluster_module.start()
    folders = Path(result).parent
    if world.is_first_rank:
        for family in ("qwen3", "olmo2"):
            make_model(folders / family, family, tied=True)
    dist.barrier()
    report = {name: five_updates(folders, **layout) for name, layout in LAYOUTS[world.world_size].items()}
    if world.is_first_rank:
        Path(result).write_text(json.dumps(report))
    cluster_module.stop()


if __name__ == "__main__":
    main(sys.argv[1])
