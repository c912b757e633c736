"""Log-probability of the target token and entropy of the distribution, from logits.

With z = logits / temperature over the valid columns, m = max z, s = Σ exp(z − m), t = Σ exp(z − m)(z − m):

    logprob = (z_y − m) − log s          entropy = log s − t / s
    ∂logprob/∂z_v = [v = y] − p_v        ∂entropy/∂z_v = −p_v (log p_v + entropy)

All sums are taken after the shift by m: without it, Σ p z loses five digits at an offset of 200. Vocab-parallel: each
rank reduces its own columns to (m, s, t, z_y), one all-gather exchanges these four numbers a row, and each rank merges
them in rank order, so that all ranks hold the same bits.

Triton kernels and their counterparts in torch are in row_stats.py.

Shapes: N rows (tokens), V_local columns of this rank's shard.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from ralign.kernels.row_stats import IGNORE, d_logits, merge_stats, num_valid_columns, row_stats
from torch import Tensor
from torch.autograd.function import once_differentiable


def logprob_ref(logits, targets, *, temperature=1.0, valid_vocab=None):
    """Plain torch, differentiable by autograd, one shard only: logits [N, V], targets [N] -> ([N], [N])."""
    z = logits[:, :valid_vocab].to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    log_p = torch.log_softmax(z, dim=1)
    kept = targets != IGNORE
    picked = log_p.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0)).sum(1)
    return torch.where(kept, picked, 0), torch.where(kept, entropy, 0)


def check(
    targets: Tensor, num_rows: int, num_columns: int, temperature: float, valid_vocab: int, vocab_start: int,
    group: dist.ProcessGroup | None,
) -> None:  # fmt: skip
    """Raises ValueError for arguments of `logprob` or `linear_logprob` that do not fit."""
    if targets.dtype != torch.int64 or targets.shape != (num_rows,):
        raise ValueError(f"targets must be int64 [{num_rows}], got {targets.dtype} {list(targets.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if valid_vocab < 1 or vocab_start < 0:
        raise ValueError(
            f"expected valid_vocab >= 1 and vocab_start >= 0, got {valid_vocab} and {vocab_start}"
        )
    if group is None and num_valid_columns(num_columns, valid_vocab, vocab_start) < valid_vocab:
        raise ValueError(f"{num_columns} columns from {vocab_start} do not cover valid_vocab={valid_vocab}")


class _Shard(NamedTuple):
    """Arguments of `logprob` that forward and backward share."""

    temperature: float
    valid_vocab: int
    vocab_start: int
    group: dist.ProcessGroup | None
    overwrite_logits: bool
    implementation: str


class _Logprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, shard: _Shard):
        num_columns = num_valid_columns(logits.shape[1], shard.valid_vocab, shard.vocab_start)
        stats = row_stats(
            logits, targets, num_columns, shard.vocab_start, shard.temperature, shard.implementation
        )
        merged = merge_stats(stats, targets, shard.valid_vocab, shard.group, shard.implementation)
        ctx.save_for_backward(logits, targets, merged)
        ctx.shard, ctx.num_columns = shard, num_columns
        ctx.set_materialize_grads(False)
        return merged[2].clone(), merged[3].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, d_logprobs, d_entropy):
        logits, targets, merged = ctx.saved_tensors
        shard: _Shard = ctx.shard
        out = logits.detach() if shard.overwrite_logits else torch.empty_like(logits)
        grad = d_logits(
            logits.detach(), targets, merged, d_logprobs, d_entropy, ctx.num_columns, shard.vocab_start,
            shard.temperature, out, shard.implementation,
        )  # fmt: skip
        return grad, None, None


def logprob(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    valid_vocab: int,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
    overwrite_logits: bool = False,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Logprob of each target and entropy of each row's distribution, differentiable in the logits.

    logits: [N, V_local] float, this rank's columns, the same rows on every rank of `group`.
    targets: [N] int64 in [0, valid_vocab), or IGNORE (-100): logprob, entropy and gradient are then 0. Any
        other value gives a logprob of NaN.
    temperature: divides the logits (never the logprobs); its 1/T is in the gradient.
    valid_vocab: size of the real vocabulary; later columns are padding, as if their logits were −inf.
    vocab_start: the vocabulary index of the first column of this rank.
    group: process group whose ranks hold the other columns; None: this rank holds all of them.
    overwrite_logits: backward writes the gradient over the logits, which halves the memory. No other op may need
        the logits by then, and a second backward through the same graph would be wrong.
    implementation: "auto", "torch" or "triton"; see implementation.py.

    Returns logprobs [N] and entropy [N] in nats, fp32 (float64 for float64 logits), the same on every rank;
    the upstream gradient of each rank must be the whole gradient, not its share. Saved for backward: the logits
    and four numbers a row. Raises ValueError for arguments that do not fit. The formulas are at the head of this
    file.
    """
    num_rows, num_columns = logits.shape
    check(targets, num_rows, num_columns, temperature, valid_vocab, vocab_start, group)
    shard = _Shard(temperature, valid_vocab, vocab_start, group, overwrite_logits, implementation)
    return _Logprob.apply(logits, targets, shard)
