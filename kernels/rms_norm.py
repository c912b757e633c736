"""RMSNorm over the last dimension, as in the Qwen3 and Llama of transformers.

    r = (mean(x²) + eps)^(−1/2)      y = weight · (x r)      (x r) in fp32, rounded to x's dtype before weight

    g = weight · dy      dx = r (g − x r · mean(g · x r))      dweight = Σ dy · x r

On CUDA, a Triton program takes whole rows (several, where they are short), and reads and writes each once. In backward,
a fixed number of programs walk over all rows; each keeps a partial dweight, and these are added in order.

Shapes: x [..., H], weight [H]; r is one number a row; R rows in all. Row i of x starts at element
(i // INNER) · outer stride + (i mod INNER) · inner stride, so that the heads of a split QKV projection, [T, N, H] with
more than N · H elements between tokens, are read in place. INNER is 1 where the rows are evenly spaced.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from ralign.kernels.implementation import jit, uses_triton
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm_ref(x, weight, eps):
    """Plain torch, differentiable by autograd."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (weight * normed.to(x.dtype)).to(x.dtype)


@jit
def _row_starts(row, outer_stride, inner_stride, INNER: tl.constexpr):
    """Returns the starts of the rows in elements, [ROWS, 1] int64. Divides in 32 bits, multiplies in 64."""
    outer, inner = (row // INNER).to(tl.int64), (row % INNER).to(tl.int64)
    return (outer * outer_stride + inner * inner_stride)[:, None]


@jit
def _forward_kernel(
    x, weight, y, inverse_rms, num_rows, outer_stride, inner_stride,
    SIZE: tl.constexpr, INNER: tl.constexpr, EPS: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = row.to(tl.int64)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    mask = (rows < num_rows + 0 * columns) & (columns < SIZE + 0 * rows)
    starts = _row_starts(row, outer_stride, inner_stride, INNER)
    wide = tl.load(x + starts + columns, mask=mask, other=0.0).to(ACC)
    r = tl.rsqrt(tl.sum(wide * wide, 1) / SIZE + EPS)
    normed = (wide * r[:, None]).to(x.dtype.element_ty).to(ACC)
    w = tl.load(weight + columns, mask=columns < SIZE, other=0.0).to(ACC)
    tl.store(y + rows * SIZE + columns, normed * w, mask=mask)
    tl.store(inverse_rms + row, r, mask=row < num_rows)


@jit
def _backward_kernel(
    x, weight, dy, inverse_rms, dx, partial_dweight, num_rows, num_tiles,
    x_outer_stride, x_inner_stride, dy_outer_stride, dy_inner_stride,
    SIZE: tl.constexpr, X_INNER: tl.constexpr, DY_INNER: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BLOCK)[None, :]
    w = tl.load(weight + columns, mask=columns < SIZE, other=0.0).to(ACC)
    dweight = tl.zeros((ROWS, BLOCK), ACC)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        rows = row.to(tl.int64)[:, None]
        mask = (rows < num_rows + 0 * columns) & (columns < SIZE + 0 * rows)
        r = tl.load(inverse_rms + row, mask=row < num_rows, other=0.0)[:, None]
        x_starts = _row_starts(row, x_outer_stride, x_inner_stride, X_INNER)
        normed = tl.load(x + x_starts + columns, mask=mask, other=0.0).to(ACC) * r
        dy_starts = _row_starts(row, dy_outer_stride, dy_inner_stride, DY_INNER)
        d = tl.load(dy + dy_starts + columns, mask=mask, other=0.0).to(ACC)
        g = d * w
        mean = tl.sum(g * normed, 1)[:, None] / SIZE  # pyright: ignore[reportArgumentType]
        tl.store(dx + rows * SIZE + columns, r * (g - normed * mean), mask=mask)
        dweight += d * normed
    column = tl.arange(0, BLOCK)
    tl.store(partial_dweight + tl.program_id(0) * SIZE + column, tl.sum(dweight, 0), mask=column < SIZE)


def _tiling(size: int) -> dict[str, int]:
    """Returns the rows of a program, its columns up to a power of two, and its warps.

    Above H = 8192, backward spills registers. With several short rows a program, a thread takes 8 columns and not 16,
    since the addresses of each row take registers.
    """
    block = triton.next_power_of_2(size)
    rows = max(1, 2048 // block)
    columns_a_warp = 32 * (16 if rows == 1 else 8)
    return {"ROWS": rows, "BLOCK": block, "num_warps": min(max(rows * block // columns_a_warp, 1), 16)}


class _Rows(NamedTuple):
    """A tensor [..., H] and the strides of its rows; see the legend of the module."""

    tensor: Tensor
    inner: int
    outer_stride: int
    inner_stride: int


def _rows(x: Tensor) -> _Rows:
    """Returns x itself where two strides reach its rows, else a copy."""
    runs = []  # (size, stride) of the leading dimensions; dimensions that one stride steps through are merged
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if runs and runs[-1][1] == size * stride:
            runs[-1] = runs[-1][0] * size, stride
        elif size > 1:
            runs.append((size, stride))
    if len(runs) > 2 or (x.stride(-1) != 1 and x.shape[-1] > 1):
        return _rows(x.contiguous())
    if len(runs) == 2:
        (_, outer_stride), (inner, inner_stride) = runs
        return _Rows(x, inner, outer_stride, inner_stride)
    return _Rows(x, 1, runs[0][1] if runs else x.shape[-1], 1)


def _forward_triton(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows, dtype = _rows(x), torch.promote_types(x.dtype, torch.float32)
    size, num_rows = x.shape[-1], x.numel() // x.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    r = torch.empty(num_rows, dtype=dtype, device=x.device)
    tiling = _tiling(size)
    _forward_kernel[(triton.cdiv(num_rows, tiling["ROWS"]),)](
        rows.tensor, weight, y, r, num_rows, rows.outer_stride, rows.inner_stride,
        SIZE=size, INNER=rows.inner, EPS=eps, ACC=_acc(dtype), **tiling,
    )  # fmt: skip
    return y, r


def _backward_triton(x: Tensor, weight: Tensor, r: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    x_rows, dy_rows = _rows(x), _rows(dy)
    size, num_rows = x.shape[-1], x.numel() // x.shape[-1]
    tiling = _tiling(size)
    num_tiles = triton.cdiv(num_rows, tiling["ROWS"])
    # Two programs a multiprocessor saturate its memory bandwidth; on a CPU (the interpreter) a few suffice.
    multiprocessors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2
    num_programs = min(2 * multiprocessors, num_tiles)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    partial = torch.empty(num_programs, size, dtype=r.dtype, device=x.device)
    _backward_kernel[(num_programs,)](
        x_rows.tensor, weight, dy_rows.tensor, r, dx, partial, num_rows, num_tiles,
        x_rows.outer_stride, x_rows.inner_stride, dy_rows.outer_stride, dy_rows.inner_stride,
        SIZE=size, X_INNER=x_rows.inner, DY_INNER=dy_rows.inner, ACC=_acc(r.dtype), **tiling,
    )  # fmt: skip
    return dx, partial.sum(0).to(weight.dtype)


def _acc(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def _forward_torch(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    r = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (weight * (wide * r).to(x.dtype)).to(x.dtype), r


def _backward_torch(x: Tensor, weight: Tensor, r: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
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
        x, weight, r = ctx.saved_tensors
        dx, dweight = (_backward_triton if ctx.triton else _backward_torch)(x, weight, r, dy)
        return dx, dweight, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, implementation: str = "auto") -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, differentiable in x and weight.

    x: [..., H] float, with at least one leading dimension; on CUDA it is read in place where two strides reach its
    rows, as with the heads of a split projection. weight: [H] float. eps: added to the mean square.
    implementation: "auto", "torch" or "triton"; see implementation.py.
    Returns a tensor of the shape and dtype of x; statistics are fp32 (float64 for float64). Saved for backward: x,
    weight and one number a row. Raises ValueError when the sizes do not fit. Formula: Zhang and Sennrich 2019
    (arXiv:1910.07467), rounded where transformers rounds.
    """
    if x.ndim < 2 or weight.shape != x.shape[-1:]:
        raise ValueError(f"x must be [..., H] and weight [H], got {list(x.shape)} and {list(weight.shape)}")
    return _RMSNorm.apply(x, weight, eps, implementation)
