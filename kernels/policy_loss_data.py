"""Inputs and results of the policy loss: tensors per token, and the report, a vector of metrics.

`METRICS` names the places of the report. All are sums over the tokens of non-zero weight, except for the extremes,
which end in _min and _max: they are +inf and −inf without such tokens.

Shapes: N tokens.
"""

from typing import NamedTuple

import torch
from ralign.kernels.objectives import PolicyLossSettings
from torch import Tensor

METRICS = (
    "loss", "num_tokens", "ratio_sum", "ratio_min", "ratio_max", "clip_low_sum", "clip_high_sum", "dual_clip_sum",
    "approx_kl_sum", "rollout_kl_sum", "rollout_k3_sum", "rollout_ratio_max", "tis_sum", "tis_capped_sum", "mask_sum",
    "kl_sum", "entropy_sum",
)  # fmt: skip
_MINIMA = [place for place, name in enumerate(METRICS) if name.endswith("_min")]
_MAXIMA = [place for place, name in enumerate(METRICS) if name.endswith("_max")]

K3_MAX_SLOPE = 10.0
"""k3 is linear where its slope would exceed this size."""


class PerToken(NamedTuple):
    """Inputs of the policy loss beside the logprobs, [N] each; meanings in `policy_loss`."""

    old_logprobs: Tensor | None  # None: the logprobs themselves
    advantages: Tensor
    weights: Tensor
    rollout_logprobs: Tensor | None
    ref_logprobs: Tensor | None

    def at(self, rows: Tensor) -> "PerToken":
        """Selects rows [R] int64."""
        old, advantages, weights, rollout, ref = (None if x is None else x[rows] for x in self)
        assert advantages is not None and weights is not None
        return PerToken(old, advantages, weights, rollout, ref)


class LossAndGradient(NamedTuple):
    """d_logprobs [N], d_entropy [N] (None without an entropy term) and the report [len(METRICS)]."""

    d_logprobs: Tensor
    d_entropy: Tensor | None
    report: Tensor


def merge_metrics(reports: list[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Merges the reports of parts of a batch, in order, into the report of the whole."""
    if len(reports) == 1:
        return reports[0]
    empty = torch.zeros(len(METRICS), dtype=dtype, device=device)
    for place in _MINIMA:
        empty[place] = torch.inf
    for place in _MAXIMA:
        empty[place] = -torch.inf
    stacked = torch.stack([empty, *reports])
    total = stacked.sum(dim=0)
    for place in _MINIMA:
        total[place] = stacked[:, place].amin()
    for place in _MAXIMA:
        total[place] = stacked[:, place].amax()
    return total


def named_metrics(
    report: Tensor, settings: PolicyLossSettings, tokens: PerToken, *, has_entropy: bool
) -> dict[str, Tensor]:
    """Returns the metrics that the given inputs make, by name, as fp32 scalars without gradient."""
    absent = {"loss"}
    if tokens.rollout_logprobs is None:
        absent |= {"rollout_kl_sum", "rollout_k3_sum", "rollout_ratio_max"}
    if settings.tis_cap is None:
        absent |= {"tis_sum", "tis_capped_sum"}
    if settings.mask_level is None:
        absent |= {"mask_sum"}
    if tokens.ref_logprobs is None:
        absent |= {"kl_sum"}
    if not has_entropy:
        absent |= {"entropy_sum"}
    values = report.detach().float()
    return {name: x for name, x in zip(METRICS, values, strict=True) if name not in absent}
