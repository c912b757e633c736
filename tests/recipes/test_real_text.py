"""The recipe on real text, cut short: the wiring of model, pairs, MetaRM, twins and report."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ralign.engine.runtime.errors import UserError
from ralign.recipes import real_text

ROOT = Path(__file__).parents[2]


@pytest.mark.jobs
def test_the_recipe_in_miniature(tmp_path):
    launch = [sys.executable, "-m", "ralign.engine.runtime.launch", "--standalone", "--nproc-per-node", "1"]
    done = subprocess.run(
        [*launch, str(ROOT / "recipes" / "real_text.py"), "--smoke", f"out={tmp_path}"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "S-Corr" in done.stdout and "Corpus " in done.stderr
    folder = tmp_path / "real_text_smoke"
    summary = json.loads((folder / "report" / "summary.json").read_text())
    assert list(summary["models"]) == ["sft", "rlvr", "r_align", "rlvr_twins", "r_align_twins"]
    assert all(list(tests) == ["unbiased", "adversarial"] for tests in summary["models"].values())
    for name in ("sft", "rlvr", "r_align", "rlvr_twins", "r_align_twins"):
        steps = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        assert steps and all(math.isfinite(step["policy/loss"]) for step in steps)


def test_without_the_model_one_line_tells_what_fetches_it(tmp_path, monkeypatch):
    monkeypatch.setattr(real_text, "MODEL", "no/such/folder")
    with pytest.raises(
        UserError, match="model.hf_path=no/such/folder: no such folder; make real fetches the model"
    ):
        real_text.main(["model.hf_path=no/such/folder", f"out={tmp_path}"])
    assert list(tmp_path.iterdir()) == []
