"""Families: what they describe without torch, what they refuse, and how a family from outside is found."""

import subprocess
import sys

import pytest
from ralign.engine.config.registry import FAMILIES
from ralign.engine.config.run import ModelConfig
from ralign.engine.planner.shapes import shape_of
from ralign.engine.policy.families.family import family_of
from ralign.engine.policy.param_names import param_map
from ralign.engine.runtime.errors import UserError

TOY_FILE = """
from ralign.engine.policy.families.family import Family, pre_norm_layer

FAMILY = Family(model_type="toy", layer=pre_norm_layer())
"""


@pytest.fixture
def toy_file(tmp_path):
    path = tmp_path / "toy_family.py"
    path.write_text(TOY_FILE)
    yield f"{path}:FAMILY"
    for name in {"toy", f"{path}:FAMILY"} & set(FAMILIES.names):
        FAMILIES.unregister(name)
    for name in imported_toys():
        del sys.modules[name]


def imported_toys() -> list[str]:
    return [name for name in sys.modules if "toy_family" in name]


def test_families_and_the_planner_need_no_torch():
    code = (
        "import sys\n"
        "from ralign.engine.config.registry import FAMILIES\n"
        "from ralign.engine.config.run import ModelConfig\n"
        "from ralign.engine.planner.shapes import shape_of\n"
        "assert all(shape_of(ModelConfig(family=name)).num_parameters for name in FAMILIES.names)\n"
        "assert len(FAMILIES.names) == 5\n"
        "print(sorted({'torch', 'megatron', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen3", {"attention_bias": True}),
        ("qwen3", {"use_sliding_window": True}),
        ("qwen2", {"use_sliding_window": True}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"hidden_act": "gelu"}),
        ("mistral", {"sliding_window": 4096}),
        ("olmo2", {"attention_bias": True}),
    ],
)
def test_an_unsupported_feature_is_refused_by_its_setting(family, settings):
    ((name, value),) = settings.items()
    with pytest.raises(UserError, match=f"{family} models with {name}={value} in config.json"):
        family_of(family).check(settings)
    family_of(family).check({name: family_of(family).required[name]})


def test_qwen2_has_its_biases_whatever_config_json_says():
    family_of("qwen2").check({"attention_bias": True})
    family_of("qwen2").check({"attention_bias": False})


def test_a_family_from_a_file_is_known_by_its_model_type(toy_file):
    with pytest.raises(
        UserError, match="model_type 'toy' is not supported; it must be one of llama, mistral"
    ):
        family_of("toy")
    shape = shape_of(ModelConfig(family=toy_file))
    assert len(imported_toys()) == 1 and shape.family == "toy" and family_of("toy") is FAMILIES.load(toy_file)
    assert shape.num_parameters == shape_of(ModelConfig(family="llama")).num_parameters


def test_a_model_type_is_never_imported(toy_file):
    """A config.json comes with downloaded weights: a path in it must not run code."""
    with pytest.raises(UserError, match="is not supported"):
        family_of(toy_file)
    assert not imported_toys()


def test_a_parameter_that_the_family_does_not_describe_stops_the_run():
    names = {"first_layer": 2, "tied": False}
    sizes = {"hidden": 8, "keys": 4, "queries": 8, "head": 2}
    name = "decoder.layers.1.self_attention.linear_qkv."
    found = param_map(name + "weight", family_of("llama"), sizes, **names)
    assert found.vllm == "model.layers.3.self_attn.qkv_proj.weight"
    assert found.hf == tuple(f"model.layers.3.self_attn.{x}_proj.weight" for x in "qkv")
    assert found.rows == (8, 4, 4) and found.local_rows(2) == [4, 2, 2]
    with pytest.raises(AssertionError, match=f"family llama does not describe .* {name}bias"):
        param_map(name + "bias", family_of("llama"), sizes, **names)


@pytest.mark.jobs
@pytest.mark.parametrize(
    ("family", "arguments"),
    [
        ("mistral", ("1", "1")),
        ("olmo2", ("2", "2")),
        pytest.param("mistral", ("2", "2"), marks=pytest.mark.slow),
        pytest.param("olmo2", ("1", "1"), marks=pytest.mark.slow),
        pytest.param("olmo2", ("2", "2", "1", "1"), marks=pytest.mark.slow),  # the gather path, TP 2 to 1
    ],
)
def test_vllm_computes_what_the_trainer_computes(torchrun, family, arguments):
    """Before training and after each of five updates. arguments: processes, then those of shared_weights.py."""
    num_processes, tensor, pipeline, generate = (*arguments, "1", "0")[:4]
    import torch

    dtype = "bf16" if torch.cuda.is_available() else "fp32"  # on CUDA the engine's fp32 is TF32
    report = torchrun(
        "shared_weights", int(num_processes), tensor, pipeline, generate, dtype, family, timeout_s=400
    )
    differences = report["mean_differences" if dtype == "bf16" else "max_differences"]
    assert all(len(row) == 6 and max(row) <= (0.015 if dtype == "bf16" else 1e-5) for row in differences)
    assert report["repeatable"] and report["detects_tampering"]
    assert report["same_storage"] == (generate == "0")
