"""Log-probability of the target token and entropy, from hidden states: the LM head without stored logits.

    z = hidden · weightᵀ / T      (logprob, entropy) = as in logprob.py      N × V is never stored

Forward computes the logits of `chunk_tokens` rows at a time, reduces them to four numbers a row and frees them.
Backward computes them again and turns them into their gradient in place; then d_hidden = d_z · weight / T and
d_weight += d_zᵀ · hidden / T. Products accumulate in fp32, and so does d_weight over all chunks: a sum of chunks in
bf16 is seven times less accurate.

Vocab-parallel: the rows of the weight are split over the group. Hidden states are the same on every rank and their
gradient is summed over the group (Megatron's copy-to-tensor-parallel region). With sequence_parallel, each rank holds
N/P of them: an all-gather in forward and again in backward, and a reduce-scatter of the gradient.

Shapes: N tokens, H hidden size, V_local rows of the weight on this rank, R rows kept (target not IGNORE),
P ranks.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from ralign.kernels.logprob import check, logprob_ref
from ralign.kernels.row_stats import (
    all_gather,
    d_logits,
    kept_rows,
    merge_stats,
    num_valid_columns,
    row_stats,
)
from torch import Tensor
from torch.autograd.function import once_differentiable

# torch 2.13 renamed it; 2.11 and 2.12 have only the old name.
_scatter = (
    dist.reduce_scatter_single if hasattr(dist, "reduce_scatter_single") else dist.reduce_scatter_tensor
)


def linear_logprob_ref(hidden, weight, targets, *, temperature=1.0, valid_vocab=None):
    """Plain torch, differentiable by autograd, one shard only; stores N × V."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logits = hidden.to(dtype) @ weight.to(dtype).t()
    return logprob_ref(logits, targets, temperature=temperature, valid_vocab=valid_vocab)


class Head(NamedTuple):
    """The LM head of this rank: arguments that forward and backward share, and the steps of its computation."""

    temperature: float
    valid_vocab: int
    vocab_start: int
    group: dist.ProcessGroup | None
    sequence_parallel: bool
    chunk_tokens: int
    implementation: str

    def gathered(self, hidden: Tensor) -> Tensor:
        """Returns all N rows of the hidden states."""
        return all_gather(hidden, self.group) if self.sequence_parallel else hidden

    def matrix(self, weight: Tensor) -> Tensor:
        """Returns the rows of the weight that are real tokens, as an operand: [num_columns, H]."""
        return operand(weight[: num_valid_columns(weight.shape[0], self.valid_vocab, self.vocab_start)])

    def logits(self, hidden: Tensor, matrix: Tensor) -> Tensor:
        """[R, H] -> logits [R, num_columns], not divided by the temperature, in at least fp32."""
        return product(hidden, matrix.t())

    def merged_stats(self, z: Tensor, targets: Tensor) -> Tensor:
        """Logits [R, num_columns] -> [4, R]: m, log s, logprob, entropy over all ranks."""
        stats = row_stats(z, targets, z.shape[1], self.vocab_start, self.temperature, self.implementation)
        return merge_stats(stats, targets, self.valid_vocab, self.group, self.implementation)

    def d_logits(
        self,
        z: Tensor,
        targets: Tensor,
        merged: Tensor,
        d_logprobs: Tensor | None,
        d_entropy: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """Returns the gradient of the logits, [R, num_columns] in `dtype`; overwrites z where it has that dtype."""
        out = z if z.dtype == dtype else torch.empty_like(z, dtype=dtype)
        return d_logits(
            z, targets, merged, d_logprobs, d_entropy, z.shape[1], self.vocab_start, self.temperature, out,
            self.implementation,
        )  # fmt: skip

    def summed(self, d_hidden: Tensor) -> Tensor:
        """Sums the parts of d_hidden over the group; returns the gradient of the input of this rank."""
        if self.sequence_parallel:
            return _reduce_scatter(d_hidden, self.group)
        if self.group is not None:
            dist.all_reduce(d_hidden, group=self.group)
        return d_hidden


def _reduce_scatter(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """[P·n, ...] on each rank -> [n, ...], the part of the sum that belongs to this rank."""
    out = x.new_empty(x.shape[0] // dist.get_world_size(group), *x.shape[1:])
    _scatter(out, x, group=group)
    return out


def operand(x: Tensor) -> Tensor:
    """Converts x to an operand of `product`: CUDA takes half precision, the CPU at least fp32."""
    return x if x.is_cuda else x.to(torch.promote_types(x.dtype, torch.float32))


def product(a: Tensor, b: Tensor) -> Tensor:
    """Returns a @ b, accumulated in at least fp32."""
    if a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b)


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Adds a @ b to total, which is in at least fp32, in one product."""
    if a.dtype == total.dtype:
        return torch.addmm(total, a, b, out=total)
    return torch.ops.aten.addmm.dtype_out(total, a, b, total.dtype, out=total)


def auto_chunk_tokens(num_columns: int, on_cuda: bool) -> int:
    """Returns a number of rows whose fp32 logits take about 320 MiB on a GPU, 128 MiB on a CPU; a multiple of 64 from
    64 to 1024. Each chunk reads the whole weight: 320 MiB are enough rows for a product at full speed."""
    rows = (320 if on_cuda else 128) * 2**20 // (4 * max(num_columns, 1))
    return min(max(rows // 64 * 64, 64), 1024)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, rows, head: Head):
        full, matrix = head.gathered(hidden), head.matrix(weight)
        kept = targets[rows]
        merged = [
            torch.zeros(4, 0, dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        ]
        for part in _chunks(rows.numel(), head.chunk_tokens):
            z = head.logits(operand(full[rows[part]]), matrix)
            merged.append(
                row_stats(z, kept[part], z.shape[1], head.vocab_start, head.temperature, head.implementation)
            )
            del z  # before the logits of the next chunk are allocated
        # One collective for all chunks.
        merged = merge_stats(
            torch.cat(merged, dim=1), kept, head.valid_vocab, head.group, head.implementation
        )
        ctx.save_for_backward(hidden, weight, rows, kept, merged)
        ctx.head = head
        ctx.set_materialize_grads(False)
        return tuple(merged.new_zeros(targets.numel()).index_copy_(0, rows, merged[i]) for i in (2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx, d_logprobs, d_entropy):
        hidden, weight, rows, kept, merged = ctx.saved_tensors
        head = ctx.head
        grads = [None if grad is None else grad[rows] for grad in (d_logprobs, d_entropy)]
        full, matrix = head.gathered(hidden), head.matrix(weight)
        sums = GradientSums(full, weight, head, *ctx.needs_input_grad[:2])
        for part in _chunks(rows.numel(), head.chunk_tokens):
            chunk = operand(full[rows[part]])
            z = head.logits(chunk, matrix)
            d = [None if grad is None else grad[part] for grad in grads]
            sums.add(
                rows[part], chunk, matrix, head.d_logits(z, kept[part], merged[:, part], *d, matrix.dtype)
            )
            del z
        return *sums.finish(), None, None, None


class GradientSums:
    """Accumulates d_hidden and d_weight, a chunk of rows at a time."""

    def __init__(self, full: Tensor, weight: Tensor, head: Head, needs_hidden: bool, needs_weight: bool):
        self.head, self.dtypes = head, (full.dtype, weight.dtype)
        accumulate = torch.promote_types(full.dtype, torch.float32)
        # The ranks add their partial sums in fp32; without a group the sum is complete and is rounded at once.
        dtype = full.dtype if head.group is None else accumulate
        self.d_hidden = torch.zeros_like(full, dtype=dtype) if needs_hidden else None
        self.d_weight = torch.zeros_like(weight, dtype=accumulate) if needs_weight else None

    def add(self, rows: Tensor, chunk: Tensor, matrix: Tensor, d_z: Tensor) -> None:
        """rows: [R] of the hidden states. chunk: [R, H], these rows. matrix: [V, H]. d_z: [R, V], of their logits."""
        if self.d_hidden is not None:
            self.d_hidden[rows] = product(d_z, matrix).to(self.d_hidden.dtype)
        if self.d_weight is not None:
            add_product_(self.d_weight[: matrix.shape[0]], d_z.t(), chunk)

    def finish(self) -> tuple[Tensor | None, Tensor | None]:
        """Returns d_hidden, summed over the ranks, and d_weight, each in the dtype of its input."""
        d_hidden = None if self.d_hidden is None else self.head.summed(self.d_hidden).to(self.dtypes[0])
        return d_hidden, None if self.d_weight is None else self.d_weight.to(self.dtypes[1])


def _chunks(num_rows: int, chunk_tokens: int) -> list[slice]:
    return [slice(i, min(i + chunk_tokens, num_rows)) for i in range(0, num_rows, chunk_tokens)]


def make_head(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, valid_vocab: int, vocab_start: int,
    group: dist.ProcessGroup | None, sequence_parallel: bool, chunk_tokens: int | None, implementation: str,
) -> Head:  # fmt: skip
    """Checks the arguments of `linear_logprob` or `linear_policy_loss`; raises ValueError if they do not fit."""
    if sequence_parallel and group is None:
        raise ValueError("sequence_parallel needs the group over which the hidden states are split")
    num_tokens = hidden.shape[0] * (dist.get_world_size(group) if sequence_parallel else 1)
    check(targets, num_tokens, weight.shape[0], temperature, valid_vocab, vocab_start, group)
    if hidden.ndim != 2 or hidden.shape[1] != weight.shape[1] or hidden.dtype != weight.dtype:
        raise ValueError(
            f"hidden must be [N, H] and weight [V, H] of one dtype, got {list(hidden.shape)} {hidden.dtype} "
            f"and {list(weight.shape)} {weight.dtype}"
        )
    if chunk_tokens is None:
        chunk_tokens = auto_chunk_tokens(weight.shape[0], weight.is_cuda)
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    return Head(temperature, valid_vocab, vocab_start, group, sequence_parallel, chunk_tokens, implementation)


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    valid_vocab: int,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
    sequence_parallel: bool = False,
    rows: Tensor | None = None,
    chunk_tokens: int | None = None,
    with_entropy: bool = True,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Logprob of each target and entropy of the distribution of each token, differentiable in hidden and weight.

    hidden: [N, H] float, the same on every rank of `group`; with sequence_parallel [N/P, H], the part of this rank.
    weight: [V_local, H], same dtype, the rows of the LM head on this rank.
    targets: [N] int64, the same on every rank, in [0, valid_vocab), or IGNORE (-100): logprob, entropy and
        gradient are then 0 and the row costs nothing. Any other value gives a logprob of NaN.
    temperature: divides the logits (never the logprobs); its 1/T is in the gradients.
    valid_vocab: size of the real vocabulary; later rows of the weight are padding, as if their logits were −inf,
        and get a gradient of 0.
    vocab_start: the vocabulary index of the first row of the weight on this rank.
    group: process group whose ranks hold the other rows; None: this rank holds all of them.
    sequence_parallel: hidden is split over `group` along dim 0; its gradient is too.
    rows: [R] int64, ascending: the rows whose target is not IGNORE, if the caller knows them (from a packing
        plan); None: computed here, for which the host waits for the device.
    chunk_tokens: rows whose logits are stored at once; None: see auto_chunk_tokens. The peak is about
        chunk_tokens × V_local × (4 bytes + 2 for bf16's gradient on CUDA; 12 on the CPU).
    with_entropy: False returns None in place of the entropy.
    implementation: of the row statistics and gradients: "auto", "torch" or "triton"; see implementation.py.
        The BLAS library computes the products.

    Returns logprobs [N] and entropy [N] in nats, fp32 (float64 for float64 inputs), the same on every rank;
    the upstream gradient of each rank must be the whole gradient, not its share. Backward gives d_hidden summed
    over the group and d_weight complete for the rows of this rank. Saved for backward: the inputs, and four
    numbers a kept row. Raises ValueError for arguments that do not fit. The formulas are at the head of logprob.py.
    """
    head = make_head(
        hidden, weight, targets, temperature, valid_vocab, vocab_start, group, sequence_parallel, chunk_tokens,
        implementation,
    )  # fmt: skip
    rows = kept_rows(targets) if rows is None else rows
    logprobs, entropy = _LinearLogprob.apply(hidden, weight, targets, rows, head)
    return logprobs, entropy if with_entropy else None
