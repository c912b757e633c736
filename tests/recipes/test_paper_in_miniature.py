"""The paper's recipe, cut short: every stage once, from nothing to the report."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "recipes" / "paper_in_miniature.py")
_WORLD = ["num_train=400", "num_dev=8", "num_test=16"]
SHORT = [
    "budgets=1,2", "judges.sft.num_steps=4", "judges.algo.num_prompts=4", "judges.algo.num_samples=4",
    "judges.eval.num_pairs=16", "judges.generator.max_new_tokens=24", "judges.eval.max_new_tokens=24",
    "actors.sft.num_steps=4", "actors.num_steps=2", "actors.algo.num_prompts=4", "actors.algo.num_samples=4",
    "actors.eval.num_pairs=16", "actors.generator.max_new_tokens=24", "actors.eval.max_new_tokens=24",
    "actors.judge.max_new_tokens=16", "actors.actor.watch_every=1", "actors.rollouts_every=1",
    # A model that answers nothing readable learns from this alone.
    "judges.algo.entropy_coef=0.01", "actors.algo.entropy_coef=0.01",
    *(f"{who}.data.world.{size}" for who in ("judges", "actors") for size in _WORLD),
]  # fmt: skip


def start(*command: str, timeout_s: float = 100) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def test_all_stages_from_nothing_to_the_report(tmp_path):
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", SCRIPT)
    done = start(*command, f"out={tmp_path}", *SHORT, timeout_s=500)
    assert done.returncode == 0, done.stderr[-4000:]
    folder = tmp_path / "paper_in_miniature"
    summary = json.loads((folder / "report" / "summary.json").read_text())
    judges = ["sft", "rlvr_1", "rlvr_2", "r_align_1", "r_align_2"]
    assert list(summary["models"]) == judges
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
    # The judges' weights, five of them, were checked after the actors' training.
    assert (done.stdout + done.stderr).count("the GenRM's weights are as they were: checksum") == 5


def test_a_mistake_ends_with_one_line_and_status_2(tmp_path):
    for override, named in (
        ("budgets=5,3", "budgets must rise"),
        ("budgets=1,x", "expected a whole number, or several with commas between"),
        ("actors.algo.num_prompts=0", "num_prompts"),
    ):
        done = start(SCRIPT, override, f"out={tmp_path}")
        assert done.returncode == 2 and named in done.stderr.strip().splitlines()[-1], done.stderr[-500:]
