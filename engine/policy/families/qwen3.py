"""Qwen3: queries and keys are normalised over each head."""

from ralign.engine.policy.families.family import (
    KEY_HEAD_NORM,
    QUERY_HEAD_NORM,
    Family,
    pre_norm_layer,
)

FAMILY = Family(
    model_type="qwen3",
    layer=pre_norm_layer(QUERY_HEAD_NORM, KEY_HEAD_NORM),
    megatron={"qk_layernorm": True},
)
