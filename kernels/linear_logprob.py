"""Log-probability of the target token and entropy, from hidden states: the LM head without its logits.

    z = hidden · weightᵀ / T      (logprob, entropy) = as in logprob.py      N × V is never held

Forward computes the logits of `chunk_tokens` rows at a time, reduces them to four numbers a row and forgets
them; backward computes them again, turns them into their gradient in place, and from that
d_hidden = d_z · weight / T and d_weight += d_zᵀ · hidden / T. Products are accumulated in fp32, d_weight over
all chunks too: summing chunks in bf16 costs a factor of seven in accuracy.

Vocab-parallel: weight rows are split over the group. Hidden states are the same on every rank and their
gradient is summed over the group (Megatron's copy-to-tensor-parallel region); or, with sequence_parallel,
each rank holds N/P of them: all-gather in forward and again in backward, reduce-scatter of the gradient.

Shapes: N tokens, H hidden size, V_local rows of the weight on this rank, R rows kept (target not IGNORE),
P ranks.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from ralign.kernels.logprob import (
    all_gather,
    check,
    d_logits_,
    kept_rows,
    logprob_ref,
    mark_bad_targets,
    merge_stats,
    num_valid_columns,
    row_stats_,
    spread,
)
from torch.autograd.function import once_differentiable

# torch 2.13 renamed it; 2.11 and 2.12 know the old name alone.
_scatter = (
    dist.reduce_scatter_single if hasattr(dist, "reduce_scatter_single") else dist.reduce_scatter_tensor
)


def linear_logprob_ref(hidden, weight, targets, *, temperature=1.0, valid_vocab=None):
    """Plain torch, differentiable by autograd, one shard only; holds N × V."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logits = hidden.to(dtype) @ weight.to(dtype).t()
    return logprob_ref(logits, targets, temperature=temperature, valid_vocab=valid_vocab)


class _Shard(NamedTuple):
    """What does not change between forward and backward."""

    temperature: float
    valid_vocab: int
    vocab_start: int
    group: dist.ProcessGroup | None
    sequence_parallel: bool
    chunk_tokens: int


def _reduce_scatter(x, group):
    """[P·n, ...] on each rank -> this rank's [n, ...] of the sum."""
    out = x.new_empty(x.shape[0] // dist.get_world_size(group), *x.shape[1:])
    _scatter(out, x, group=group)
    return out


def _operand(x):
    """What a product reads: CUDA multiplies halves into fp32 as they are, the CPU computes in fp32 itself."""
    return x if x.is_cuda else x.to(torch.promote_types(x.dtype, torch.float32))


def _product(a, b):
    """a @ b, accumulated and returned in at least fp32."""
    if a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b)


def _add_product_(total, a, b):
    """total += a @ b with total in at least fp32."""
    if a.dtype == total.dtype:
        return total.addmm_(a, b)
    return total.add_(_product(a, b))


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, shard: _Shard):
        rows = kept_rows(targets)
        columns = targets[rows] - shard.vocab_start
        num_columns = num_valid_columns(weight.shape[0], shard.valid_vocab, shard.vocab_start)
        full = all_gather(hidden, shard.group) if shard.sequence_parallel else hidden
        head = _operand(weight[:num_columns])
        stats = []
        for i in range(0, max(rows.numel(), 1), shard.chunk_tokens):
            part = slice(i, i + shard.chunk_tokens)
            z = _product(_operand(full[rows[part]]), head.t()).div_(shard.temperature)
            stats.append(row_stats_(z, columns[part]))
            del z  # before the next chunk's logits are made
        row_max, log_sum, logprobs, entropy = merge_stats(torch.cat(stats, dim=1), shard.group)
        logprobs = mark_bad_targets(logprobs, targets[rows], shard.valid_vocab)
        ctx.save_for_backward(hidden, weight, rows, columns, row_max, log_sum, entropy)
        ctx.shard = shard
        ctx.set_materialize_grads(False)
        return spread(logprobs, rows, targets.numel()), spread(entropy, rows, targets.numel())

    @staticmethod
    @once_differentiable
    def backward(ctx, d_logprobs, d_entropy):
        hidden, weight, rows, *per_row = ctx.saved_tensors
        shard = ctx.shard
        num_columns = num_valid_columns(weight.shape[0], shard.valid_vocab, shard.vocab_start)
        full = all_gather(hidden, shard.group) if shard.sequence_parallel else hidden
        head = _operand(weight[:num_columns])
        grads = [None if grad is None else grad[rows] / shard.temperature for grad in (d_logprobs, d_entropy)]
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        accumulate = torch.promote_types(hidden.dtype, torch.float32)
        # Partial sums of the ranks are added in fp32; a lone rank's sum is complete and rounded at once.
        d_hidden = torch.zeros_like(full, dtype=hidden.dtype if shard.group is None else accumulate)
        d_weight = torch.zeros_like(weight, dtype=accumulate) if wants_weight else None
        for i in range(0, rows.numel(), shard.chunk_tokens):
            part = slice(i, i + shard.chunk_tokens)
            chunk = _operand(full[rows[part]])
            z = _product(chunk, head.t()).div_(shard.temperature)
            args = [x[part] for x in per_row] + [None if grad is None else grad[part] for grad in grads]
            d_z = d_logits_(z, *args).to(head.dtype)
            if wants_hidden:
                d_hidden[rows[part]] = _product(d_z, head).to(d_hidden.dtype)
            if wants_weight:
                _add_product_(d_weight[:num_columns], d_z.t(), chunk)
            del z, d_z
        if wants_hidden:
            d_hidden = _sum_over_ranks(d_hidden, shard).to(hidden.dtype)
        return (
            d_hidden if wants_hidden else None,
            d_weight.to(weight.dtype) if wants_weight else None,
            None,
            None,
        )


def _sum_over_ranks(d_hidden, shard):
    """The whole gradient of this rank's input, from its part of everyone's."""
    if shard.sequence_parallel:
        return _reduce_scatter(d_hidden, shard.group)
    if shard.group is not None:
        dist.all_reduce(d_hidden, group=shard.group)
    return d_hidden


def linear_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float = 1.0,
    valid_vocab: int,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
    sequence_parallel: bool = False,
    chunk_tokens: int = 1024,
    with_entropy: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logprob of each target and entropy of each token's distribution, differentiable in hidden and weight.

    hidden: [N, H] float, the same on every rank of `group`; with sequence_parallel this rank's [N/P, H].
    weight: [V_local, H], same dtype, this rank's rows of the LM head.
    targets: [N] int64, the same on every rank, in [0, valid_vocab), or IGNORE (-100): logprob, entropy and
        gradient are then 0 and the row costs nothing. Any other value gives a logprob of NaN.
    temperature: divides the logits (never the logprobs); its 1/T is in the gradients.
    valid_vocab: size of the real vocabulary; rows of the weight from there on are padding, as if their logits
        were −inf, and get a gradient of 0.
    vocab_start: the vocabulary index of this rank's first row of the weight.
    group: process group whose ranks hold the other rows; None: this rank holds all of them.
    sequence_parallel: hidden is split over `group` along dim 0; its gradient is too.
    chunk_tokens: rows whose logits are held at once; the peak is about 2 × chunk_tokens × V_local × 4 bytes.
    with_entropy: False returns None in its place.

    Returns logprobs [N] and entropy [N] in nats, fp32 (float64 for float64 inputs), the same on every rank;
    each rank's upstream gradient must be the whole gradient, not its share. Backward gives d_hidden summed
    over the group and d_weight complete for this rank's rows. Saved for backward: the inputs, and three
    numbers a kept row. Raises ValueError for arguments that do not fit. Formula: the head of logprob.py.
    """
    if sequence_parallel and group is None:
        raise ValueError("sequence_parallel needs the group that the hidden states are split over")
    num_tokens = hidden.shape[0] * (dist.get_world_size(group) if sequence_parallel else 1)
    check(targets, num_tokens, weight.shape[0], temperature, valid_vocab, vocab_start, group)
    if hidden.ndim != 2 or hidden.shape[1] != weight.shape[1] or hidden.dtype != weight.dtype:
        raise ValueError(
            f"hidden [N, H] and weight [V, H] of one dtype wanted, got {list(hidden.shape)} {hidden.dtype} "
            f"and {list(weight.shape)} {weight.dtype}"
        )
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    shard = _Shard(temperature, valid_vocab, vocab_start, group, sequence_parallel, chunk_tokens)
    logprobs, entropy = _LinearLogprob.apply(hidden, weight, targets, shard)
    return logprobs, entropy if with_entropy else None
