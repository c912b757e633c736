"""The Qwen3 recipes: their settings, what they refuse, and one in miniature with a judge that it serves itself."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ralign.engine.planner.cli import recipe_run

ROOT = Path(__file__).parents[2]
NAMES = ["r_align_8b", "r_align_14b", "rlvr_14b"]


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


@pytest.mark.slow
def test_in_miniature_the_same_code_trains_with_a_judge_of_its_own(tmp_path):
    done = start("r_align_8b", "--smoke", f"out={tmp_path}", num_processes=2, timeout_s=580)
    assert done.returncode == 0, done.stderr[-4000:]
    folder = tmp_path / "r_align_8b_smoke"
    steps = [json.loads(line) for line in (folder / "r_align" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 2 and all(math.isfinite(step["policy/loss"]) for step in steps)
    assert sum(step["judge/num_asked"] for step in steps) > 0
    assert (folder / "judge_server.log").stat().st_size > 0
    summary = json.loads((folder / "report" / "summary.json").read_text())
    assert list(summary["models"]) == ["base", "r_align"]
