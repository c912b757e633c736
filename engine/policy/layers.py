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


def pre_norm_spec(config: TransformerConfig, norm: ModuleSpec) -> ModuleSpec:
    """Llama's layer: `norm` before attention and MLP and, where the configuration has it, on each query and key."""
    qk_norm = norm if config.qk_layernorm else IdentityOp
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=PackedSelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=NoCoreAttention,
                    linear_proj=RowParallelLinear,
                    q_layernorm=qk_norm,
                    k_layernorm=qk_norm,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear),
            ),
            mlp_bda=get_bias_dropout_add,
        ),
    )


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
