"""Sizes of published models from the settings of their config.json."""

import json

import pytest
from ralign.engine.config.run import ModelConfig
from ralign.engine.planner.shapes import read_shape, shape_of, shape_of_hf
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


SIZES = [
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
]


@pytest.mark.parametrize("value", [None, 0, -1, 1.5, True, "4096", [1], {}, 10**10, 10**400], ids=str)
@pytest.mark.parametrize("name", SIZES)
def test_what_is_no_size_is_named(tmp_path, name, value):
    config, _ = PUBLISHED["Llama-3.1-8B"]
    (tmp_path / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(UserError) as refused:
        read_shape(tmp_path)
    got = "nothing" if value is None else repr(value)[:80]
    start = f"{tmp_path / 'config.json'}: {name} must be a whole number from 1 to "
    assert str(refused.value).startswith(start) and str(refused.value).endswith(f", got {got}")


@pytest.mark.parametrize("text", ["[]", "null", "5", '"x"', "", '{"model_type":', "\0", "{}", "[" * 100_000])
def test_what_is_no_config_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json: ") as refused:
        read_shape(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": {}}, "model_type '{}' is not supported"),
        ({"model_type": "/dev/zero:X"}, "model_type '/dev/zero:X' is not supported"),
        ({"head_dim": "x"}, "head_dim must be a whole number from 1 to 1,000,000,000, got 'x'"),
        ({"rope_theta": -1}, "rope_theta must be a positive number, got -1"),
        ({"rope_theta": float("inf")}, "rope_theta must be a positive number, got inf"),
        ({"rope_parameters": [1]}, "rope_theta must be a positive number, got [1]"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta must be a positive number, got 'x'"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false, got 'no'"),
        ({"vocab_size": "x" * 5000}, f"got '{'x' * 79}"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_other_settings_of_the_wrong_kind_are_named(changes, message):
    config, _ = PUBLISHED["Llama-3.1-8B"]
    with pytest.raises(UserError) as refused:
        shape_of_hf(config | changes)
    assert str(refused.value).endswith(message) or str(refused.value).startswith(message)


def test_null_counts_as_a_missing_setting():
    config, num_parameters = PUBLISHED["Llama-3.1-8B"]
    nulls = {"head_dim": None, "rope_theta": None, "rope_parameters": None, "tie_word_embeddings": None}
    assert shape_of_hf(config | nulls).num_parameters == num_parameters


def test_a_models_sizes_in_the_settings_are_bounded():
    with pytest.raises(
        UserError, match=r"model.num_layers must be a whole number from 1 to 100,000, got 10+$"
    ):
        shape_of(ModelConfig(num_layers=10**6))
    # The largest sizes are planned with finite numbers, at once.
    assert 0 < float(shape_of(ModelConfig(num_layers=100_000, hidden_size=10**9)).num_parameters) < 1e40
