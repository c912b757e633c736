"""Options of `ralign-eval run`: engines that share a GPU."""

import pytest
from ralign.engine.evaluation.cli_options import read_metarm
from ralign.engine.evaluation.run_cli import _models, add_run
from ralign.engine.runtime.argparse_utils import Parser
from ralign.engine.runtime.errors import UserError


@pytest.fixture
def share(tmp_path, monkeypatch):
    """The share of memory of a model in a folder, under these options."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "config.json").write_text("{}")
    parser = Parser()
    add_run(parser.add_subparsers(parser_class=Parser))

    def ask(*options, model=None, metarm="managed:somewhere"):
        command = ["run", "--pairs", "p", "--out", "o", "--model", model or str(tmp_path), "--metarm", metarm]
        (found,) = _models(parser.parse_args([*command, *options])).values()
        return getattr(found.config, "gpu_memory_utilization", None)

    return ask


def test_a_model_leaves_room_for_a_managed_metarm_on_its_gpu_alone(share, monkeypatch):
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
    with pytest.raises(UserError, match="is a share up to 1, got 1.5"):
        share("--gpu-memory-utilization", "1.5", metarm="rule")
    assert share("--gpu-memory-utilization", "0.8", "--metarm-devices", "1") == 0.8
    assert share("--gpu-memory-utilization", "0.65") == 0.65
    far = "--metarm-gpu-memory-utilization", "0.95"
    assert share(*far, model="endpoint:http://x/v1#m") is None  # no model here: the MetaRM has the GPU
    with pytest.raises(UserError, match="too much for the GPU"):
        share(*far)


def test_options_reach_the_metarm_and_each_price_its_own_endpoint():
    parser = Parser()
    add_run(parser.add_subparsers(parser_class=Parser))
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
    args = parser.parse_args(command)
    metarm, (model,) = read_metarm(args), _models(args).values()
    assert metarm.graded and (metarm.price_in, metarm.price_out, metarm.budget_cost) == (1, 2, 7)
    assert model.config.budget_cost is None  # a model without a price costs nothing
