"""Advantages that are whitened over the batch: after, or instead of, a comparison within the group.

    reinforce_pp            (r − mean of the batch) / (std of the batch + eps)
    reinforce_pp_baseline   c = r − mean of the group;      (c − mean of the batch) / (std of the batch + eps)
    gdpo                    s = Σ over the reward's parts of their GRPO advantages; s whitened over the batch

Mean and std are over the valid samples of the batch (ddof 1). In gdpo each part of a reward, such as label and
rationale, is normalised in its group by itself: samples with the same sum of different parts differ. A part that is
constant in a group is 0 there.

These are a few reductions over S numbers in plain torch, on every device. Sums are in float64.

Sources: REINFORCE++ (Hu et al. 2025, arXiv:2501.03262), GDPO (Liu et al. 2026, arXiv:2601.05242).

Shapes: S samples; K parts of a reward.
"""

from dataclasses import dataclass

import torch
from ralign.kernels.advantages import GRPO, GroupEstimator
from torch import Tensor

_CENTRED = GroupEstimator("centred", divide_by_std=False, leave_one_out=False)


def batch_advantages_ref(rewards, group_ids, valid, *, estimator: "BatchEstimator"):
    """The same as the formulas are written, sample by sample. rewards: [S, K]."""
    rewards = rewards.double().reshape(len(rewards), -1)
    scores = []
    for i in range(len(rewards)):
        members = [j for j in range(len(rewards)) if valid[j] and group_ids[j] == group_ids[i]]
        score = 0.0
        for part in rewards.T:
            mean = sum(part[j] for j in members) / max(len(members), 1)
            if estimator.within is GRPO:
                variance = sum((part[j] - mean) ** 2 for j in members) / max(len(members) - 1, 1)
                score += (part[i] - mean) / (variance**0.5 + GRPO.eps)
            else:
                score += part[i] - (mean if estimator.within else 0.0)
        scores.append(float(score))
    counted = [score for score, ok in zip(scores, valid, strict=True) if ok]
    mean = sum(counted) / max(len(counted), 1)
    deviation = (sum((s - mean) ** 2 for s in counted) / max(len(counted) - 1, 1)) ** 0.5
    out = [
        (s - mean) / (deviation + estimator.eps) if ok else 0.0 for s, ok in zip(scores, valid, strict=True)
    ]
    return torch.tensor(out, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class BatchEstimator:
    """A score of each sample, whitened over the valid samples of the batch."""

    name: str
    within: GroupEstimator | None
    """Comparison within the group that comes first; None: none."""
    takes_parts: bool = False
    """Rewards are [S, K]: each part is compared by itself."""
    eps: float = 1e-6
    """Added to the standard deviation."""

    def __call__(
        self, rewards: Tensor, group_ids: Tensor, valid: Tensor, *, implementation: str = "auto"
    ) -> Tensor:
        """Computes the advantage of each sample.

        rewards: [S] float, or [S, K] where `takes_parts` is set. group_ids: [S] int64. valid: [S] bool; a sample of
            False gets 0 and does not affect the others, whatever its reward.
        implementation: of the comparison within groups; see `GroupEstimator`.

        Returns [S] in the dtype of the rewards, without gradient. Raises ValueError for shapes that do not fit.
        """
        if rewards.ndim != (2 if self.takes_parts else 1):
            raise ValueError(f"{self.name}: got rewards of the shape {list(rewards.shape)}")
        parts = rewards.detach().reshape(len(rewards), -1).T
        if self.within is None:
            scores = parts.double().sum(0)
        else:
            compared = [
                self.within(part.double().contiguous(), group_ids, valid, implementation=implementation)
                for part in parts
            ]
            scores = torch.stack(compared).sum(0)
        scores = torch.where(valid, scores, 0)
        num_valid = valid.sum().clamp(min=1)
        centred = scores
        if (
            self.within is None
        ):  # scores that were compared in groups have mean 0: no group without spread gets noise
            centred = torch.where(valid, scores - scores.sum() / num_valid, 0)
        deviation = (centred.square().sum() / (num_valid - 1).clamp(min=1)).sqrt()
        return (centred / (deviation + self.eps)).to(rewards.dtype)


REINFORCE_PP = BatchEstimator("reinforce_pp", within=None)
REINFORCE_PP_BASELINE = BatchEstimator("reinforce_pp_baseline", within=_CENTRED)
GDPO = BatchEstimator("gdpo", within=GRPO, takes_parts=True)
