"""The critic's loss, clipped as in PPO (arXiv:1707.06347; its reference implementation, OpenAI Baselines).

    clipped = old_value + clip(value − old_value, −clip, clip)
    loss = Σ weight · ½ max((value − R)², (clipped − R)²)

With the larger of the two errors, a value that has moved further than `clip` towards R has no gradient; a value that
has moved away from R keeps it. Memory-bound and tiny; no kernel.

Shapes: N tokens.
"""

import torch
from torch import Tensor


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    weights: Tensor,
    *,
    clip: float | None = 0.2,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped squared error of the critic, and its metrics as sums.

    values: [N] float, with gradient. old_values, returns: [N], constants. weights: [N], mask and normaliser in one;
    a token of weight 0 is ignored, whatever its inputs hold. clip: the largest distance of the clipped value
    from the old one; None does not clip.

    Returns (loss, metrics): loss a scalar in fp32 (float64 for float64 values); metrics num_tokens,
    value_sum, return_sum, return_square_sum, value_error_sum (squared, unclipped), value_clipped_sum (tokens whose
    clipped error is the larger). Raises ValueError for shapes that do not fit and a clip that is not positive.
    """
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip}")
    if not values.shape == old_values.shape == returns.shape == weights.shape or values.ndim != 1:
        shapes = [list(x.shape) for x in (values, old_values, returns, weights)]
        raise ValueError(f"values, old_values, returns and weights must be [N] alike, got {shapes}")
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    counted = weights != 0
    v, old, target = (torch.where(counted, x.to(dtype), 0.0) for x in (values, old_values, returns))
    old, target = old.detach(), target.detach()
    error = (v - target).square()
    clipped_counts = torch.zeros_like(counted)
    worst = error
    if clip is not None:
        clipped_error = (old + (v - old).clamp(-clip, clip) - target).square()
        clipped_counts = clipped_error > error
        worst = torch.maximum(error, clipped_error)
    loss = 0.5 * (weights.to(dtype) * worst).sum()
    metrics = {
        "num_tokens": counted.sum(),
        "value_sum": v.detach().sum(),
        "return_sum": target.sum(),
        "return_square_sum": target.square().sum(),
        "value_error_sum": error.detach().sum(),
        "value_clipped_sum": clipped_counts.sum(),
    }
    return loss, metrics
