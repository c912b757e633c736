"""What differs between model families, and what dense decoders near Llama have in common.

A family is one file of this folder, which makes one `Family`, and one line in `config.registry.FAMILIES`. The model,
its parameter names, the planner and the smoke runs read it. The planner runs without torch, so a family's file imports
neither torch nor Megatron at the top.

A decoder layer is described by its parameters, in the order of Megatron's modules: the order of the optimizer's flat
buffer, whose padding the planner counts. Shapes are given by axes; `sizes_of` (sizes.py) gives the lengths of the axes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ralign.engine.config.registry import FAMILIES
from ralign.engine.policy.sizes import Axis, Sizes
from ralign.engine.runtime.errors import UserError

if TYPE_CHECKING:
    from megatron.core.transformer import ModuleSpec, TransformerConfig


@dataclass(frozen=True)
class Parameter:
    """A parameter: its names, its shape and how tensor parallelism splits it.

    Megatron's local shard and vLLM's local shard are the same matrix (QKV as [q; k; v], fc1 as [gate; up], the
    vocabulary padded alike), so one description serves loading, export, weight sharing and the planner.

    Attributes:
        megatron: name in Megatron's model, or in its layer.
        vllm: name in vLLM's model, or in its layer.
        hf: Hugging Face tensors -> the axis of their rows. Their shards, stacked along dim 0, make the local parameter.
        columns: the axis of dim 1; None for a vector.
        split_dim: the dimension that tensor parallelism splits; None where every rank holds the whole parameter.
        may_be_missing: zeros where a Hugging Face folder has no such tensor.
    """

    megatron: str
    vllm: str
    hf: Mapping[str, Axis]
    columns: Axis | None = None
    split_dim: int | None = None
    may_be_missing: bool = False

    def num_local(self, sizes: Sizes, tensor: int) -> int:
        """Elements that one of `tensor` tensor-parallel ranks holds."""
        num_rows = sum(sizes[axis] for axis in self.hf.values())
        num_columns = sizes[self.columns] if self.columns else 1
        return num_rows * num_columns // (1 if self.split_dim is None else tensor)


def norm_weight(megatron: str, hf: str, axis: Axis = "hidden") -> Parameter:
    """The weight of an RMSNorm, whose name in vLLM is that in Hugging Face."""
    return Parameter(f"{megatron}.weight", f"{hf}.weight", {f"{hf}.weight": axis})


EMBEDDING = Parameter(
    "embedding.word_embeddings.weight",
    "model.embed_tokens.weight",
    {"model.embed_tokens.weight": "vocab"},
    columns="hidden",
    split_dim=0,
)
FINAL_NORM = norm_weight("decoder.final_layernorm", "model.norm")
HEAD = Parameter(
    "output_layer.weight", "lm_head.weight", {"lm_head.weight": "vocab"}, columns="hidden", split_dim=0
)
# As in *ForSequenceClassification with one label, the form of reward models.
VALUE_HEAD = Parameter(
    "value_head.weight", "score.weight", {"score.weight": "value"}, columns="hidden", may_be_missing=True
)

INPUT_NORM = norm_weight("input_layernorm", "input_layernorm")
OUTPUT = Parameter(
    "self_attention.linear_proj.weight",
    "self_attn.o_proj.weight",
    {"self_attn.o_proj.weight": "hidden"},
    columns="queries",
    split_dim=1,
)
QKV = Parameter(
    "self_attention.linear_qkv.weight",
    "self_attn.qkv_proj.weight",
    {
        "self_attn.q_proj.weight": "queries",
        "self_attn.k_proj.weight": "keys",
        "self_attn.v_proj.weight": "keys",
    },
    columns="hidden",
    split_dim=0,
)
QKV_BIAS = Parameter(
    "self_attention.linear_qkv.bias",
    "self_attn.qkv_proj.bias",
    {"self_attn.q_proj.bias": "queries", "self_attn.k_proj.bias": "keys", "self_attn.v_proj.bias": "keys"},
    split_dim=0,
)
# Over each head: the ranks' heads share the weight.
QUERY_HEAD_NORM = norm_weight("self_attention.q_layernorm", "self_attn.q_norm", "head")
KEY_HEAD_NORM = norm_weight("self_attention.k_layernorm", "self_attn.k_norm", "head")
MLP_NORM = norm_weight("pre_mlp_layernorm", "post_attention_layernorm")
GATE_UP = Parameter(
    "mlp.linear_fc1.weight",
    "mlp.gate_up_proj.weight",
    {"mlp.gate_proj.weight": "ffn", "mlp.up_proj.weight": "ffn"},
    columns="hidden",
    split_dim=0,
)
DOWN = Parameter(
    "mlp.linear_fc2.weight",
    "mlp.down_proj.weight",
    {"mlp.down_proj.weight": "hidden"},
    columns="ffn",
    split_dim=1,
)


def pre_norm_layer(*of_attention: Parameter) -> tuple[Parameter, ...]:
    """Of Llama's decoder layer, with further parameters of its attention."""
    return INPUT_NORM, OUTPUT, QKV, *of_attention, MLP_NORM, GATE_UP, DOWN


# Features that no family of this folder has. transformers or vLLM compute some of them where config.json asks for it.
REQUIRED: dict[str, Any] = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "attention_bias": False,
    "use_sliding_window": False,
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A dense decoder architecture.

    Attributes:
        model_type: Hugging Face's name.
        layer: the parameters of a decoder layer, in the order of Megatron's modules.
        megatron: fields of Megatron's TransformerConfig that a Llama does not set.
        required: settings of config.json -> the only value that is supported. A missing setting is supported.
    """

    model_type: str
    layer: tuple[Parameter, ...]
    megatron: Mapping[str, Any] = field(default_factory=dict)
    required: Mapping[str, Any] = field(default_factory=lambda: REQUIRED)

    def check(self, config: Mapping[str, Any]) -> None:
        """Raises UserError for a feature in a Hugging Face config.json that is not supported."""
        for name, value in self.required.items():
            if config.get(name, value) != value:
                raise UserError(
                    f"{self.model_type} models with {name}={config[name]} in config.json are not supported: it must be "
                    f"{value}"
                )

    def layer_spec(self, config: "TransformerConfig", norm: "ModuleSpec") -> "ModuleSpec":
        """A decoder layer for Megatron; `norm` builds an RMSNorm. Its parameters are those of `layer`."""
        from ralign.engine.policy.layers import pre_norm_spec

        return pre_norm_spec(config, norm)

    def layer_sizes(self, sizes: Sizes, tensor: int) -> list[int]:
        """Elements of each of a layer's parameters on one of `tensor` ranks, in order."""
        return [parameter.num_local(sizes, tensor) for parameter in self.layer]


def as_family(implementation: Any, setting: str) -> Family:
    """`implementation`, if it is a family; `setting` names it in the UserError."""
    if not isinstance(implementation, Family):
        raise UserError(f"{setting}: expected a Family, got {type(implementation).__name__}")
    return implementation


def family_of(model_type: str) -> Family:
    """The family of a Hugging Face config.json.

    Raises:
        UserError: it is not supported.
    """
    # Not FAMILIES.load at once: that would import a path, and a config.json comes from elsewhere.
    if model_type not in FAMILIES.names:
        raise UserError(
            f"model_type {model_type!r} is not supported; it must be one of {', '.join(sorted(FAMILIES.names))}"
        )
    return FAMILIES.load(model_type)
