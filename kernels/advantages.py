"""Group-relative advantages: the reward of a sample relative to its group.

Over the n valid members of a group, mean = Σ r / n and std = sqrt(Σ (r − mean)² / (n − 1)):

    grpo      (r − mean) / (std + eps)      Shao et al. 2024 (arXiv:2402.03300); ddof 1, as torch.std
    dr_grpo    r − mean                     Liu et al. 2025 (arXiv:2503.20783)
    rloo       r − mean of the others = (r − mean) · n / (n − 1)      Ahmadian et al. 2024 (arXiv:2402.14740)

A group of one has no baseline: its advantage is 0. The variance is centred and summed in float64: equal rewards give
exactly 0, not a rounding error divided by eps.

On CUDA it is one launch: a program takes a few samples and compares their group ids with all S, twice (mean, then
centred squares). Up to tens of thousands of samples, S² comparisons are cheaper than the launches of a sort.

Shapes: S samples; one scalar a sample.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import triton
import triton.language as tl
from ralign.kernels.implementation import jit, uses_triton
from torch import Tensor


class AdvantageEstimator(Protocol):
    """Computes the advantage of each sample."""

    def __call__(
        self, rewards: Tensor, group_ids: Tensor, valid: Tensor, /, *, implementation: str
    ) -> Tensor:
        """Returns the advantages [S]; arguments as in `GroupEstimator`."""
        ...


@dataclass(frozen=True, slots=True)
class GroupEstimator:
    """The centred reward of each sample in its group, scaled as the fields say."""

    name: str
    divide_by_std: bool
    leave_one_out: bool
    """Scale by n / (n − 1): the baseline is then the mean of the others."""
    eps: float = 1e-6
    """Added to the standard deviation."""

    def __call__(
        self, rewards: Tensor, group_ids: Tensor, valid: Tensor, *, implementation: str = "auto"
    ) -> Tensor:
        """Computes the advantage of each sample in its group.

        rewards: [S] float. group_ids: [S] int64, any values in any order; equal ids are one group.
        valid: [S] bool; a sample of False (a failed judge) gets 0 and does not affect the others, whatever its
            reward, NaN too.
        implementation: "auto", "torch" or "triton"; see implementation.py.

        Returns [S] in the dtype of the rewards, without gradient. Does not synchronise with the device. Raises
        ValueError for shapes or dtypes that do not fit. The formulas are at the head of this file.
        """
        if group_ids.dtype != torch.int64 or valid.dtype != torch.bool:
            raise ValueError(
                f"group_ids must be int64 and valid bool, got {group_ids.dtype} and {valid.dtype}"
            )
        if not rewards.shape == group_ids.shape == valid.shape or rewards.ndim != 1:
            shapes = [list(x.shape) for x in (rewards, group_ids, valid)]
            raise ValueError(f"rewards, group_ids and valid must be [S] alike, got {shapes}")
        if rewards.numel() == 0:
            return torch.empty_like(rewards)
        run = _advantages_triton if uses_triton(implementation, rewards) else _advantages_torch
        return run(rewards, group_ids, valid, self)


GRPO = GroupEstimator("grpo", divide_by_std=True, leave_one_out=False)
DR_GRPO = GroupEstimator("dr_grpo", divide_by_std=False, leave_one_out=False)
RLOO = GroupEstimator("rloo", divide_by_std=False, leave_one_out=True)


def group_advantages_ref(rewards, group_ids, valid, *, estimator: GroupEstimator):
    """The textbook loop over groups."""
    out = torch.zeros_like(rewards)
    for group in group_ids.unique():
        members = (group_ids == group) & valid
        n = int(members.sum())
        if n < 2:
            continue
        r = rewards[members].double()
        a = r - r.mean()
        if estimator.leave_one_out:
            a = torch.stack([x - (r.sum() - x) / (n - 1) for x in r])
        if estimator.divide_by_std:
            a = a / (r.std() + estimator.eps)
        out[members] = a.to(out.dtype)
    return out


@jit
def _tile(rewards, group_ids, valid, group, start, num_samples, BLOCK: tl.constexpr):
    """Whether sample j of the tile is a valid member of the group of row i, [ROWS, BLOCK]; the rewards [BLOCK]."""
    others = start + tl.arange(0, BLOCK)
    inside = others < num_samples
    counted = tl.load(valid + others, mask=inside, other=0) != 0
    r = tl.where(counted, tl.load(rewards + others, mask=inside, other=0.0).to(tl.float64), 0.0)
    same = tl.load(group_ids + others, mask=inside, other=0)[None, :] == group[:, None]
    return same & counted[None, :], r


@jit
def _advantages_kernel(
    rewards, group_ids, valid, out, num_samples,
    DIVIDE_BY_STD: tl.constexpr, LEAVE_ONE_OUT: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < num_samples
    group = tl.load(group_ids + rows, mask=inside, other=0)
    n = tl.zeros((ROWS,), tl.float64)
    total = tl.zeros((ROWS,), tl.float64)
    for start in range(0, num_samples, BLOCK):
        same, r = _tile(rewards, group_ids, valid, group, start, num_samples, BLOCK)
        n += tl.sum(tl.where(same, 1.0, 0.0).to(tl.float64), 1)
        total += tl.sum(tl.where(same, r[None, :], 0.0), 1)
    mean = total / tl.maximum(n, 1.0)
    counted = tl.load(valid + rows, mask=inside, other=0) != 0
    own = tl.load(rewards + rows, mask=inside, other=0.0).to(tl.float64)
    advantage = tl.where(counted, own - mean, 0.0)
    if LEAVE_ONE_OUT:
        advantage *= n / tl.maximum(n - 1, 1.0)
    if DIVIDE_BY_STD:
        squares = tl.zeros((ROWS,), tl.float64)
        for start in range(0, num_samples, BLOCK):
            same, r = _tile(rewards, group_ids, valid, group, start, num_samples, BLOCK)
            centred = tl.where(same, r[None, :] - mean[:, None], 0.0)
            squares += tl.sum(centred * centred, 1)
        advantage /= tl.sqrt(squares / tl.maximum(n - 1, 1.0)) + EPS
    tl.store(out + rows, advantage, mask=inside)


def _advantages_triton(
    rewards: Tensor, group_ids: Tensor, valid: Tensor, estimator: GroupEstimator
) -> Tensor:
    rewards, group_ids, valid = rewards.detach().contiguous(), group_ids.contiguous(), valid.contiguous()
    out, rows = torch.empty_like(rewards), 16
    _advantages_kernel[(triton.cdiv(rewards.numel(), rows),)](
        rewards, group_ids, valid.view(torch.uint8), out, rewards.numel(),
        DIVIDE_BY_STD=estimator.divide_by_std, LEAVE_ONE_OUT=estimator.leave_one_out, EPS=estimator.eps,
        ROWS=rows, BLOCK=128, num_warps=4,
    )  # fmt: skip
    return out


def _segments(group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """[S] any int64 -> the order that sorts them [S], and the segment of each sorted row [S] in 0..S−1."""
    sorted_ids, order = torch.sort(group_ids, stable=True)
    starts = torch.zeros_like(sorted_ids)
    starts[1:] = sorted_ids[1:] != sorted_ids[:-1]
    return order, starts.cumsum(0)


def _segment_sum(values: Tensor, segment: Tensor) -> Tensor:
    """values [S] -> the sum over the segment of each row [S], added in the order of the rows (reproducible)."""
    num_rows = torch.zeros_like(segment).index_add_(0, segment, torch.ones_like(segment))
    return torch.segment_reduce(values, "sum", lengths=num_rows, axis=0, unsafe=True)[segment]


def _advantages_torch(rewards: Tensor, group_ids: Tensor, valid: Tensor, estimator: GroupEstimator) -> Tensor:
    order, segment = _segments(group_ids)
    counted = valid[order]
    r = torch.where(counted, rewards.detach()[order].double(), 0)
    n = _segment_sum(counted.double(), segment)
    centred = torch.where(counted, r - _segment_sum(r, segment) / n.clamp(min=1), 0)
    others = (n - 1).clamp(min=1)
    advantage = centred
    if estimator.leave_one_out:
        advantage = advantage * (n / others)
    if estimator.divide_by_std:
        std = (_segment_sum(centred.square(), segment) / others).sqrt()
        advantage = advantage / (std + estimator.eps)
    return torch.empty_like(rewards).index_copy_(0, order, advantage.to(rewards.dtype))
