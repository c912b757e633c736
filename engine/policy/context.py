"""Context parallelism of packed micro-batches: each rank has an equal, contiguous part of the tokens.

A rank computes its own tokens. In attention, its queries need the keys and values of the ranks before it: keys and
values are gathered, and their gradients are summed on the rank that they belong to. A boundary may fall inside a
sequence: a rank's queries are then the last ones of the keys that it has, and causal attention aligned at the end is
exact. The boundaries below are computed on the device; the host reads no lengths.

T: tokens of the micro-batch.  c: context-parallel ranks; c divides T.
"""

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from ralign.engine.data.packing import PackedBatch, to_device
from ralign.engine.runtime.cluster import Cluster
from torch import Tensor

# torch 2.13 renamed it; 2.11 and 2.12 have the old name only.
_scatter = (
    dist.reduce_scatter_single if hasattr(dist, "reduce_scatter_single") else dist.reduce_scatter_tensor
)


def own_tokens(batch: PackedBatch, cluster: Cluster) -> slice:
    """This rank's part of the micro-batch's tokens."""
    share = len(batch.input_ids) // cluster.cp_size
    assert share * cluster.cp_size == len(batch.input_ids), "pad micro-batches to a multiple of the ranks"
    return slice(cluster.cp_rank * share, (cluster.cp_rank + 1) * share)


def sequence_bounds(cu_seqlens: Tensor, own: slice) -> tuple[Tensor, Tensor]:
    """(cu_seqlens_q, cu_seqlens_kv), int32 [B + 1] each, of the queries in `own` and the keys that they attend to.

    A sequence that ends before `own` has no queries; one that starts after it has neither queries nor keys.
    """
    return cu_seqlens.clamp(own.start, own.stop) - own.start, cu_seqlens.clamp(max=own.stop)


def target_rows(batch: PackedBatch, own: slice) -> Tensor:
    """[R] int64, ascending: the rows of `own` that have a target, counted from its start; without a device read."""
    bounds = zip(batch.row_starts.tolist(), batch.row_counts.tolist(), strict=True)
    parts = [np.arange(max(start, own.start), min(start + count, own.stop)) for start, count in bounds]
    return to_device(np.concatenate([np.zeros(0, dtype=np.int64), *parts]) - own.start, batch.targets.device)


def packed_params(batch: PackedBatch, cluster: Cluster) -> PackedSeqParams:
    """The bounds of the sequences on this rank in Megatron's form, made once for all passes over the micro-batch."""
    if batch.packed_params is None:
        own = own_tokens(batch, cluster)
        queries, keys = sequence_bounds(batch.cu_seqlens, own)
        packed = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=queries,
            cu_seqlens_kv=keys,
            max_seqlen_q=batch.max_seqlen,
            max_seqlen_kv=batch.max_seqlen,
            cp_group=cluster.cp_group,
        )
        # An attribute that is added to Megatron's class.
        packed.target_rows = target_rows(batch, own)  # pyright: ignore[reportAttributeAccessIssue]
        batch.packed_params = packed
    assert isinstance(batch.packed_params, PackedSeqParams)
    return batch.packed_params


def gather_keys(key: Tensor, value: Tensor, packed) -> tuple[Tensor, Tensor]:
    """[T / c, G, D] each -> [S, G, D] each, in one collective; unchanged without context parallelism.

    S: the tokens up to this rank's last one. Rows after it are cut off: they belong to no sequence of this rank, the
    varlen kernels leave the gradients of such rows uninitialised, and these would be added on other ranks.
    """
    group = packed.cp_group
    if group is None or dist.get_world_size(group) == 1:
        return key, value
    num_seen = (dist.get_rank(group) + 1) * key.shape[0]
    return _Gather.apply(torch.stack([key, value], dim=1), group, True)[:num_seen].unbind(1)


def gather_tokens(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[k, T / c] of each rank -> [k, T] on all ranks.

    All ranks compute the same from the result, so the gradient of a rank is its own part.
    """
    if dist.get_world_size(group) == 1:
        return x
    return _Gather.apply(x.t(), group, False).t().contiguous()


class _Gather(torch.autograd.Function):
    """All-gather along dim 0; its gradient is summed over the ranks, or the same on all ranks."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup, sum_gradients: bool):
        ctx.group, ctx.sum_gradients = group, sum_gradients
        out = x.new_empty(x.shape[0] * dist.get_world_size(group), *x.shape[1:])
        dist.all_gather_into_tensor(out, x.contiguous(), group=group)
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor):
        size = d_out.shape[0] // dist.get_world_size(ctx.group)
        if not ctx.sum_gradients:
            rank = dist.get_rank(ctx.group)
            return d_out[rank * size : (rank + 1) * size], None, None
        d_x = d_out.new_empty(size, *d_out.shape[1:])
        _scatter(d_x, d_out.contiguous(), group=ctx.group)
        return d_x, None, None
