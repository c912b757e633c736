"""The axes of a decoder's parameters, and their lengths. Without torch: the planner reads it."""

from collections.abc import Mapping
from typing import Any, Literal

VOCAB_PADDING = 64  # vLLM pads the vocabulary to a multiple of this before it splits it; so does the trainer

# vocab: with padding. queries, keys: heads and groups times the head size. head: the head size. value: 1.
Axis = Literal["vocab", "hidden", "ffn", "queries", "keys", "head", "value"]
Sizes = Mapping[Axis, int]


def padded_vocab_size(vocab_size: int) -> int:
    """The vocabulary with padding rows, as vLLM pads it."""
    return -(-vocab_size // VOCAB_PADDING) * VOCAB_PADDING


def head_size(config: Mapping[str, Any]) -> int:
    """Channels of one head, from the settings of a Hugging Face config.json."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def sizes_of(
    *,
    vocab_size: int,
    hidden_size: int,
    ffn_hidden_size: int,
    num_attention_heads: int,
    num_query_groups: int,
    head_dim: int,
) -> Sizes:
    """The length of each axis in the whole model."""
    return {
        "vocab": padded_vocab_size(vocab_size),
        "hidden": hidden_size,
        "ffn": ffn_hidden_size,
        "queries": num_attention_heads * head_dim,
        "keys": num_query_groups * head_dim,
        "head": head_dim,
        "value": 1,
    }
