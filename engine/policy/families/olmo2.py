"""OLMo 2: norms behind attention and MLP instead of before them, and queries and keys normalised over all heads."""

from typing import TYPE_CHECKING

from ralign.engine.policy.families.family import DOWN, GATE_UP, OUTPUT, QKV, Family, norm_weight

if TYPE_CHECKING:
    from megatron.core.transformer import ModuleSpec, TransformerConfig


class Olmo2(Family):
    def layer_spec(self, config: "TransformerConfig", norm: "ModuleSpec") -> "ModuleSpec":
        from ralign.engine.policy.layers import all_heads_norm, decoder_layer, normed_projection

        return decoder_layer(
            query_norm=all_heads_norm(norm, config.num_attention_heads),
            key_norm=all_heads_norm(norm, config.num_query_groups or config.num_attention_heads),
            projection=normed_projection(norm),
        )


FAMILY = Olmo2(
    model_type="olmo2",
    layer=(
        OUTPUT,
        norm_weight("self_attention.linear_proj.norm", "post_attention_layernorm"),
        QKV,
        norm_weight("self_attention.q_layernorm", "self_attn.q_norm", "queries"),
        norm_weight("self_attention.k_layernorm", "self_attn.k_norm", "keys"),
        GATE_UP,
        DOWN,
        norm_weight("mlp.linear_fc2.norm", "post_feedforward_layernorm"),
    ),
    megatron={"qk_layernorm": True},  # Megatron sums the gradients of these norms over tensor-parallel ranks
)
