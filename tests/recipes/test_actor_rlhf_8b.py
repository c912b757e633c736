"""The 8B actor: what it asks for, and in miniature PPO with a critic, paid by a server of its own."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ralign.engine.planner.cli import recipe_run
from ralign.engine.runtime.errors import UserError
from ralign.recipes import actor_rlhf_8b

pytestmark = pytest.mark.usefixtures("two_gpus")  # on a GPU machine; on a CPU nothing is needed

ROOT = Path(__file__).parents[2]


def test_the_planner_reads_it_and_its_samples_fit_a_micro_batch():
    run = recipe_run("actor_rlhf_8b")
    assert run.has_critic and run.actor.scheme == "reference"
    assert run.data.max_prompt_tokens + run.generator.max_new_tokens <= run.token_budget


def test_without_a_judge_or_gpus_it_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match="genrm.model is missing"):
        actor_rlhf_8b.main([])
    with pytest.raises(UserError, match="actor_rlhf_8b needs 8 x h100"):
        actor_rlhf_8b.main(["genrm.model=org/name"])
    assert "critic_optimizer" in capsys.readouterr().err


@pytest.mark.slow
def test_in_miniature_an_actor_and_a_critic_are_trained_by_a_judge_of_the_jobs_own(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(ROOT / "recipes" / "actor_rlhf_8b.py"), "--smoke", f"out={tmp_path}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    folder = tmp_path / "actor_rlhf_8b_smoke"
    first, second = (
        json.loads(line) for line in (folder / "actor" / "metrics.jsonl").read_text().splitlines()
    )
    assert "policy/loss" not in first and math.isfinite(first["critic/loss"])  # the critic's warm-up
    assert math.isfinite(second["policy/loss"]) and second["judge/num_calls"] == 16
    assert 0 <= second["actor/win_rate"] <= 1
    wins = json.loads((folder / "report" / "summary.json").read_text())["win_rate"]
    assert list(wins) == ["start", "actor"]
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(wins)
    assert "GenRM (managed)" in done.stdout + done.stderr
