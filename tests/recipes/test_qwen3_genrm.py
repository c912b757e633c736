"""The Qwen3 recipes: their settings, what they refuse, and one in miniature with a judge that it serves itself."""

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
from ralign.recipes.common import tiny_sft as taught
from transformers import AutoTokenizer

pytestmark = pytest.mark.usefixtures("two_gpus")  # on a GPU machine; on a CPU nothing is needed

ROOT = Path(__file__).parents[2]
NAMES = ["r_align_8b", "r_align_14b", "r_align_32b", "rlvr_14b"]


def start(
    name: str, *argv: str, num_processes: int = 0, timeout_s: float = 100
) -> subprocess.CompletedProcess:
    command = [sys.executable]
    if num_processes:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    return subprocess.run(
        [*command, str(ROOT / "recipes" / f"{name}.py"), *argv],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


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


def test_without_gpus_a_recipe_says_what_it_needs():
    done = start("r_align_8b", "judge.base_url=http://localhost:1/v1")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "needs 8 x h100" in done.stderr.strip().splitlines()[-1]


@pytest.fixture
def smoke(tmp_path, monkeypatch):
    """smoke(name, overrides): (run that would be trained on 2 processes, prompts that its policy was taught)."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    import qwen3_genrm

    runs, prompts, teach = [], {}, taught.teach

    def teach_a_step(folder, examples, **options):
        if folder.name == "judge.part":  # nobody asks it here
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{}")
            return
        prompts["policy"] = [prompt for prompt, _ in examples]
        teach(folder, examples, **(options | {"num_steps": 1}))

    monkeypatch.setattr(taught, "teach", teach_a_step)
    monkeypatch.setattr(qwen3_genrm, "train", runs.append)

    def start_smoke(name, *overrides):
        importlib.import_module(name).main(["--smoke", f"out={tmp_path}", *overrides])
        return runs.pop(), prompts["policy"]

    return start_smoke


@pytest.mark.parametrize("name", NAMES)
def test_each_miniature_is_valid_fits_and_is_asked_in_the_chat_that_its_policy_was_taught(smoke, name):
    run, taught_prompts = smoke(name)
    assert run.name == f"{name}_smoke" and run.parallel.tensor == 2 and run.data.chat
    assert run.algo.reward == recipe_run(name).algo.reward
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
    assert asked == taught_prompts and all("<assistant>" in text for text in asked)


@pytest.mark.slow
def test_in_miniature_the_same_code_trains_with_a_judge_of_its_own(tmp_path):
    done = start("r_align_8b", "--smoke", f"out={tmp_path}", num_processes=2, timeout_s=580)
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
