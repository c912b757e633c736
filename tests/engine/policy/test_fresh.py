"""A fresh model of each family, in the shape of a smoke run."""

import json

import pytest
from ralign.engine.config.registry import FAMILIES
from ralign.engine.config.run import ModelConfig
from ralign.engine.data.tokenizer import build_tokenizer
from ralign.engine.planner.shapes import read_shape, shape_of
from ralign.engine.policy.fresh import create_model_folder
from ralign.recipes.common.smoke import tiny_model
from safetensors import safe_open


@pytest.mark.parametrize("family", FAMILIES.names)
def test_the_folder_has_the_family_and_what_it_requires(tmp_path, family):
    model = tiny_model(ModelConfig(family=family, num_query_groups=4, num_attention_heads=8))
    assert (model.family, model.num_query_groups, model.num_attention_heads) == (family, 4, 8)
    tokenizer = build_tokenizer(["a few words"], tmp_path, 300)
    create_model_folder(tmp_path, model, tokenizer, 0)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == family
    assert config.get("sliding_window") is None  # Mistral's default is a window of 4096 tokens
    shape = read_shape(tmp_path)  # it refuses what the family does
    assert shape == shape_of(model, len(tokenizer))
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        counts = [file.get_tensor(name).numel() for name in file.keys()]
    padding = shape.padded_vocab_size - shape.vocab_size
    assert sum(counts) == shape.num_parameters - padding * shape.hidden_size  # the head is tied
