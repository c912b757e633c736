"""Models and MetaRM from the options of `ralign-eval run`; engines that share a GPU."""

import pytest
from ralign.engine.evaluation.cli import build_parser
from ralign.engine.evaluation.models import EndpointModel, metarm_config
from ralign.engine.evaluation.run import models_of
from ralign.engine.runtime.errors import UserError


@pytest.fixture
def share(tmp_path, monkeypatch):
    """A function that returns the share of memory of a model in a folder, with these options."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "config.json").write_text("{}")

    def of(*options, model=None, metarm=f"managed:{tmp_path}"):
        command = ["run", "--pairs", "p", "--out", "o", "--model", model or str(tmp_path), "--metarm", metarm]
        args = build_parser().parse_args([*command, *options])
        (found,) = models_of(args, metarm_config(args)).values()
        return None if isinstance(found, EndpointModel) else found.config.gpu_memory_utilization

    return of


def test_a_model_leaves_room_for_a_managed_metarm_on_the_same_gpu(share, monkeypatch):
    assert share(metarm="rule") == 0.9
    assert share() == 0.55
    assert share("--metarm-gpu-memory-utilization", "0.6") == 0.3
    assert share("--tensor", "2", "--metarm-devices", "1") == 0.55
    assert share("--tensor", "2", "--metarm-devices", "2") == 0.9
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert share("--metarm-devices", "5") == 0.9
    assert share("--metarm-devices", "4,5") == 0.55


def test_shares_that_do_not_fit_are_refused_in_one_line(share):
    with pytest.raises(
        UserError, match="0.8 of the models and --metarm-gpu-memory-utilization 0.35 are too much"
    ):
        share("--gpu-memory-utilization", "0.8")
    with pytest.raises(UserError, match="'1.5' is not a finite number above 0 and at most 1"):
        share("--gpu-memory-utilization", "1.5", metarm="rule")
    assert share("--gpu-memory-utilization", "0.8", "--metarm-devices", "1") == 0.8
    assert share("--gpu-memory-utilization", "0.65") == 0.65
    far = "--metarm-gpu-memory-utilization", "0.95"
    assert share(*far, model="endpoint:http://x/v1#m") is None  # no model on the GPU
    with pytest.raises(UserError, match="too much for the GPU"):
        share(*far)


def test_options_reach_the_metarm_and_each_price_its_own_endpoint():
    command = ["run", "--pairs", "p", "--out", "o", "--model", "endpoint:http://x/v1#m", "--budget-cost", "7"]
    command += [
        "--metarm",
        "endpoint:http://y/v1#n",
        "--metarm-template",
        "graded",
        "--metarm-price",
        "1",
        "2",
    ]
    args = build_parser().parse_args(command)
    metarm = metarm_config(args)
    (model,) = models_of(args, metarm).values()
    assert metarm.graded and (metarm.price_in, metarm.price_out, metarm.budget_cost) == (1, 2, 7)
    assert model.config.budget_cost is None  # a model without a price costs nothing
