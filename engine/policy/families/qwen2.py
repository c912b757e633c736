"""Qwen2 and Qwen2.5: biases on queries, keys and values."""

from ralign.engine.policy.families.family import QKV_BIAS, REQUIRED, Family, pre_norm_layer

FAMILY = Family(
    model_type="qwen2",
    layer=pre_norm_layer(QKV_BIAS),
    megatron={"add_qkv_bias": True},
    # The biases are part of the architecture: transformers and vLLM do not read the setting.
    required={name: value for name, value in REQUIRED.items() if name != "attention_bias"},
)
