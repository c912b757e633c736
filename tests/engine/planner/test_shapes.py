"""Sizes of published models from the settings of their config.json."""

import pytest
from ralign.engine.planner.shapes import shape_of_hf
from ralign.engine.runtime.errors import UserError

COMMON = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "max_position_embeddings": 4096,
}
MISTRAL = {
    "model_type": "mistral",
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "sliding_window": None,
}
# Settings, and the number of parameters: bytes of the published tensors over the bytes of one.
PUBLISHED = {
    "Mistral-7B-Instruct-v0.3": (COMMON | MISTRAL | {"vocab_size": 32768}, 14_496_047_104 // 2),
    "Mistral-Nemo-Instruct-2407": (
        COMMON
        | MISTRAL
        | {"hidden_size": 5120, "head_dim": 128, "num_hidden_layers": 40, "vocab_size": 131072},
        24_495_564_800 // 2,
    ),
    "OLMo-2-1124-7B": (
        COMMON
        | {
            "model_type": "olmo2",
            "num_key_value_heads": 32,
            "intermediate_size": 11008,
            "vocab_size": 100352,
        },
        29_194_469_376 // 4,
    ),
    "Llama-3.1-8B": (
        COMMON
        | {
            "model_type": "llama",
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
            "vocab_size": 128256,
        },
        16_060_522_496 // 2,
    ),
    "Qwen2.5-7B": (
        COMMON
        | {
            "model_type": "qwen2",
            "hidden_size": 3584,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "num_hidden_layers": 28,
            "intermediate_size": 18944,
            "vocab_size": 152064,
        },
        15_231_233_024 // 2,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_number_of_parameters(name):
    config, num_parameters = PUBLISHED[name]
    assert shape_of_hf(config, name).num_parameters == num_parameters


def test_a_plan_refuses_what_the_trainer_refuses():
    config, _ = PUBLISHED["Mistral-7B-Instruct-v0.3"]
    with pytest.raises(UserError, match="mistral models with sliding_window=4096"):
        shape_of_hf(config | {"sliding_window": 4096})
    with pytest.raises(UserError, match="model_type 'gemma' is not supported"):
        shape_of_hf(config | {"model_type": "gemma"})
