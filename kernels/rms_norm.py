"""RMSNorm over the last dimension, as in the Qwen3 and Llama of transformers.

    r = (mean(x²) + eps)^(−1/2)      y = weight · (x r)      (x r) in fp32, rounded to x's dtype before weight

    g = weight · dy      dx = r (g − x r · mean(g · x r))      dweight = Σ dy · x r

On CUDA a Triton program takes whole rows (several, where they are short), reads each once and writes each once;
in backward a fixed number of programs walk over all rows and keep a partial dweight each, added in order.

Shapes: x [..., H], weight [H]; r is one number a row; R rows in all.
"""

import torch
import triton
import triton.language as tl
from ralign.kernels.implementation import uses_triton
from torch.autograd.function import once_differentiable


def rms_norm_ref(x, weight, eps):
    """Plain torch, differentiable by autograd."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (weight * normed.to(x.dtype)).to(x.dtype)


@triton.jit
def _forward_kernel(
    x, weight, y, inverse_rms, num_rows, row_stride, size,
    EPS: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    mask = (rows < num_rows + 0 * columns) & (columns < size + 0 * rows)
    wide = tl.load(x + rows * row_stride + columns, mask=mask, other=0.0).to(ACC)
    r = tl.rsqrt(tl.sum(wide * wide, 1) / size + EPS)
    normed = (wide * r[:, None]).to(x.dtype.element_ty).to(ACC)
    w = tl.load(weight + columns, mask=columns < size, other=0.0).to(ACC)
    tl.store(y + rows * size + columns, normed * w, mask=mask)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tl.store(inverse_rms + row, r, mask=row < num_rows)


@triton.jit
def _backward_kernel(
    x, weight, dy, inverse_rms, dx, partial_dweight, num_rows, x_row_stride, dy_row_stride, size, num_tiles,
    ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BLOCK)[None, :]
    w = tl.load(weight + columns, mask=columns < size, other=0.0).to(ACC)
    dweight = tl.zeros((ROWS, BLOCK), ACC)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        rows = row.to(tl.int64)[:, None]
        mask = (rows < num_rows + 0 * columns) & (columns < size + 0 * rows)
        r = tl.load(inverse_rms + row, mask=row < num_rows, other=0.0)[:, None]
        normed = tl.load(x + rows * x_row_stride + columns, mask=mask, other=0.0).to(ACC) * r
        d = tl.load(dy + rows * dy_row_stride + columns, mask=mask, other=0.0).to(ACC)
        g = d * w
        mean = tl.sum(g * normed, 1)[:, None] / size
        tl.store(dx + rows * size + columns, r * (g - normed * mean), mask=mask)
        dweight += d * normed
    column = tl.arange(0, BLOCK)
    tl.store(partial_dweight + tl.program_id(0) * size + column, tl.sum(dweight, 0), mask=column < size)


def _tiling(size):
    """Rows a program takes at once, columns up to a power of two, warps. Above H = 8192 backward spills registers."""
    block = triton.next_power_of_2(size)
    rows = max(1, 2048 // block)
    return {"ROWS": rows, "BLOCK": block, "num_warps": min(max(rows * block // 512, 1), 16)}


def _rows(x):
    """[..., H] -> [R, H] whose last dimension is contiguous; a copy only where it must be."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


def _forward_triton(x, weight, eps):
    flat, dtype = _rows(x), torch.promote_types(x.dtype, torch.float32)
    y = torch.empty(flat.shape, dtype=x.dtype, device=x.device)
    r = torch.empty(len(flat), dtype=dtype, device=x.device)
    tiling = _tiling(x.shape[-1])
    _forward_kernel[(triton.cdiv(len(flat), tiling["ROWS"]),)](
        flat, weight, y, r, len(flat), flat.stride(0), x.shape[-1], EPS=eps, ACC=_acc(dtype), **tiling
    )
    return y.view(x.shape), r


def _backward_triton(x, weight, r, dy):
    flat, dy = _rows(x), _rows(dy)
    tiling = _tiling(x.shape[-1])
    num_tiles = triton.cdiv(len(flat), tiling["ROWS"])
    # Two programs a multiprocessor keep its memory pipe full; a CPU (the interpreter) takes a few.
    multiprocessors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2
    num_programs = min(2 * multiprocessors, num_tiles)
    dx = torch.empty(flat.shape, dtype=x.dtype, device=x.device)
    partial = torch.empty(num_programs, x.shape[-1], dtype=r.dtype, device=x.device)
    _backward_kernel[(num_programs,)](
        flat, weight, dy, r, dx, partial, len(flat), flat.stride(0), dy.stride(0), x.shape[-1], num_tiles,
        ACC=_acc(r.dtype), **tiling,
    )  # fmt: skip
    return dx.view(x.shape), partial.sum(0).to(weight.dtype)


def _acc(dtype):
    return tl.float64 if dtype == torch.float64 else tl.float32


def _forward_torch(x, weight, eps):
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    r = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (weight * (wide * r).to(x.dtype)).to(x.dtype), r


def _backward_torch(x, weight, r, dy):
    normed = x.to(r.dtype) * r
    dy = dy.to(r.dtype)
    g = dy * weight.to(r.dtype)
    dx = (r * (g - normed * (g * normed).mean(-1, keepdim=True))).to(x.dtype)
    return dx, (dy * normed).flatten(0, -2).sum(0).to(weight.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps, implementation):
        ctx.triton = uses_triton(implementation, x) and x.numel() > 0
        y, r = (_forward_triton if ctx.triton else _forward_torch)(x, weight, eps)
        ctx.save_for_backward(x, weight, r)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        dx, dweight = (_backward_triton if ctx.triton else _backward_torch)(*ctx.saved_tensors, dy)
        return dx, dweight, None, None


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, *, implementation: str = "auto"
) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, differentiable in x and weight.

    x: [..., H] float, at least one leading dimension. weight: [H] float. eps: added to the mean square.
    implementation: "auto", "torch" or "triton"; see implementation.py.
    Returns x's shape and dtype; statistics in fp32 (float64 for float64). Saved for backward: x, weight and
    one number a row. Raises ValueError when the sizes do not fit. Formula: Zhang and Sennrich 2019
    (arXiv:1910.07467), rounded where transformers rounds.
    """
    if x.ndim < 2 or weight.shape != x.shape[-1:]:
        raise ValueError(f"x [..., H] and weight [H] wanted, got {list(x.shape)} and {list(weight.shape)}")
    return _RMSNorm.apply(x, weight, eps, implementation)
