"""Three updates of the critic on the same samples in every layout of the world: losses, grad norms, advantages.

The reward model's head is drawn, so that values differ from the first update on. One sample is masked out.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from ralign.engine.algorithms.ppo import PPO
from ralign.engine.config.algo import AlgoConfig, CriticConfig, OptimConfig
from ralign.engine.config.run import Run
from ralign.engine.policy.critic import Critic
from ralign.engine.runtime import cluster as cluster_module
from safetensors.torch import load_file, save_file
from tiny import make_model, make_samples, pack

LAYOUTS = {
    1: {
        "one": {},
        "one, small micro-batches": {"token_budget": 64},
        "one, without the masked sample": {"masked": False},
        "one, bf16": {"dtype": "bf16"},
    },
    2: {
        "tp2": {"tensor": 2},
        "tp2 sequence parallel": {"tensor": 2, "sequence": True},
        "pp2": {"pipeline": 2, "token_budget": 96},
        "cp2": {"context": 2},
        "cp2 recompute": {"context": 2, "recompute": True, "token_budget": 96},
        "dp2": {"token_budget": 128},
        "tp2 sequence parallel bf16": {"tensor": 2, "sequence": True, "dtype": "bf16"},
    },
    4: {
        "tp2 sequence parallel cp2": {"tensor": 2, "context": 2, "sequence": True},
        "tp2 sequence parallel pp2": {"tensor": 2, "pipeline": 2, "sequence": True, "token_budget": 96},
    },
}


def critic_samples(masked: bool):
    """24 samples with a reward each; sample 5 is masked and brings what must not be read, or is not there."""
    rng = np.random.default_rng(1)
    samples = make_samples(24)
    for number, sample in enumerate(samples):
        weight, reward = sample.per_sample["weights"], float(rng.normal())
        sample.per_sample = {"weights": weight, "rewards": reward}
        if number == 5:
            sample.per_sample = {"weights": 0.0, "rewards": 1e6}
    return samples if masked else samples[:5] + samples[6:]


def three_updates(
    folder,
    *,
    tensor=1,
    pipeline=1,
    context=1,
    sequence=False,
    recompute=False,
    dtype="fp32",
    token_budget=4096,
    masked=True,
):
    cluster = cluster_module.start(tensor=tensor, pipeline=pipeline, context=context)
    critic = Critic(folder, cluster, dtype=dtype, sequence_parallel=sequence, recompute=recompute)
    optim = OptimConfig(lr=3e-4, weight_decay=0.1, clip_grad=0.5)
    config = CriticConfig(optim=optim, value_clip=0.1, gamma=0.98, lam=0.9)
    run = Run(algo=AlgoConfig(advantages="gae"), critic=config, num_steps=3)
    ppo = PPO(run, cluster, critic)
    batches = pack(
        critic_samples(masked), cluster, token_budget=token_budget, pad_multiple=critic.pad_multiple
    )
    ppo.add_advantages([batches])
    for batch in batches:
        assert (batch.per_token["advantages"][batch.per_token["weights"] == 0] == 0).all()
        same: list = [None] * cluster.pp_size
        dist.all_gather_object(same, batch.per_token["values"].tolist(), group=cluster.pp_group)
        assert all(part == same[0] for part in same), "the stages know different values"
    cubes = sum(
        batch.per_token["advantages"].double().pow(3).sum() for batch in batches
    )  # of what is whitened
    dist.all_reduce(cubes, group=cluster.dp_group)
    rows = []
    for _ in range(3):
        margin = edge_margin(critic, batches, config.value_clip)
        row = ppo.metrics([ppo.learn(batches)]) | {"cubes": float(cubes)}
        rows.append(row | {"edge_margin": margin})
    return rows


def edge_margin(critic, batches, clip: float) -> float:
    """How near a token's value is to the edge of its clip, where its gradient jumps (see layouts.py); on this rank."""
    nearest = math.inf
    for batch, values in zip(batches, critic.values(batches), strict=True):
        moved = (values - batch.per_token["values"]).abs()[batch.per_token["weights"] != 0]
        nearest = min(nearest, (moved - clip).abs().min().item() if len(moved) else math.inf)
    return nearest


def overfitted(folder) -> float:
    """Explained variance after 40 updates on one batch, from a head of zeros."""
    cluster = cluster_module.start()
    config = CriticConfig(optim=OptimConfig(lr=1e-3), lam=1.0, value_clip=None)
    run = Run(algo=AlgoConfig(advantages="gae"), critic=config, num_steps=40)
    ppo = PPO(run, cluster, Critic(folder, cluster))
    batches = pack(critic_samples(masked=True), cluster, token_budget=4096, pad_multiple=1)
    for _ in range(40):
        ppo.add_advantages([batches])
        stats = ppo.learn(batches)
    return ppo.metrics([stats])["critic/explained_variance"]


def main(result: str) -> None:
    torch.set_num_threads(1)
    world = cluster_module.start()
    folder = Path(result).parent / "reward_model"
    if world.is_first_rank:
        make_model(folder.with_name("fresh"), "qwen3", tied=True, initializer_range=0.05)
        make_model(folder, "qwen3", tied=True)
        file = folder / "model.safetensors"
        score = torch.randn(1, 64, generator=torch.Generator().manual_seed(2)) * 0.3
        save_file(load_file(file) | {"score.weight": score}, file, metadata={"format": "pt"})
    dist.barrier()
    report = {name: three_updates(folder, **layout) for name, layout in LAYOUTS[world.world_size].items()}
    if world.world_size == 1:
        report["overfitted"] = overfitted(folder.with_name("fresh"))
    if world.is_first_rank:
        Path(result).write_text(json.dumps(report))
    cluster_module.stop()


if __name__ == "__main__":
    main(sys.argv[1])
