"""Decoder layers of Megatron's modules, whose local parameters have vLLM's layout."""

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from ralign.engine.policy.attention import NoCoreAttention, PackedSelfAttention
from ralign.engine.policy.norm import AllHeadsNorm
from torch import Tensor

Spec = ModuleSpec | type


def decoder_layer(
    *,
    input_norm: Spec = IdentityOp,
    mlp_norm: Spec = IdentityOp,
    query_norm: Spec = IdentityOp,
    key_norm: Spec = IdentityOp,
    projection: Spec = RowParallelLinear,
) -> ModuleSpec:
    """Attention and a gated MLP, each added to the residual stream.

    Args:
        input_norm, mlp_norm: of the input of attention and of the MLP.
        query_norm, key_norm: of [T, heads, D].
        projection: of attention and MLP back to the residual stream.
    """
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=input_norm,
            self_attention=ModuleSpec(
                module=PackedSelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=NoCoreAttention,
                    linear_proj=projection,
                    q_layernorm=query_norm,
                    k_layernorm=key_norm,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,  # pyright: ignore[reportArgumentType]
            pre_mlp_layernorm=mlp_norm,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=projection),
            ),
            mlp_bda=get_bias_dropout_add,  # pyright: ignore[reportArgumentType]
        ),
    )


def pre_norm_spec(config: TransformerConfig, norm: ModuleSpec) -> ModuleSpec:
    """Llama's layer: `norm` before attention and MLP and, if the configuration has it, over each query and key head."""
    head_norm = norm if config.qk_layernorm else IdentityOp
    return decoder_layer(input_norm=norm, mlp_norm=norm, query_norm=head_norm, key_norm=head_norm)


class NormedProjection(RowParallelLinear):
    """A projection back to the residual stream whose output is normalised before it is added."""

    def __init__(
        self, input_size: int, output_size: int, *, config: TransformerConfig, norm: ModuleSpec, **options
    ):
        super().__init__(input_size, output_size, config=config, **options)
        self.norm = build_module(norm, config=config, hidden_size=output_size, eps=config.layernorm_epsilon)

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """[T, 1, input / tp] -> ([T or T / tp, 1, output], the (absent) bias)."""
        output, bias = super().forward(input_)
        return self.norm(output), bias


def normed_projection(norm: ModuleSpec) -> ModuleSpec:
    """A projection with `norm` behind it; the norm's weight is called `norm.weight` in it."""
    return ModuleSpec(module=NormedProjection, params={"norm": norm})


def all_heads_norm(norm: ModuleSpec, num_heads: int) -> ModuleSpec:
    """`norm` over all `num_heads` heads of the model together."""
    return ModuleSpec(module=AllHeadsNorm, params={"num_heads": num_heads, **norm.params})
