"""Log-probability of the target token and entropy of the distribution, from logits.

With z = logits / temperature over the valid columns, m = max z, s = Σ exp(z − m), t = Σ exp(z − m)(z − m):

    logprob = (z_y − m) − log s          entropy = log s − t / s
    ∂logprob/∂z_v = [v = y] − p_v        ∂entropy/∂z_v = −p_v (log p_v + entropy)

Everything is shifted by m before it is summed: Σ p z without the shift loses five digits at an offset of 200.
Vocab-parallel: every rank reduces its own columns to (m, s, t, z_y), one all-gather of those 4 numbers a row,
and each rank merges them in rank order, so that all ranks hold the same bits.

Shapes: N rows (tokens), R rows kept (target not IGNORE), V valid columns of this rank's shard, P ranks.
"""

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

IGNORE = -100  # a target that asks for nothing: logprob 0, entropy 0, gradient 0
_LOWEST = -1e30  # stands for −inf where it meets a factor of 0
_CHUNK_ROWS = 1024  # rows held in fp32 at once
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


def row_stats_(z: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """z [R, V] and the target's column in this shard [R] (any value outside [0, V) if another shard's)
    -> [4, R]: m, s, t, z_y (0 where the target is another shard's). Overwrites z."""
    num_rows, num_columns = z.shape
    if num_columns == 0:
        nothing = z.new_zeros(num_rows)
        return torch.stack([nothing - torch.inf, nothing, nothing, nothing])
    owned = (columns >= 0) & (columns < num_columns)
    target_z = z.gather(1, columns.clamp(0, num_columns - 1)[:, None])[:, 0]
    row_max = z.amax(dim=1)
    z.sub_(torch.where(row_max == -torch.inf, 0, row_max)[:, None]).clamp_(min=_LOWEST)
    exp = z.exp()
    row_sum = exp.sum(dim=1)
    return torch.stack([row_max, row_sum, exp.mul_(z).sum(dim=1), torch.where(owned, target_z, 0)])


def merge_stats(stats: torch.Tensor, group) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """This rank's [4, R] -> m, log s, logprob, entropy over all shards, each [R], the same on every rank."""
    gathered = stats[None] if group is None else all_gather(stats[None], group)
    row_max, row_sum, shifted_sum, target_z = gathered.unbind(1)  # each [P, R]
    total_max = row_max.amax(dim=0)
    shift = (row_max - total_max).clamp(min=_LOWEST)  # a shard without a finite logit has sums of 0
    scale = shift.exp()
    total_sum = (scale * row_sum).sum(dim=0)
    log_sum = total_sum.log()
    entropy = log_sum - (scale * (shifted_sum + shift * row_sum)).sum(dim=0) / total_sum
    return total_max, log_sum, (target_z.sum(dim=0) - total_max) - log_sum, entropy


def d_logits_(z, columns, row_max, log_sum, entropy, d_logprobs, d_entropy) -> torch.Tensor:
    """z [R, V] -> gradient of Σ d_logprobs·logprob + d_entropy·entropy with respect to z, in place of z.

    d_logprobs and d_entropy are [R] or None. The target's column gets −p·g + g in full precision, once."""
    num_columns = z.shape[1]
    if num_columns == 0:
        return z
    z.sub_(row_max[:, None]).sub_(log_sum[:, None]).clamp_(min=_LOWEST)  # log p
    if d_logprobs is None:
        d_logprobs = torch.zeros_like(log_sum)
    if d_entropy is None:
        z.exp_().mul_(-d_logprobs[:, None])
    else:
        p = z.exp()
        z.add_(entropy[:, None]).mul_(d_entropy[:, None]).add_(d_logprobs[:, None]).mul_(p).neg_()
    owned = (columns >= 0) & (columns < num_columns)
    index = columns.clamp(0, num_columns - 1)[:, None]
    return z.scatter_(1, index, z.gather(1, index) + torch.where(owned, d_logprobs, 0)[:, None])


def kept_rows(targets: torch.Tensor) -> torch.Tensor:
    """[N] -> [R] int64, ascending: only these rows are computed (prompts and padding cost nothing)."""
    return (targets != IGNORE).nonzero()[:, 0]


def spread(values: torch.Tensor, rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """[R] -> [num_rows] with zeros elsewhere."""
    return values.new_zeros(num_rows).index_copy_(0, rows, values)


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


def mark_bad_targets(logprobs, targets, valid_vocab) -> torch.Tensor:
    """NaN where a target is outside the vocabulary: no shard owns it, any number would be silently wrong."""
    return torch.where((targets >= 0) & (targets < valid_vocab), logprobs, torch.nan)


class _Logprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, temperature, valid_vocab, vocab_start, group):
        rows = kept_rows(targets)
        columns = targets[rows] - vocab_start
        num_columns = num_valid_columns(logits.shape[1], valid_vocab, vocab_start)
        parts = []
        for part, column in zip(rows.split(_CHUNK_ROWS), columns.split(_CHUNK_ROWS), strict=True):
            parts.append(row_stats_(_scaled(logits, part, num_columns, temperature), column))
        row_max, log_sum, logprobs, entropy = merge_stats(torch.cat(parts, dim=1), group)
        logprobs = mark_bad_targets(logprobs, targets[rows], valid_vocab)
        ctx.save_for_backward(logits, rows, columns, row_max, log_sum, entropy)
        ctx.temperature, ctx.num_columns = temperature, num_columns
        ctx.set_materialize_grads(False)
        return spread(logprobs, rows, targets.numel()), spread(entropy, rows, targets.numel())

    @staticmethod
    @once_differentiable
    def backward(ctx, d_logprobs, d_entropy):
        logits, rows, *per_row = ctx.saved_tensors
        grads = [None if grad is None else grad[rows] / ctx.temperature for grad in (d_logprobs, d_entropy)]
        d_logits = torch.zeros_like(logits)
        for i in range(0, rows.numel(), _CHUNK_ROWS):
            part = slice(i, i + _CHUNK_ROWS)
            z = _scaled(logits, rows[part], ctx.num_columns, ctx.temperature)
            args = [x[part] for x in per_row] + [None if grad is None else grad[part] for grad in grads]
            d_logits[rows[part], : ctx.num_columns] = d_logits_(z, *args).to(logits.dtype)
        return d_logits, None, None, None, None, None


def _scaled(logits, rows, num_columns, temperature):
    """[R, num_columns] in at least fp32, a copy that may be overwritten."""
    picked = logits[rows, :num_columns]
    return picked.to(torch.promote_types(logits.dtype, torch.float32)).div_(temperature)


def logprob(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float = 1.0,
    valid_vocab: int,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logprob of each target and entropy of each row's distribution, differentiable in the logits.

    logits: [N, V_local] float, this rank's columns, the same rows on every rank of `group`.
    targets: [N] int64 in [0, valid_vocab), or IGNORE (-100): logprob, entropy and gradient are then 0. Any
        other value gives a logprob of NaN.
    temperature: divides the logits (never the logprobs); its 1/T is in the gradient.
    valid_vocab: size of the real vocabulary; columns from there on are padding, as if their logits were −inf.
    vocab_start: the vocabulary index of this rank's first column.
    group: process group whose ranks hold the other columns; None: this rank holds all of them.

    Returns logprobs [N] and entropy [N] in nats, fp32 (float64 for float64 logits), the same on every rank;
    each rank's upstream gradient must be the whole gradient, not its share. Saved for backward: the logits
    and three numbers a kept row. Raises ValueError for arguments that do not fit. Formula: the head of this
    file.
    """
    check(targets, *logits.shape, temperature, valid_vocab, vocab_start, group)
    return _Logprob.apply(logits, targets, temperature, valid_vocab, vocab_start, group)
