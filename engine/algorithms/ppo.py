"""PPO's part of a step: the critic's values become advantages for the policy and returns for the critic.

Advantages are per token (GAE, kernels/gae.py). A sample's reward stands on its last response token. A KL term, where
there is one, stays in the policy's loss or, with algo.kl_in_reward, is taken from the reward of each token. Whatever is
summed over tokens is summed over the global batch, so that it does not matter how that was packed.

Lambda is 1 by default. With a reward at the end of L tokens, a lambda of 0.95 leaves 0.95^L of it at the first token,
and the rest must come through the critic's values. The critic's returns and the policy's advantages may have lambdas of
their own; VAPO (arXiv:2504.05118) has 1 for the returns and 1 - 1 / (alpha L) for the advantages.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from ralign.engine.algorithms.losses import ValueLoss
from ralign.engine.config.algo import CriticConfig
from ralign.engine.config.run import Run
from ralign.engine.data.packing import PackedBatch, to_device
from ralign.engine.policy.critic import Critic
from ralign.engine.policy.megatron_model import UpdateStats
from ralign.engine.runtime.cluster import Cluster
from ralign.kernels.gae import gae
from torch import Tensor

Updates = Sequence[Sequence[PackedBatch]]  # micro-batches of each of a step's updates


class PPO:
    """The critic, and how it is trained beside a policy."""

    def __init__(self, run: Run, cluster: Cluster, critic: Critic):
        self.config, self.implementation = run.critic, run.kernels.advantages
        self.reward_kl_coef = run.algo.kl_coef if run.algo.kl_in_reward else 0.0
        self.cluster, self.critic = cluster, critic
        self.loss = ValueLoss(run.critic.value_clip)
        critic.start_training(run.critic.optim, run.num_steps * run.algo.num_updates)

    def is_warming_up(self, num_steps_done: int) -> bool:
        """Whether only the critic learns in the next step."""
        return num_steps_done < self.config.warmup_steps

    def add_advantages(self, updates: Updates) -> None:
        """Values before the first update, and what follows from them, on the very batches that will be learned."""
        for micro_batches in updates:
            for batch, values in zip(micro_batches, self.critic.values(micro_batches), strict=True):
                batch.per_token["values"] = values
        self._sums = add_advantages(
            updates, self.config, self.cluster.dp_group, self.implementation, kl_coef=self.reward_kl_coef
        )

    def learn(self, micro_batches: Sequence[PackedBatch]) -> UpdateStats:
        """One update of the critic."""
        return self.critic.update(micro_batches, self.loss)

    def metrics(self, learned: Sequence[UpdateStats]) -> dict[str, float]:
        """Means over the tokens of a step; advantages as they were before whitening."""
        sums = {name: sum(x.metrics[name] for x in learned) for name in learned[0].metrics}
        num_tokens = max(sums["num_tokens"], 1.0)
        value, target, square, error = (
            sums[f"{name}_sum"] / num_tokens for name in ("value", "return", "return_square", "value_error")
        )
        variance, left = square - target**2, error - (target - value) ** 2
        mean, deviation = torch.stack(_mean_and_deviation(self._sums)).tolist()
        return {
            "critic/loss": sum(x.loss for x in learned) / len(learned),
            "critic/grad_norm": sum(x.grad_norm for x in learned) / len(learned),
            "critic/lr": learned[-1].lr,
            "critic/value_mean": value,
            "critic/return_mean": target,
            "critic/explained_variance": 1 - left / variance if variance > 1e-12 else float("nan"),
            "critic/clipped_share": sums["value_clipped_sum"] / num_tokens,
            "critic/advantage_mean": mean,
            "critic/advantage_std": deviation,
        }


def add_advantages(
    updates: Updates,
    config: CriticConfig,
    group: dist.ProcessGroup,
    implementation: str = "auto",
    *,
    kl_coef: float = 0.0,
) -> Tensor:
    """Each batch's `advantages` and `returns` [T], from its `values`, `rewards` (its sample's) and `weights`.

    Args:
        updates: this rank's micro-batches of the step.
        group: the ranks that hold the others (data parallel); whitening is over all of them.
        kl_coef: weight of each token's `old_logprobs` - `ref_logprobs` in its reward; 0: none.

    Returns:
        [3] float64 on the device: number, sum and sum of squares of the global batch's advantages before whitening.
        Tokens of weight 0 count nowhere and have advantage 0.
    """
    batches = [batch for micro_batches in updates for batch in micro_batches]
    sums = torch.zeros(3, dtype=torch.float64, device=batches[0].targets.device)
    for batch in batches:
        per_token, counted = batch.per_token, batch.per_token["weights"] != 0
        rewards = rewards_at_the_end(batch)
        if kl_coef:
            rewards = rewards - kl_coef * (per_token["old_logprobs"] - per_token["ref_logprobs"])
        given = (rewards, per_token["values"], counted, batch.cu_seqlens)
        settings = {"gamma": config.gamma, "implementation": implementation}
        per_token["advantages"], per_token["returns"] = gae(*given, lam=config.lam, **settings)
        policy_lam = policy_lambda(batch, config)
        if policy_lam is not None:
            per_token["advantages"], _ = gae(*given, lam=policy_lam, **settings)
        found = per_token["advantages"].double()  # 0 where not counted
        sums += torch.stack([counted.sum(), found.sum(), found.square().sum()])
    dist.all_reduce(sums, group=group)
    if config.whiten:
        mean, deviation = _mean_and_deviation(sums)
        for batch in batches:
            found = batch.per_token["advantages"]
            whitened = (found.double() - mean) / (deviation + 1e-8)
            counted = batch.per_token["weights"] != 0
            batch.per_token["advantages"] = torch.where(counted, whitened, 0.0).to(found.dtype)
    return sums


def policy_lambda(batch: PackedBatch, config: CriticConfig) -> Tensor | float | None:
    """Lambda of the policy's advantages: one number, [num_sequences] by length, or None where it is the critic's."""
    if config.length_adaptive is None:
        return config.policy_lam
    lam = np.clip(1 - 1 / (config.length_adaptive * np.maximum(batch.row_counts, 1)), 0, 1)
    lams = np.ones(len(batch.cu_seqlens) - 1)  # sequences of padding have no tokens that count
    lams[: len(lam)] = lam
    return to_device(lams, batch.targets.device)


def rewards_at_the_end(batch: PackedBatch) -> Tensor:
    """[T] fp32: each sample's reward where its last response token is predicted, 0 elsewhere."""
    answered = batch.row_counts > 0
    last = to_device((batch.row_starts + batch.row_counts - 1)[answered], batch.targets.device)
    rewards = batch.per_token["rewards"]
    return torch.zeros_like(rewards).index_copy_(0, last, rewards[last])


def _mean_and_deviation(sums: Tensor) -> tuple[Tensor, Tensor]:
    num_tokens, total, squares = sums.unbind()
    mean = total / num_tokens.clamp(min=1)
    return mean, (squares / num_tokens.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
