"""The recipes for large GenRMs: their settings, what they refuse, and one in miniature with a server of its own."""

import importlib
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from ralign.engine.data.examples import encode
from ralign.engine.data.prompts import load_template
from ralign.engine.data.worlds.judgeworld import build_judgeworld
from ralign.engine.planner.cli import plan, recipe_run
from ralign.engine.planner.hardware import CHIPS, Constants
from ralign.engine.runtime.errors import UserError
from ralign.recipes import r_align_32b
from ralign.recipes.common import tiny_sft
from transformers import AutoTokenizer

pytestmark = pytest.mark.usefixtures("two_gpus")  # on a GPU machine; on a CPU nothing is needed

ROOT = Path(__file__).parents[2]
NAMES = ["r_align_8b", "r_align_14b", "r_align_32b", "rlvr_14b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_has_its_own_name_and_fits_its_context(name):
    run = recipe_run(name)
    assert run.name == name
    assert run.data.max_prompt_tokens + run.generator.max_new_tokens <= run.token_budget


def test_rlvr_differs_from_r_align_in_the_reward_alone():
    ours, theirs = recipe_run("rlvr_14b"), recipe_run("r_align_14b")
    assert (ours.algo.reward, theirs.algo.reward) == ("label", "r_align")
    ours.name, ours.algo.reward = theirs.name, theirs.algo.reward
    assert ours == theirs


@pytest.mark.parametrize("name", NAMES)
def test_without_gpus_a_recipe_says_what_it_needs(name, monkeypatch, capsys):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(
        UserError, match=f"{name} needs 8 x h[12]00 .* recipes/{name}.py data.train=pairs.jsonl"
    ):
        importlib.import_module(f"ralign.recipes.{name}").main(["metarm.base_url=http://localhost:1/v1"])
    assert "optimizer" in capsys.readouterr().err  # the table of what it needs


@pytest.fixture
def smoke(tmp_path, monkeypatch):
    """smoke(name, overrides): (run that would be trained on 2 processes, prompts of its policy's own training)."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    runs, prompts, train_tiny_model = [], {}, tiny_sft.train_tiny_model

    def train_one_step(folder, examples, **options):
        if folder.name == "metarm.part":  # no request reaches it here
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{}")
            return
        prompts["policy"] = [prompt for prompt, _ in examples]
        train_tiny_model(folder, examples, **(options | {"num_steps": 1}))

    monkeypatch.setattr(tiny_sft, "train_tiny_model", train_one_step)
    monkeypatch.setattr(r_align_32b, "train", runs.append)

    def start_smoke(name, *overrides):
        importlib.import_module(f"ralign.recipes.{name}").main(["--smoke", f"out={tmp_path}", *overrides])
        return runs.pop(), prompts["policy"]

    return start_smoke


@pytest.mark.parametrize("name", NAMES)
def test_each_miniature_is_valid_fits_and_asks_in_the_chat_that_its_policy_was_trained_on(smoke, name):
    run, trained_prompts = smoke(name)
    assert run.name == f"{name}_smoke" and run.parallel.tensor == 2 and run.data.chat
    assert run.algo.reward == recipe_run(name).algo.reward and run.metarm.kind == "managed"
    assert Path(run.metarm.model).parts[-2:] == (f"{name}_smoke_models", "metarm")
    ppo, _ = smoke(name, "algo.advantages=gae")
    assert (run.has_critic, ppo.has_critic) == (False, True)
    for planned in (run, ppo):
        assert plan(planned, 2, CHIPS["h100"], Constants(), search=False)["problems"] == []

    tokenizer = AutoTokenizer.from_pretrained(run.model.hf_path)
    world, template = build_judgeworld(run.data.world), load_template(run.data.template)
    for split in ("train", "unbiased"):
        assert encode(world[split], tokenizer, template, run.data.max_prompt_tokens, chat=True)[1] == 0
    examples, _ = encode(world["warm_start"], tokenizer, template, 1000, chat=True)
    asked = [tokenizer.decode(example.prompt_ids) for example in examples]
    assert asked == trained_prompts and all("<assistant>" in text for text in asked)


@pytest.mark.slow
def test_in_miniature_the_same_code_trains_with_a_judge_of_its_own(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(ROOT / "recipes" / "r_align_8b.py"), "--smoke", f"out={tmp_path}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    folder = tmp_path / "r_align_8b_smoke"
    steps = [json.loads(line) for line in (folder / "r_align" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 2 and all(math.isfinite(step["policy/loss"]) for step in steps)
    outcomes = Counter(
        json.loads(line)["outcome"]
        for path in (folder / "r_align" / "rollouts").glob("*.jsonl")
        for line in path.read_text().splitlines()
    )
    read, failed = outcomes["Correct"] + outcomes["Incorrect"], outcomes["CallFail"] + outcomes["ParseFail"]
    assert read > 0 and outcomes["CallFail"] == 0, outcomes
    assert sum(step["judge/num_asked"] for step in steps) == read + failed
    assert sum(step["judge/num_failed"] for step in steps) == failed
    assert (folder / "judge_server.log").stat().st_size > 0
    summary = json.loads((folder / "report" / "summary.json").read_text())
    assert list(summary["models"]) == ["base", "r_align"]
