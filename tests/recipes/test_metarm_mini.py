"""The miniature MetaRM's recipe, cut short: it writes a model that servers of chat models can serve."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ralign.engine.runtime.errors import UserError
from ralign.recipes import metarm_mini

RECIPE = Path(__file__).parents[2] / "recipes" / "metarm_mini.py"


def run_recipe(*argv: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(RECIPE), *argv], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_it_writes_a_model_with_a_plain_chat_template(tmp_path):
    done = run_recipe(f"out={tmp_path}", "num_steps=2", "num_test=0", "model.num_layers=1", "batch_size=4")
    assert done.returncode == 0, done.stderr[-3000:]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    chat = [{"role": "user", "content": "Golden:\nA is wrong"}]
    shown = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert shown == "Golden:\nA is wrong"
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["num_hidden_layers"] == 1
    assert (tmp_path / "hf" / "model.safetensors").stat().st_size > 0


def test_impossible_settings_are_refused(tmp_path):
    for override in ("num_steps=0", "batch_size=0"):
        name = override.partition("=")[0]
        with pytest.raises(UserError, match=f"{name} must be at least 1, got 0"):
            metarm_mini.main([f"out={tmp_path}", override])
    assert list(tmp_path.iterdir()) == []
