"""RMSNorm over the last dimension, as in the Qwen3 and Llama of transformers.

    r = (mean(x²) + eps)^(−1/2)      y = weight · (x r)      (x r) in fp32, rounded to x's dtype before weight

    g = weight · dy      dx = r (g − x r · mean(g · x r))      dweight = Σ dy · x r

Shapes: x [..., H], weight [H]; r is one number a row.
"""

import torch
from torch.autograd.function import once_differentiable


def rms_norm_ref(x, weight, eps):
    """Plain torch, differentiable by autograd."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (weight * normed.to(x.dtype)).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        r = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, r)
        return (weight * (wide * r).to(x.dtype)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, r = ctx.saved_tensors
        normed = x.to(r.dtype) * r
        dy = dy.to(r.dtype)
        dx = dweight = None
        if ctx.needs_input_grad[1]:
            dweight = (dy * normed).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            g = dy * weight.to(r.dtype)
            dx = (r * (g - normed * (g * normed).mean(-1, keepdim=True))).to(x.dtype)
        return dx, dweight, None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, differentiable in x and weight.

    x: [..., H] float, at least one leading dimension. weight: [H] float. eps: added to the mean square.
    Returns x's shape and dtype; statistics in fp32 (float64 for float64). Saved for backward: x, weight and
    one number a row. Raises ValueError when the sizes do not fit. Formula: Zhang and Sennrich 2019
    (arXiv:1910.07467), rounded where transformers rounds.
    """
    if x.ndim < 2 or weight.shape != x.shape[-1:]:
        raise ValueError(f"x [..., H] and weight [H] wanted, got {list(x.shape)} and {list(weight.shape)}")
    return _RMSNorm.apply(x, weight, eps)
