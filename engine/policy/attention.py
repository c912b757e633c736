"""Causal self-attention over packed sequences, with QKV stored as [q; k; v] on every tensor-parallel rank.

Megatron interleaves q, k and v by query group; vLLM stacks them. In vLLM's order the shards of the two libraries are
the same bytes, whatever the number of query groups on a rank.

T: this rank's tokens of the packed micro-batch (all tokens without context parallelism).  S: the tokens whose keys it
attends to (its own, and those of the context-parallel ranks before it).  N, G: this rank's query heads and groups.
D: head size.
"""

import functools
from typing import NamedTuple

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer.attention import SelfAttention
from ralign.engine.policy.context import gather_keys
from ralign.engine.policy.flash_attention import varlen_kernel
from ralign.engine.policy.rope import apply_rotary
from torch import Tensor
from torch.nn import functional as F

PAD_WASTE = (
    1.25  # SDPA: sequences are padded to the longest and computed together up to this factor of length
)


class PackedSelfAttention(SelfAttention):
    """Megatron's self-attention, with its projections and their parallelism, on packed tokens."""

    linear_qkv: ColumnParallelLinear
    q_layernorm: torch.nn.Module
    k_layernorm: torch.nn.Module

    def forward(
        self, hidden_states: Tensor, attention_mask=None, *, rotary_pos_emb: Tensor, packed_seq_params, **_
    ):
        """[T or T / tp, 1, hidden] -> (the same shape, the output bias, which is None)."""
        query, key, value = self.get_query_key_value_tensors(hidden_states)
        query, key = apply_rotary(query, rotary_pos_emb), apply_rotary(key, rotary_pos_emb)
        key, value = gather_keys(key, value, packed_seq_params)
        if self.checkpoint_core_attention and self.training:
            from megatron.core import tensor_parallel

            core = tensor_parallel.checkpoint(
                functools.partial(packed_attention, packed=packed_seq_params), False, query, key, value
            )
        else:
            core = packed_attention(query, key, value, packed_seq_params)
        return self.linear_proj(core.reshape(core.shape[0], 1, -1))

    def get_query_key_value_tensors(self, hidden_states: Tensor, *_, **__) -> tuple[Tensor, Tensor, Tensor]:
        """Query [T, N, D], key and value [T, G, D]; q and k are normalised if the family's layer does so."""
        num_heads, num_groups = self.num_attention_heads_per_partition, self.num_query_groups_per_partition
        head_dim = self.hidden_size_per_attention_head
        mixed, _ = self.linear_qkv(hidden_states)
        heads = mixed.view(mixed.shape[0], -1, head_dim)
        query, key, value = heads.split([num_heads, num_groups, num_groups], dim=1)
        return self.q_layernorm(query), self.k_layernorm(key), value


class NoCoreAttention(torch.nn.Module):
    """Takes the place of core attention in the spec; `packed_attention` computes it as a plain function."""

    def __init__(self, **_):
        super().__init__()


def packed_attention(query: Tensor, key: Tensor, value: Tensor, packed) -> Tensor:
    """Causal attention within each packed sequence.

    Args:
        query: [T, N, D].  key, value: [S, G, D].
        packed: Megatron's PackedSeqParams: `cu_seqlens_q`, `cu_seqlens_kv` int32 [B + 1], `max_seqlen_q`,
            `max_seqlen_kv`. If a sequence has fewer queries than keys, they are its last queries.

    Returns:
        [T, N, D]. On CUDA by `flash_attention.varlen_kernel`. On CPU, and in fp32, which those kernels do not support,
        by SDPA, sequences of similar length together; on CUDA the host then waits for their lengths, once per
        micro-batch.
    """
    if _has_kernel(query):
        kernel = varlen_kernel(query.device, query.dtype, query.shape[-1])
        lengths = (packed.cu_seqlens_q, packed.cu_seqlens_kv, packed.max_seqlen_q, packed.max_seqlen_kv)
        return kernel(query, key, value, *lengths)
    return _attention_by_length(query, key, value, packed)


def _has_kernel(query: Tensor) -> bool:
    return query.device.type == "cuda" and query.dtype != torch.float32


def _attention_by_length(query: Tensor, key: Tensor, value: Tensor, packed) -> Tensor:
    """Each bucket is padded to its longest sequence. The padding is at the end, where causality hides it."""
    output = torch.zeros_like(query)
    for bucket in _buckets(packed):
        q, k, v = (
            x[rows].transpose(1, 2)
            for x, rows in ((query, bucket.query_rows), (key, bucket.key_rows), (value, bucket.key_rows))
        )  # [b, heads, L, D]
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bucket.mask, is_causal=bucket.mask is None, enable_gqa=True
        ).transpose(1, 2)
        output = output.index_put((bucket.rows,), attended[bucket.sequences, bucket.steps])
    return output


class _Bucket(NamedTuple):
    """Sequences of similar length, padded to the longest: row indices [b, L].

    `sequences`, `steps` [n]: which of the b x L queries are real. `rows` [n]: their rows in the output.
    `mask` [Lq, Lk]: the mask; None if queries and keys are the same tokens (plain causal attention).
    """

    query_rows: Tensor
    key_rows: Tensor
    sequences: Tensor
    steps: Tensor
    rows: Tensor
    mask: Tensor | None


def _buckets(packed) -> list[_Bucket]:
    """Computed once for all layers of a batch."""
    if (
        known := getattr(packed, "buckets", None)
    ) is not None:  # an attribute that is added to Megatron's class
        return known
    whole, cut = [], []
    queries, keys = packed.cu_seqlens_q.tolist(), packed.cu_seqlens_kv.tolist()
    for q_start, q_end, k_start, k_end in zip(queries, queries[1:], keys, keys[1:], strict=False):
        if q_end > q_start:
            sequence = (q_end - q_start, q_start, k_start, k_end - k_start)
            (whole if sequence[0] == sequence[3] else cut).append(sequence)
    groups: list[list[tuple[int, int, int, int]]] = []
    for sequence in sorted(whole, reverse=True):
        if groups and groups[-1][0][0] <= PAD_WASTE * sequence[0]:
            groups[-1].append(sequence)
        else:
            groups.append([sequence])
    buckets = [_bucket(group) for group in groups] + [_cut_sequence(*sequence) for sequence in cut]
    device = packed.cu_seqlens_q.device
    packed.buckets = [_Bucket._make(x if x is None else x.to(device) for x in bucket) for bucket in buckets]
    return packed.buckets


def _bucket(group: list[tuple[int, int, int, int]]) -> _Bucket:
    lengths, q_first, k_first, _ = (torch.tensor(column)[:, None] for column in zip(*group, strict=True))
    steps = torch.arange(int(lengths.max()))[None, :]
    inside = torch.minimum(steps, lengths - 1)
    query_rows = q_first + inside
    sequence, step = (steps < lengths).nonzero(as_tuple=True)
    return _Bucket(query_rows, k_first + inside, sequence, step, query_rows[sequence, step], None)


def _cut_sequence(num_queries: int, q_start: int, k_start: int, num_keys: int) -> _Bucket:
    """The end of a sequence that begins on other context-parallel ranks."""
    query_rows = torch.arange(q_start, q_start + num_queries)
    key_rows = torch.arange(k_start, k_start + num_keys)[None, :]
    mask = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
    sequences, steps = torch.zeros_like(query_rows), torch.arange(num_queries)
    return _Bucket(query_rows[None, :], key_rows, sequences, steps, query_rows, mask)
