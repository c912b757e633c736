"""One table of every parameter: its name in Megatron, in Hugging Face and in vLLM, and how it is split.

Megatron's local shard and vLLM's local shard of a parameter are the same matrix under our layer spec
(QKV as [q; k; v], fc1 as [gate; up], vocabulary padded alike), so one row serves three readers: loading
and exporting Hugging Face weights, and making vLLM's parameters views of Megatron's.
"""

import re
from dataclasses import dataclass

VOCAB_PADDING = 64  # vLLM pads the vocabulary to a multiple of this before splitting it; so do we.


@dataclass(frozen=True)
class Slot:
    """A Megatron parameter and its names elsewhere.

    Attributes:
        hf: Hugging Face tensors whose rank shards, stacked along dim 0, make the local parameter.
        vllm: the parameter's name in vLLM's model.
        split_dim: the dimension that tensor parallelism splits, or None when every rank holds all of it.
        is_vocab: rows are vocabulary entries, padded to `VOCAB_PADDING`.
        may_be_missing: zeros where a Hugging Face folder has no such tensor.
    """

    hf: tuple[str, ...]
    vllm: str
    split_dim: int | None
    is_vocab: bool = False
    may_be_missing: bool = False


def _attention(*parts: str) -> tuple[str, ...]:
    return tuple(f"self_attn.{part}" for part in parts)


# Suffix within a decoder layer -> Hugging Face names, vLLM name, split dimension.
_LAYER = {
    "input_layernorm.weight": (("input_layernorm.weight",), "input_layernorm.weight", None),
    "self_attention.linear_qkv.weight": (
        _attention("q_proj.weight", "k_proj.weight", "v_proj.weight"),
        "self_attn.qkv_proj.weight",
        0,
    ),
    "self_attention.linear_qkv.bias": (
        _attention("q_proj.bias", "k_proj.bias", "v_proj.bias"),
        "self_attn.qkv_proj.bias",
        0,
    ),
    "self_attention.q_layernorm.weight": (_attention("q_norm.weight"), "self_attn.q_norm.weight", None),
    "self_attention.k_layernorm.weight": (_attention("k_norm.weight"), "self_attn.k_norm.weight", None),
    "self_attention.linear_proj.weight": (_attention("o_proj.weight"), "self_attn.o_proj.weight", 1),
    "pre_mlp_layernorm.weight": (
        ("post_attention_layernorm.weight",),
        "post_attention_layernorm.weight",
        None,
    ),
    "mlp.linear_fc1.weight": (("mlp.gate_proj.weight", "mlp.up_proj.weight"), "mlp.gate_up_proj.weight", 0),
    "mlp.linear_fc2.weight": (("mlp.down_proj.weight",), "mlp.down_proj.weight", 1),
}
_TOP = {
    "embedding.word_embeddings.weight": Slot(
        ("model.embed_tokens.weight",), "model.embed_tokens.weight", 0, is_vocab=True
    ),
    "decoder.final_layernorm.weight": Slot(("model.norm.weight",), "model.norm.weight", None),
    "output_layer.weight": Slot(("lm_head.weight",), "lm_head.weight", 0, is_vocab=True),
    # As in *ForSequenceClassification with one label, the form of reward models.
    "value_head.weight": Slot(("score.weight",), "score.weight", None, may_be_missing=True),
}
_LAYER_NAME = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


def slot(megatron_name: str, *, first_layer: int, tied: bool) -> Slot:
    """The table's row for a parameter of this pipeline stage.

    Args:
        megatron_name: the name in the stage's GPTModel, layers counted from 0 within the stage.
        first_layer: number of layers on earlier stages.
        tied: the output layer shares the embedding (its copy on the last stage reads the embedding's name).
    """
    if megatron_name in _TOP:
        if tied and megatron_name == "output_layer.weight":
            return _TOP["embedding.word_embeddings.weight"]
        return _TOP[megatron_name]
    match = _LAYER_NAME.fullmatch(megatron_name)
    assert match and match[2] in _LAYER, f"no Hugging Face name is known for parameter {megatron_name}"
    hf, vllm, split_dim = _LAYER[match[2]]
    prefix = f"model.layers.{int(match[1]) + first_layer}."
    return Slot(tuple(prefix + name for name in hf), prefix + vllm, split_dim)


def padded_vocab_size(vocab_size: int) -> int:
    """The vocabulary with padding rows, as vLLM pads it."""
    return -(-vocab_size // VOCAB_PADDING) * VOCAB_PADDING
