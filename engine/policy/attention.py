"""Causal self-attention over packed sequences, with QKV kept as [q; k; v] on every tensor-parallel rank.

Megatron interleaves q, k and v by query group; vLLM stacks them. Keeping vLLM's order makes the two
libraries' shards the same bytes, whatever the number of query groups a rank holds.

T: tokens of the packed micro-batch.  N, G: this rank's query heads and query groups.  D: head size.
"""

import functools
import importlib.util

import torch
from megatron.core.transformer.attention import SelfAttention
from ralign.engine.policy.rope import apply_rotary
from torch import Tensor
from torch.nn import functional as F

PAD_WASTE = 1.25  # CPU: sequences attend together while padding to the longest costs at most this factor


class PackedSelfAttention(SelfAttention):
    """Megatron's self-attention (its projections and their parallelism) on packed tokens."""

    def forward(
        self, hidden_states: Tensor, attention_mask=None, *, rotary_pos_emb: Tensor, packed_seq_params, **_
    ):
        """hidden_states: [T or T / tp, 1, hidden]; returns the same shape and the (absent) output bias."""
        query, key, value = self.get_query_key_value_tensors(hidden_states)
        query, key = apply_rotary(query, rotary_pos_emb), apply_rotary(key, rotary_pos_emb)
        if self.checkpoint_core_attention and self.training:
            from megatron.core import tensor_parallel

            core = tensor_parallel.checkpoint(
                functools.partial(packed_attention, packed=packed_seq_params), False, query, key, value
            )
        else:
            core = packed_attention(query, key, value, packed_seq_params)
        return self.linear_proj(core.reshape(core.shape[0], 1, -1))

    def get_query_key_value_tensors(self, hidden_states: Tensor, *_, **__) -> tuple[Tensor, Tensor, Tensor]:
        """Query [T, N, D], key and value [T, G, D]; q and k normalised where the family does so."""
        num_heads, num_groups = self.num_attention_heads_per_partition, self.num_query_groups_per_partition
        head_dim = self.hidden_size_per_attention_head
        mixed, _ = self.linear_qkv(hidden_states)
        heads = mixed.view(mixed.shape[0], -1, head_dim)
        query, key, value = heads.split([num_heads, num_groups, num_groups], dim=1)
        return self.q_layernorm(query), self.k_layernorm(key), value


class NoCoreAttention(torch.nn.Module):
    """Fills the spec's place for core attention, which `packed_attention` computes as a plain function."""

    def __init__(self, **_):
        super().__init__()


def packed_attention(query: Tensor, key: Tensor, value: Tensor, packed) -> Tensor:
    """Causal attention within each packed sequence.

    Args:
        query: [T, N, D].  key, value: [T, G, D].
        packed: Megatron's PackedSeqParams: `cu_seqlens_q` int32 [B + 1], `max_seqlen_q`.

    Returns:
        [T, N, D]. On CUDA by flash-attn where it is installed, else by torch's varlen attention; on CPU by
        SDPA, sequences of similar length together.
    """
    if query.device.type == "cuda":
        lengths = (packed.cu_seqlens_q, packed.cu_seqlens_q, packed.max_seqlen_q, packed.max_seqlen_q)
        if importlib.util.find_spec("flash_attn"):
            from flash_attn import flash_attn_varlen_func

            return flash_attn_varlen_func(query, key, value, *lengths, causal=True)
        from torch.nn.attention.varlen import varlen_attn

        repeat = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(repeat, dim=1) for x in (key, value))
        return varlen_attn(query, key, value, *lengths, window_size=(-1, 0))
    return _attention_by_length(query, key, value, packed)


def _attention_by_length(query: Tensor, key: Tensor, value: Tensor, packed) -> Tensor:
    """Each bucket is padded to its longest sequence; causality keeps the padding, at the end, unseen."""
    output = torch.zeros_like(query)
    for rows, mask in _buckets(packed):
        q, k, v = (x[rows].transpose(1, 2) for x in (query, key, value))  # [b, heads, L, D]
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
        output = output.index_put((rows[mask],), attended[mask])
    return output


def _buckets(packed) -> list[tuple[Tensor, Tensor]]:
    """Row indices [b, L] and their validity mask for each bucket; made once for all layers of a batch."""
    if (known := getattr(packed, "buckets", None)) is not None:
        return known
    starts = packed.cu_seqlens_q.tolist()
    sequences = sorted(
        (end - start, start) for start, end in zip(starts, starts[1:], strict=False) if end > start
    )
    groups: list[list[tuple[int, int]]] = []
    for sequence in reversed(sequences):
        if groups and groups[-1][0][0] <= PAD_WASTE * sequence[0]:
            groups[-1].append(sequence)
        else:
            groups.append([sequence])
    packed.buckets = [_bucket(group) for group in groups]
    return packed.buckets


def _bucket(group: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    lengths, first = (torch.tensor(column)[:, None] for column in zip(*group, strict=True))
    steps = torch.arange(int(lengths.max()))[None, :]
    mask = steps < lengths
    return first + torch.minimum(steps, lengths - 1), mask
