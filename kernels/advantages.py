"""Group-relative advantages: how much better a sample is than the others of its group.

Over the n valid members of a group, mean = Σ r / n and std = sqrt(Σ (r − mean)² / (n − 1)):

    grpo      (r − mean) / (std + eps)      Shao et al. 2024 (arXiv:2402.03300); ddof 1, as torch.std
    dr_grpo    r − mean                     Liu et al. 2025 (arXiv:2503.20783)
    rloo       r − mean of the others = (r − mean) · n / (n − 1)      Ahmadian et al. 2024 (arXiv:2402.14740)

A group of one has nobody to compare with: 0, in every kind. The variance is centred and summed in float64:
equal rewards give exactly 0, not a rounding error divided by eps.

Shapes: S samples; one scalar a sample.
"""

import torch

KINDS = ("grpo", "dr_grpo", "rloo")


def group_advantages_ref(rewards, group_ids, valid, *, kind, eps=1e-6):
    """The textbook loop over groups."""
    out = torch.zeros_like(rewards)
    for group in group_ids.unique():
        members = (group_ids == group) & valid
        n = int(members.sum())
        if n < 2:
            continue
        r = rewards[members].double()
        a = r - r.mean()
        if kind == "grpo":
            a = a / (r.std() + eps)
        elif kind == "rloo":
            a = torch.stack([x - (r.sum() - x) / (n - 1) for x in r])
        out[members] = a.to(out.dtype)
    return out


def _segments(group_ids):
    """[S] any int64 -> the order that sorts them [S], and the segment of each sorted row [S] in 0..S−1."""
    sorted_ids, order = torch.sort(group_ids, stable=True)
    starts = torch.zeros_like(sorted_ids)
    starts[1:] = sorted_ids[1:] != sorted_ids[:-1]
    return order, starts.cumsum(0)


def _segment_sum(values, segment):
    """values [S] summed over each segment in the order of its rows (repeatable), given back to them [S]."""
    num_rows = torch.zeros_like(segment).index_add_(0, segment, torch.ones_like(segment))
    return torch.segment_reduce(values, "sum", lengths=num_rows, axis=0, unsafe=True)[segment]


def group_advantages(
    rewards: torch.Tensor,
    group_ids: torch.Tensor,
    valid: torch.Tensor,
    *,
    kind: str,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Advantage of each sample over its group.

    rewards: [S] float. group_ids: [S] int64, any values in any order; equal ids are one group.
    valid: [S] bool; False (a failed judge) gives 0 and leaves the others as if the sample were not there,
        whatever its reward, NaN too.
    kind: "grpo", "dr_grpo" or "rloo". eps: added to the standard deviation of grpo.

    Returns [S] in the rewards' dtype, without gradient. Does not wait for the device. Raises ValueError for
    an unknown kind and for shapes or dtypes that do not fit. Formula: the head of this file.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if group_ids.dtype != torch.int64 or valid.dtype != torch.bool:
        raise ValueError(f"group_ids int64 and valid bool wanted, got {group_ids.dtype} and {valid.dtype}")
    if not rewards.shape == group_ids.shape == valid.shape or rewards.ndim != 1:
        shapes = [list(x.shape) for x in (rewards, group_ids, valid)]
        raise ValueError(f"rewards, group_ids and valid must be [S] alike, got {shapes}")
    order, segment = _segments(group_ids)
    counted = valid[order]
    r = torch.where(counted, rewards.detach()[order].double(), 0)
    n = _segment_sum(counted.double(), segment)
    centred = torch.where(counted, r - _segment_sum(r, segment) / n.clamp(min=1), 0)
    others = (n - 1).clamp(min=1)
    if kind == "grpo":
        centred = centred / ((_segment_sum(centred.square(), segment) / others).sqrt() + eps)
    elif kind == "rloo":
        centred = centred * (n / others)
    return torch.empty_like(rewards).index_copy_(0, order, centred.to(rewards.dtype))
