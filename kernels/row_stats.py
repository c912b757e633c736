"""Row statistics of logits and the gradient of the logits, the steps of logprob.py; the formulas are at its head.

    row_stats     logits of this shard -> m, s, t, z_y of each row
    merge_stats   the statistics of all shards -> m, log s, logprob, entropy
    d_logits      the merged statistics and the gradients of logprob and entropy -> the gradient of the logits

On CUDA, one Triton program reads a row once, in blocks, and rescales s and t whenever the running maximum grows. In
backward, one program a row writes each gradient once, over the logits if requested. The torch path does the same in
chunks of rows.

Shapes: R rows (tokens), V columns of this rank's shard, P ranks.
"""

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from ralign.kernels.implementation import jit, uses_triton
from torch import Tensor

IGNORE = -100  # the target of a row without a loss: logprob, entropy and gradient are 0
_LOWEST = -1e30  # replaces −inf in products with 0
_CHUNK_ROWS = 1024  # rows that the torch path holds in fp32 at once
_BLOCK = 4096  # columns a Triton program reads at a time: 8 warps, no register spills
_MERGE_ROWS = 256
# torch 2.13 renamed it; 2.11 and 2.12 have only the old name.
_gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor


def num_valid_columns(num_columns: int, valid_vocab: int, vocab_start: int) -> int:
    """Returns the number of columns of a shard that are real tokens; the vocabulary is padded at its end."""
    return min(max(valid_vocab - vocab_start, 0), num_columns)


def all_gather(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """[n, ...] of each of P ranks -> [P·n, ...] in rank order."""
    out = x.new_empty(x.shape[0] * dist.get_world_size(group), *x.shape[1:])
    _gather(out, x.contiguous(), group=group)
    return out


def kept_rows(targets: Tensor) -> Tensor:
    """targets [N] -> [R] int64, ascending: the only rows that are computed (prompts and padding cost nothing)."""
    return (targets != IGNORE).nonzero()[:, 0]


@jit
def _row_stats_kernel(
    logits, targets, stats, row_stride, column_stride, num_columns, vocab_start,
    INV_TEMPERATURE: tl.constexpr, IGNORE: tl.constexpr, LOWEST: tl.constexpr, ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One row a program: writes m, s, t, z_y of the columns of this shard to stats[0..3, row]; skips ignored rows."""
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
        # A logit of −inf adds 0: 0 · LOWEST is 0, but 0 · −inf is NaN. A NaN is kept.
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


@jit
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
        # The sums of a shard without a finite logit are 0.
        shift = tl.where(row_max == float("-inf"), LOWEST, row_max - total_max)
        scale = tl.exp(shift)
        total_sum += scale * row_sum
        shifted_sum += scale * (tl.load(stats + 2 * num_rows, mask=inside, other=0.0) + shift * row_sum)
        target_z += tl.load(stats + 3 * num_rows, mask=inside, other=0.0)
    log_sum = tl.log(total_sum)
    kept = target != IGNORE
    # No shard owns a target outside the vocabulary: the logprob is NaN, not a wrong number.
    known = (target >= 0) & (target < valid_vocab)
    logprob = tl.where(known, (target_z - total_max) - log_sum, float("nan"))
    out += rows
    tl.store(out, total_max, mask=inside)
    tl.store(out + num_rows, log_sum, mask=inside)
    tl.store(out + 2 * num_rows, tl.where(kept, logprob, 0.0), mask=inside)
    tl.store(out + 3 * num_rows, tl.where(kept, log_sum - shifted_sum / total_sum, 0.0), mask=inside)


@jit
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


def _acc(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _row_stats_triton(
    logits: Tensor, targets: Tensor, num_columns: int, vocab_start: int, temperature: float
) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    stats = torch.empty(4, logits.shape[0], dtype=dtype, device=logits.device)
    _row_stats_kernel[(logits.shape[0],)](
        logits, targets, stats, *logits.stride(), num_columns, vocab_start,
        INV_TEMPERATURE=1 / temperature, IGNORE=IGNORE, LOWEST=_LOWEST, ACC=_acc(logits), BLOCK=_BLOCK, num_warps=8,
    )  # fmt: skip
    return stats


def _merge_triton(gathered: Tensor, targets: Tensor, valid_vocab: int) -> Tensor:
    num_shards, _, num_rows = gathered.shape
    out = gathered.new_empty(4, num_rows)
    _merge_kernel[(triton.cdiv(num_rows, _MERGE_ROWS),)](
        gathered, targets, out, num_rows, num_shards, valid_vocab,
        IGNORE=IGNORE, LOWEST=_LOWEST, ACC=_acc(gathered), BLOCK=_MERGE_ROWS, num_warps=4,
    )  # fmt: skip
    return out


def _d_logits_triton(
    logits: Tensor, targets: Tensor, merged: Tensor, d_logprobs: Tensor | None, d_entropy: Tensor | None,
    num_columns: int, vocab_start: int, temperature: float, out: Tensor,
) -> Tensor:  # fmt: skip
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


def _row_stats_torch(
    logits: Tensor, targets: Tensor, num_columns: int, vocab_start: int, temperature: float
) -> Tensor:
    """The kernel in plain torch, a chunk of rows at a time; ignored rows are not read."""
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


def _merge_torch(gathered: Tensor, targets: Tensor, valid_vocab: int) -> Tensor:
    row_max, row_sum, shifted_sum, target_z = gathered.unbind(1)  # each [P, R]
    total_max = row_max.amax(dim=0)
    shift = (row_max - total_max).clamp(min=_LOWEST)  # the sums of a shard without a finite logit are 0
    shift = torch.where(row_max == -torch.inf, _LOWEST, shift)
    scale = shift.exp()
    total_sum = (scale * row_sum).sum(dim=0)
    log_sum = total_sum.log()
    entropy = log_sum - (scale * (shifted_sum + shift * row_sum)).sum(dim=0) / total_sum
    # No shard owns a target outside the vocabulary: the logprob is NaN, not a wrong number.
    known = (targets >= 0) & (targets < valid_vocab)
    logprobs = torch.where(known, (target_z.sum(dim=0) - total_max) - log_sum, torch.nan)
    kept = targets != IGNORE
    return torch.stack([total_max, log_sum, torch.where(kept, logprobs, 0), torch.where(kept, entropy, 0)])


def _d_logits_torch(
    logits: Tensor, targets: Tensor, merged: Tensor, d_logprobs: Tensor | None, d_entropy: Tensor | None,
    num_columns: int, vocab_start: int, temperature: float, out: Tensor,
) -> Tensor:  # fmt: skip
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


def _scaled(logits: Tensor, rows: Tensor, num_columns: int, temperature: float) -> Tensor:
    """Returns the scaled logits [R, num_columns] in at least fp32, as a copy that may be overwritten."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if rows.numel() == logits.shape[0]:  # all of them
        return logits[:, :num_columns].to(dtype, copy=True).div_(temperature)
    return logits[rows, :num_columns].to(dtype).div_(temperature)


def row_stats(
    logits: Tensor,
    targets: Tensor,
    num_columns: int,
    vocab_start: int,
    temperature: float,
    implementation: str,
) -> Tensor:
    """logits [R, V], targets [R] -> [4, R]: m, s, t, z_y over the first `num_columns` columns of this shard.

    z_y is 0 where another shard owns the target. Ignored rows hold −inf, 0, 0 and any finite z_y."""
    if num_columns == 0 or logits.shape[0] == 0:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        stats = torch.zeros(4, logits.shape[0], dtype=dtype, device=logits.device)
        stats[0] = -torch.inf
        return stats
    run = _row_stats_triton if uses_triton(implementation, logits) else _row_stats_torch
    return run(logits, targets, num_columns, vocab_start, temperature)


def merge_stats(
    stats: Tensor, targets: Tensor, valid_vocab: int, group: dist.ProcessGroup | None, implementation: str
) -> Tensor:
    """stats [4, R] of this rank -> [4, R]: m, log s, logprob, entropy over all shards, the same bits on every rank."""
    if stats.shape[1] == 0:
        return stats
    gathered = stats[None] if group is None else all_gather(stats[None], group)
    run = _merge_triton if uses_triton(implementation, stats) else _merge_torch
    return run(gathered, targets, valid_vocab)


def d_logits(
    logits: Tensor, targets: Tensor, merged: Tensor, d_logprobs: Tensor | None, d_entropy: Tensor | None,
    num_columns: int, vocab_start: int, temperature: float, out: Tensor, implementation: str,
) -> Tensor:  # fmt: skip
    """Gradient of Σ d_logprobs·logprob + d_entropy·entropy with respect to the logits, written to out [R, V].

    d_logprobs and d_entropy are [R] or None; `out` may be `logits` itself. The target's column gets −p·g + g in
    full precision, once; ignored rows and columns from `num_columns` on get 0."""
    if num_columns == 0 or logits.shape[0] == 0:
        return out.zero_()
    run = _d_logits_triton if uses_triton(implementation, logits) else _d_logits_torch
    return run(logits, targets, merged, d_logprobs, d_entropy, num_columns, vocab_start, temperature, out)
