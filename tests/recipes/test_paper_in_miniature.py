"""The paper's recipe, cut short: every stage once, from nothing to the report."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ralign.engine.runtime.errors import UserError
from ralign.recipes import paper_in_miniature

pytestmark = pytest.mark.usefixtures("two_gpus")  # on a GPU machine; on a CPU nothing is needed

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "recipes" / "paper_in_miniature.py")
_WORLD = ["num_train=400", "num_dev=8", "num_test=16"]
SHORT = [
    "budgets=1,2", "judges.sft.num_steps=4", "judges.algo.num_prompts=4", "judges.algo.num_samples=4",
    "judges.eval.num_pairs=16", "judges.generator.max_new_tokens=24", "judges.eval.max_new_tokens=24",
    "actors.sft.num_steps=4", "actors.num_steps=2", "actors.algo.num_prompts=4", "actors.algo.num_samples=4",
    "actors.eval.num_pairs=16", "actors.generator.max_new_tokens=24", "actors.eval.max_new_tokens=24",
    "actors.genrm.max_new_tokens=16", "actors.actor.watch_every=1", "actors.rollouts_every=1",
    # A model that answers nothing readable learns from this alone.
    "judges.algo.entropy_coef=0.01", "actors.algo.entropy_coef=0.01",
    *(f"judges.data.world.{size}" for size in _WORLD),
]  # fmt: skip


def start(*command: str, timeout_s: float = 100) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


@pytest.mark.jobs
def test_all_stages_from_nothing_to_the_report(tmp_path):
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", SCRIPT)
    done = start(*command, f"out={tmp_path}", *SHORT, timeout_s=500)
    assert done.returncode == 0, done.stderr[-4000:]
    folder = tmp_path / "paper_in_miniature"
    summary = json.loads((folder / "report" / "summary.json").read_text())
    judges = ["sft", "rlvr_1", "rlvr_2", "r_align_1", "r_align_2"]
    assert list(summary["models"]) == judges
    assert "S-Corr" in done.stdout and "trained against" in done.stdout and "none (warm start)" in done.stdout
    assert list(summary["actors"]) == ["start", *(f"by_{name}" for name in judges)]
    # Judges of the same method at two budgets are two models, and every actor has its own curve.
    weights = {
        name: (folder / "judges" / method / part / "model-stage00-00000.safetensors").read_bytes()
        for name, method, part in (("1", "rlvr", "hf_1"), ("2", "rlvr", "hf_2"), ("end", "rlvr", "hf"))
    }
    assert weights["1"] != weights["2"] == weights["end"]
    for name in judges:
        assert [step["step"] for step in summary["actors"][f"by_{name}"]["steps"]] == [1, 2]
    page = (folder / "report" / "index.html").read_text()
    assert page.count("data:image/png") == 3 and "by_r_align_2, step00002" in page
    # An opinion comes with the number of comparisons behind it; these judges know no verdict yet.
    actor = summary["actors"]["by_sft"]
    assert 0 <= actor["num_decided"] <= actor["num_compared"] == 16
    # Who is resident when is told once, with the judge that shares the device.
    assert (done.stdout + done.stderr).count("GenRM (process)") == 1
    # The judges' weights, five of them, were checked after the actors' training.
    assert (done.stdout + done.stderr).count("the GenRM's weights are unchanged: checksum") == 5


@pytest.mark.slow
def test_actors_learn_by_ppo_from_judges_that_did_not(tmp_path):
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", SCRIPT)
    ppo = ["budgets=1", "actors.algo.advantages=gae", "actors.critic.warmup_steps=1"]
    done = start(*command, f"out={tmp_path}", *SHORT, *ppo, timeout_s=500)
    assert done.returncode == 0, done.stderr[-4000:]
    folder = tmp_path / "paper_in_miniature"
    judge, actor = (
        [json.loads(line) for line in (folder / part / "metrics.jsonl").read_text().splitlines()]
        for part in ("judges/r_align", "actors/by_r_align_1")
    )
    assert "critic/loss" not in judge[0]
    first, second = actor
    assert "policy/loss" not in first and math.isfinite(second["policy/loss"])
    assert all(math.isfinite(step["critic/loss"]) for step in actor)
    for step in actor:  # the ledger of the actors' phases, not of the judges'
        assert 0 < step["memory/critic_held_gib"] <= step["memory/critic_held_predicted_gib"]
    assert (folder / "actors" / "by_r_align_1" / "critic_hf" / "config.json").is_file()
    # The same command finds everything done, the critic's checkpoints among it.
    again = start(*command, f"out={tmp_path}", *SHORT, *ppo, timeout_s=500)
    assert again.returncode == 0, again.stderr[-4000:]
    assert (again.stdout + again.stderr).count("is complete with these settings") == 2
    assert len((folder / "actors" / "by_r_align_1" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("budgets=5,3", "budgets must rise"),
        ("budgets=1,x", "expected a whole number, or several with commas between"),
        ("actors.algo.num_prompts=0", "actors: algo.num_prompts"),
        ("actors.model.num_layers=2", "judges.model.num_layers=4"),
        ("judges.judge.metarm=none", "judges.judge.metarm is now judges.metarm.kind"),
    ],
)
def test_mistakes_are_refused_before_anything_is_built(tmp_path, monkeypatch, override, named):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match=named):
        paper_in_miniature.main([override, f"out={tmp_path}"])
    assert list(tmp_path.iterdir()) == []
