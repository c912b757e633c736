"""Llama 2, 3 and later, and SmolLM2: the architecture that the other families differ from."""

from ralign.engine.policy.families.family import Family, pre_norm_layer

FAMILY = Family(model_type="llama", layer=pre_norm_layer())
