"""How far the engine's probabilities of its own tokens are from the trainer's, in the tail of a step.

    mismatch ratio of a token: exp|old_logprob − rollout_logprob|, at least 1

A quantile cannot be summed over micro-batches and ranks; counts can. `tail_counts` counts the tokens above fixed edges,
on the device and without waiting for it. `add_quantile` reads the quantile from the sums. The edges are spaced evenly
in log(ratio − 1), from 1.001 to about 4000 by a factor of 1.1: a quantile's ratio − 1 is right within 5 %.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

COUNTS = "rollout_ratio_above"
QUANTILE = 0.999
_NAME = "rollout_ratio_p999"
_NUM_EDGES, _FIRST, _FACTOR = 160, 1e-3, 1.1


def edges(device: torch.device | str = "cpu") -> Tensor:
    """[160] fp32: the values of ratio − 1 above which tokens are counted."""
    places = torch.arange(_NUM_EDGES, dtype=torch.float32, device=device)
    return _FIRST * torch.exp(places * math.log(_FACTOR))


@torch.no_grad()
def tail_counts(old_logprobs: Tensor, rollout_logprobs: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """The number of tokens of non-zero weight at or above each edge, [160] int64, as a metric that adds.

    All arguments are [T]. A token whose mismatch is NaN is above all edges.
    """
    excess = (old_logprobs - rollout_logprobs).float().abs().expm1().nan_to_num(nan=math.inf, posinf=math.inf)
    # Sorted and searched: torch.histc and torch.bincount add with atomics or wait for the device.
    ascending = torch.where(weights != 0, excess, -1).sort().values
    return {COUNTS: ascending.numel() - torch.searchsorted(ascending, edges(ascending.device))}


def add_quantile(sums: Mapping[str, float]) -> dict[str, float]:
    """Replaces the counts, `COUNTS/0` and so on, by rollout_ratio_p999; sums without counts stay as they are.

    sums: metrics summed over an update, with num_tokens. Below the first edge the ratio is 1; above the last it is
    the last edge's.
    """
    rest = {name: value for name, value in sums.items() if not name.startswith(f"{COUNTS}/")}
    if len(rest) == len(sums):
        return rest
    most = (1 - QUANTILE) * sums["num_tokens"]
    place = next((i for i in range(_NUM_EDGES) if sums[f"{COUNTS}/{i}"] <= most), _NUM_EDGES)
    # The quantile is between two edges: the geometric mean of both is within the root of their factor.
    excess = 0.0 if place == 0 else _FIRST * _FACTOR ** (min(place, _NUM_EDGES - 0.5) - 0.5)
    return rest | {_NAME: 1 + excess}
