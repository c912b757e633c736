"""Mistral (7B v0.2 and later, Nemo, Small without vision): a Llama whose head size is free.

The attention of 7B v0.1 slides over a window of 4096 tokens, which is refused.
"""

from ralign.engine.policy.families.family import REQUIRED, Family, pre_norm_layer

FAMILY = Family(
    model_type="mistral",
    layer=pre_norm_layer(),
    required=REQUIRED | {"sliding_window": None},
)
