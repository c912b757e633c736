"""Log-probability of the target token and entropy of the distribution, from logits.

With z = logits / temperature over the valid columns, m = max z, s = Σ exp(z − m), t = Σ exp(z − m)(z − m):

    logprob = (z_y − m) − log s          entropy = log s − t / s
    ∂logprob/∂z_v = [v = y] − p_v        ∂entropy/∂z_v = −p_v (log p_v + entropy)

Everything is shifted by m before it is summed: Σ p z without the shift loses five digits at an offset of 200.
Vocab-parallel: every rank reduces its own columns to (m, s, t, z_y), one all-gather of those 4 numbers a row,
and each rank merges them in rank order, so that all ranks hold the same bits.

On CUDA one Triton program reads a row once, in blocks, and corrects s and t whenever the running maximum
grows; in backward one program a row writes each gradient once, over the logits if asked. The torch path does
the same in chunks of rows.

Shapes: N rows (tokens), R rows kept (target not IGNORE), V valid columns of this rank's shard, P ranks.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from ralign.kernels.implementation import uses_triton
from torch.autograd.function import once_differentiable

IGNORE = -100  # a target that asks for nothing: logprob 0, entropy 0, gradient 0
_LOWEST = -1e30  # stands for −inf where it meets a factor of 0
_CHUNK_ROWS = 1024  # rows that the torch path holds in fp32 at once
_BLOCK = 4096  # columns a Triton program reads at a time: 8 warps, no register spills
_MERGE_ROWS = 256
# torch 2.13 renamed it; 2.11 and 2.12 know the old name alone.
_gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor


def logprob_ref(logits, targets, *, temperature=1.0, valid_vocab=None):
    """Plain torch, differentiable by autograd, one shard only: logits [N, V], targets [N] -> ([N], [N])."""
    z = logits[:, :valid_vocab].to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    log_p = torch.log_softmax(z, dim=1)
    kept = targets != IGNORE
    picked = log_p.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0)).sum(1)
    return torch.where(kept, picked, 0), torch.where(kept, entropy, 0)


def num_valid_columns(num_columns: int, valid_vocab: int, vocab_start: int) -> int:
    """Columns of a shard that stand for real tokens: the padding of the vocabulary lies at its end."""
    return min(max(valid_vocab - vocab_start, 0), num_columns)


def all_gather(x: torch.Tensor, group) -> torch.Tensor:
    """[n, ...] of each of P ranks -> [P·n, ...] in rank order."""
    out = x.new_empty(x.shape[0] * dist.get_world_size(group), *x.shape[1:])
    _gather(out, x.contiguous(), group=group)
    return out


def kept_rows(targets: torch.Tensor) -> torch.Tensor:
    """[N] -> [R] int64, ascending: only these rows are computed (prompts and padding cost nothing)."""
    return (targets != IGNORE).nonzero()[:, 0]


def check(targets, num_rows, num_columns, temperature, valid_vocab, vocab_start, group) -> None:
    """What both public functions ask of their arguments."""
    if targets.dtype != torch.int64 or targets.shape != (num_rows,):
        raise ValueError(f"targets must be int64 [{num_rows}], got {targets.dtype} {list(targets.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if valid_vocab < 1 or vocab_start < 0:
        raise ValueError(f"valid_vocab >= 1 and vocab_start >= 0 wanted, got {valid_vocab} and {vocab_start}")
    if group is None and num_valid_columns(num_columns, valid_vocab, vocab_start) < valid_vocab:
        raise ValueError(f"{num_columns} columns from {vocab_start} do not hold valid_vocab={valid_vocab}")


@triton.jit
def _row_stats_kernel(
    logits, targets, stats, row_stride, column_stride, num_columns, vocab_start,
    INV_TEMPERATURE: tl.constexpr, IGNORE: tl.constexpr, LOWEST: tl.constexpr, ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One row a program: m, s, t, z_y of this shard's columns to stats[0..3, row]; an ignored row costs a load."""
    row = tl.program_id(0).to(tl.int64)
    num_rows = tl.num_programs(0)
    target = tl.load(targets + row)
    row_max = tl.full((), float("-inf"), ACC)
    row_sum = tl.zeros((), ACC)
    shifted_sum = tl.zeros((), ACC)
    logits += row * row_stride
    end = tl.where(target == IGNORE, 0, num_columns)
    for start in range(0, end, BLOCK):
        # 64-bit columns: logits may be a transposed view, whose column stride is large.
        columns = start + tl.arange(0, BLOCK).to(tl.int64)
        z = tl.load(logits + columns * column_stride, mask=columns < num_columns, other=float("-inf")).to(ACC)
        z *= INV_TEMPERATURE
        new_max = tl.maximum(row_max, tl.max(z, 0))
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        # A logit of −inf counts nothing: 0 · LOWEST is 0 where 0 · −inf is NaN. A NaN stays one.
        z = tl.where(z == float("-inf"), LOWEST, z - shift)
        exp = tl.exp(z)
        grown = tl.where(row_max == float("-inf"), LOWEST, row_max - shift)
        scale = tl.exp(grown)
        shifted_sum = scale * (shifted_sum + grown * row_sum) + tl.sum(exp * z, 0)
        row_sum = scale * row_sum + tl.sum(exp, 0)
        row_max = new_max
    column = target - vocab_start
    owned = (column >= 0) & (column < num_columns)
    target_z = tl.load(logits + tl.where(owned, column, 0) * column_stride).to(ACC) * INV_TEMPERATURE
    tl.store(stats + row, row_max)
    tl.store(stats + num_rows + row, row_sum)
    tl.store(stats + 2 * num_rows + row, shifted_sum)
    tl.store(stats + 3 * num_rows + row, tl.where(owned, target_z, 0.0))


@triton.jit
def _merge_kernel(
    gathered, targets, out, num_rows, num_shards, valid_vocab,
    IGNORE: tl.constexpr, LOWEST: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """gathered [P, 4, R] in rank order -> out [4, R]: m, log s, logprob, entropy."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < num_rows
    target = tl.load(targets + rows, mask=inside, other=IGNORE)
    total_max = tl.full((BLOCK,), float("-inf"), ACC)
    for shard in range(0, num_shards):
        total_max = tl.maximum(
            total_max, tl.load(gathered + shard * 4 * num_rows + rows, mask=inside, other=0.0)
        )
    total_sum = tl.zeros((BLOCK,), ACC)
    shifted_sum = tl.zeros((BLOCK,), ACC)
    target_z = tl.zeros((BLOCK,), ACC)
    for shard in range(0, num_shards):
        stats = gathered + shard * 4 * num_rows + rows
        row_max = tl.load(stats, mask=inside, other=0.0)
        row_sum = tl.load(stats + num_rows, mask=inside, other=1.0)
        # A shard without a finite logit has sums of 0.
        shift = tl.where(row_max == float("-inf"), LOWEST, row_max - total_max)
        scale = tl.exp(shift)
        total_sum += scale * row_sum
        shifted_sum += scale * (tl.load(stats + 2 * num_rows, mask=inside, other=0.0) + shift * row_sum)
        target_z += tl.load(stats + 3 * num_rows, mask=inside, other=0.0)
    log_sum = tl.log(total_sum)
    kept = target != IGNORE
    # No shard owns a target outside the vocabulary: any number would be silently wrong.
    known = (target >= 0) & (target < valid_vocab)
    logprob = tl.where(known, (target_z - total_max) - log_sum, float("nan"))
    out += rows
    tl.store(out, total_max, mask=inside)
    tl.store(out + num_rows, log_sum, mask=inside)
    tl.store(out + 2 * num_rows, tl.where(kept, logprob, 0.0), mask=inside)
    tl.store(out + 3 * num_rows, tl.where(kept, log_sum - shifted_sum / total_sum, 0.0), mask=inside)


@triton.jit
def _d_logits_kernel(
    logits, targets, merged, d_logprobs, d_entropy, out,
    row_stride, column_stride, out_row_stride, out_column_stride, num_columns, out_columns, vocab_start,
    INV_TEMPERATURE: tl.constexpr, HAS_LOGPROBS: tl.constexpr, HAS_ENTROPY: tl.constexpr, IGNORE: tl.constexpr,
    LOWEST: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row a program: the gradient of the logits, each element formed in ACC and stored once."""
    row = tl.program_id(0).to(tl.int64)
    num_rows = tl.num_programs(0)
    target = tl.load(targets + row)
    kept = target != IGNORE
    logits += row * row_stride
    out += row * out_row_stride
    row_max = tl.load(merged + row)
    log_sum = tl.load(merged + num_rows + row)
    entropy = tl.load(merged + 3 * num_rows + row)
    d_logprob = tl.zeros((), ACC)
    d_h = tl.zeros((), ACC)
    if HAS_LOGPROBS:
        d_logprob = tl.load(d_logprobs + row).to(ACC) * INV_TEMPERATURE
    if HAS_ENTROPY:
        d_h = tl.load(d_entropy + row).to(ACC) * INV_TEMPERATURE
    end = tl.where(kept, num_columns, 0)
    for start in range(0, out_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK).to(tl.int64)
        z = tl.load(logits + columns * column_stride, mask=columns < end, other=float("-inf")).to(ACC)
        z *= INV_TEMPERATURE
        log_p = tl.where(z == float("-inf"), LOWEST, (z - row_max) - log_sum)
        p = tl.exp(log_p)
        grad = -p * d_logprob
        if HAS_ENTROPY:
            grad -= p * (d_h * (log_p + entropy))
        grad = tl.where(columns == target - vocab_start, grad + d_logprob, grad)
        grad = tl.where(columns < end, grad, 0.0)
        tl.store(out + columns * out_column_stride, grad, mask=columns < out_columns)


def _acc(x):
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _row_stats_triton(logits, targets, num_columns, vocab_start, temperature):
    dtype = torch.promote_types(logits.dtype, torch.float32)
    stats = torch.empty(4, logits.shape[0], dtype=dtype, device=logits.device)
    _row_stats_kernel[(logits.shape[0],)](
        logits, targets, stats, *logits.stride(), num_columns, vocab_start,
        INV_TEMPERATURE=1 / temperature, IGNORE=IGNORE, LOWEST=_LOWEST, ACC=_acc(logits), BLOCK=_BLOCK, num_warps=8,
    )  # fmt: skip
    return stats


def _merge_triton(gathered, targets, valid_vocab):
    num_shards, _, num_rows = gathered.shape
    out = gathered.new_empty(4, num_rows)
    _merge_kernel[(triton.cdiv(num_rows, _MERGE_ROWS),)](
        gathered, targets, out, num_rows, num_shards, valid_vocab,
        IGNORE=IGNORE, LOWEST=_LOWEST, ACC=_acc(gathered), BLOCK=_MERGE_ROWS, num_warps=4,
    )  # fmt: skip
    return out


def _d_logits_triton(
    logits, targets, merged, d_logprobs, d_entropy, num_columns, vocab_start, temperature, out
):
    merged = merged.contiguous()
    unused = merged  # a pointer that is never read
    _d_logits_kernel[(logits.shape[0],)](
        logits, targets, merged,
        unused if d_logprobs is None else d_logprobs.contiguous(),
        unused if d_entropy is None else d_entropy.contiguous(),
        out, *logits.stride(), *out.stride(), num_columns, out.shape[1], vocab_start,
        INV_TEMPERATURE=1 / temperature, HAS_LOGPROBS=d_logprobs is not None, HAS_ENTROPY=d_entropy is not None,
        IGNORE=IGNORE, LOWEST=_LOWEST, ACC=_acc(logits), BLOCK=_BLOCK, num_warps=8,
    )  # fmt: skip
    return out


def _row_stats_torch(logits, targets, num_columns, vocab_start, temperature):
    """The kernel's work in plain torch, a chunk of rows at a time; ignored rows are not looked at."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    stats = torch.zeros(4, logits.shape[0], dtype=dtype, device=logits.device)
    stats[0] = -torch.inf
    for rows in kept_rows(targets).split(_CHUNK_ROWS):
        z = _scaled(logits, rows, num_columns, temperature)
        column = targets[rows] - vocab_start
        owned = (column >= 0) & (column < num_columns)
        target_z = z.gather(1, column.clamp(0, num_columns - 1)[:, None])[:, 0]
        row_max = z.amax(dim=1)
        z.sub_(torch.where(row_max == -torch.inf, 0, row_max)[:, None]).clamp_(min=_LOWEST)
        exp = z.exp()
        row_sum = exp.sum(dim=1)
        stats[:, rows] = torch.stack(
            [row_max, row_sum, exp.mul_(z).sum(dim=1), torch.where(owned, target_z, 0)]
        )
    return stats


def _merge_torch(gathered, targets, valid_vocab):
    row_max, row_sum, shifted_sum, target_z = gathered.unbind(1)  # each [P, R]
    total_max = row_max.amax(dim=0)
    shift = (row_max - total_max).clamp(min=_LOWEST)  # a shard without a finite logit has sums of 0
    shift = torch.where(row_max == -torch.inf, _LOWEST, shift)
    scale = shift.exp()
    total_sum = (scale * row_sum).sum(dim=0)
    log_sum = total_sum.log()
    entropy = log_sum - (scale * (shifted_sum + shift * row_sum)).sum(dim=0) / total_sum
    # No shard owns a target outside the vocabulary: any number would be silently wrong.
    known = (targets >= 0) & (targets < valid_vocab)
    logprobs = torch.where(known, (target_z.sum(dim=0) - total_max) - log_sum, torch.nan)
    kept = targets != IGNORE
    return torch.stack([total_max, log_sum, torch.where(kept, logprobs, 0), torch.where(kept, entropy, 0)])


def _d_logits_torch(
    logits, targets, merged, d_logprobs, d_entropy, num_columns, vocab_start, temperature, out
):
    rows_kept = kept_rows(targets)
    if rows_kept.numel() < targets.numel() or num_columns < out.shape[1]:
        untouched = out if rows_kept.numel() == 0 else out[:, num_columns:]
        untouched.zero_()
        out[targets == IGNORE] = 0
    for rows in rows_kept.split(_CHUNK_ROWS):
        row_max, log_sum, _, entropy = merged[:, rows].unbind()
        z = _scaled(logits, rows, num_columns, temperature)
        z.sub_(row_max[:, None]).sub_(log_sum[:, None]).clamp_(min=_LOWEST)  # log p
        d_logprob = torch.zeros_like(log_sum) if d_logprobs is None else d_logprobs[rows] / temperature
        if d_entropy is None:
            z.exp_().mul_(-d_logprob[:, None])
        else:
            p = z.exp()
            z.add_(entropy[:, None]).mul_((d_entropy[rows] / temperature)[:, None])
            z.add_(d_logprob[:, None]).mul_(p).neg_()
        column = targets[rows] - vocab_start
        owned = (column >= 0) & (column < num_columns)
        index = column.clamp(0, num_columns - 1)[:, None]
        z.scatter_(1, index, z.gather(1, index) + torch.where(owned, d_logprob, 0)[:, None])
        out[rows, :num_columns] = z.to(out.dtype)
    return out


def _scaled(logits, rows, num_columns, temperature):
    """[R, num_columns] in at least fp32, a copy that may be overwritten."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if rows.numel() == logits.shape[0]:  # all of them
        return logits[:, :num_columns].to(dtype, copy=True).div_(temperature)
    return logits[rows, :num_columns].to(dtype).div_(temperature)


def row_stats(logits, targets, num_columns, vocab_start, temperature, implementation) -> torch.Tensor:
    """logits [R, V], targets [R] -> [4, R]: m, s, t, z_y over the first `num_columns` columns of this shard.

    z_y is 0 where the target is another shard's. Ignored rows hold −inf, 0, 0 and any finite z_y."""
    if num_columns == 0 or logits.shape[0] == 0:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        stats = torch.zeros(4, logits.shape[0], dtype=dtype, device=logits.device)
        stats[0] = -torch.inf
        return stats
    run = _row_stats_triton if uses_triton(implementation, logits) else _row_stats_torch
    return run(logits, targets, num_columns, vocab_start, temperature)


def merge_stats(stats, targets, valid_vocab, group, implementation) -> torch.Tensor:
    """This rank's [4, R] -> [4, R]: m, log s, logprob, entropy over all shards, the same bits on every rank."""
    if stats.shape[1] == 0:
        return stats
    gathered = stats[None] if group is None else all_gather(stats[None], group)
    run = _merge_triton if uses_triton(implementation, stats) else _merge_torch
    return run(gathered, targets, valid_vocab)


def d_logits(
    logits, targets, merged, d_logprobs, d_entropy, num_columns, vocab_start, temperature, out, implementation
) -> torch.Tensor:
    """Gradient of Σ d_logprobs·logprob + d_entropy·entropy with respect to the logits, written to out [R, V].

    d_logprobs and d_entropy are [R] or None; `out` may be `logits` itself. The target's column gets −p·g + g in
    full precision, once; ignored rows and columns from `num_columns` on get 0."""
    if num_columns == 0 or logits.shape[0] == 0:
        return out.zero_()
    run = _d_logits_triton if uses_triton(implementation, logits) else _d_logits_torch
    return run(logits, targets, merged, d_logprobs, d_entropy, num_columns, vocab_start, temperature, out)


class _Logprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, shard):
        num_columns = num_valid_columns(logits.shape[1], shard.valid_vocab, shard.vocab_start)
        ctx.common = (num_columns, shard.vocab_start, shard.temperature)
        ctx.shard = shard
        stats = row_stats(logits, targets, *ctx.common, shard.implementation)
        merged = merge_stats(stats, targets, shard.valid_vocab, shard.group, shard.implementation)
        ctx.save_for_backward(logits, targets, merged)
        ctx.set_materialize_grads(False)
        return merged[2].clone(), merged[3].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, d_logprobs, d_entropy):
        logits, targets, merged = ctx.saved_tensors
        out = logits.detach() if ctx.shard.overwrite_logits else torch.empty_like(logits)
        d = d_logits(
            logits.detach(),
            targets,
            merged,
            d_logprobs,
            d_entropy,
            *ctx.common,
            out,
            ctx.shard.implementation,
        )
        return d, None, None


class _Shard(NamedTuple):
    """What does not change between forward and backward."""

    temperature: float
    valid_vocab: int
    vocab_start: int
    group: dist.ProcessGroup | None
    overwrite_logits: bool
    implementation: str


def logprob(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float = 1.0,
    valid_vocab: int,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
    overwrite_logits: bool = False,
    implementation: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logprob of each target and entropy of each row's distribution, differentiable in the logits.

    logits: [N, V_local] float, this rank's columns, the same rows on every rank of `group`.
    targets: [N] int64 in [0, valid_vocab), or IGNORE (-100): logprob, entropy and gradient are then 0. Any
        other value gives a logprob of NaN.
    temperature: divides the logits (never the logprobs); its 1/T is in the gradient.
    valid_vocab: size of the real vocabulary; columns from there on are padding, as if their logits were −inf.
    vocab_start: the vocabulary index of this rank's first column.
    group: process group whose ranks hold the other columns; None: this rank holds all of them.
    overwrite_logits: backward writes the gradient over the logits, which nobody else may need by then: half
        the memory. (A second backward through the same graph would be wrong.)
    implementation: "auto", "torch" or "triton"; see implementation.py.

    Returns logprobs [N] and entropy [N] in nats, fp32 (float64 for float64 logits), the same on every rank;
    each rank's upstream gradient must be the whole gradient, not its share. Saved for backward: the logits
    and four numbers a row. Raises ValueError for arguments that do not fit. Formula: the head of this
    file.
    """
    check(targets, *logits.shape, temperature, valid_vocab, vocab_start, group)
    shard = _Shard(temperature, valid_vocab, vocab_start, group, overwrite_logits, implementation)
    return _Logprob.apply(logits, targets, shard)
