"""docs/check.md shows what the code prints: the samples of stubbed machines, line by line."""

import re
from pathlib import Path

import pytest
from ralign.engine.check import cli
from ralign.engine.check.report import as_text
from ralign.engine.config.command_line import parse
from ralign.engine.planner.cli import recipe_run

DOCS = Path(__file__).resolve().parents[3] / "docs" / "check.md"
RIGHT, WRONG = "sk-right-0123456789", "sk-wrong-9876543210"


@pytest.fixture
def printed(tmp_path, monkeypatch, machine_with, old_driver, qwen3_folder, pairs_file, judge_server):
    """What the command prints in a situation that the page shows."""
    situations = {
        "8 x H100": {"env": {"OPENAI_API_KEY": RIGHT}},
        "driver 550": {"env": {"OPENAI_API_KEY": RIGHT}} | old_driver,
        "no /dev/shm": {"env": {"OPENAI_API_KEY": RIGHT}, "shared_memory": None},
        "wrong key": {"env": {"OPENAI_API_KEY": WRONG}},
    }
    monkeypatch.chdir(tmp_path)
    qwen3_folder(tmp_path)
    pairs_file(tmp_path / "pairs.jsonl", 2000)
    url = judge_server().url

    def report(situation: str) -> str:
        settings = ["data.train=pairs.jsonl", f"metarm.base_url={url}"]
        run = parse(recipe_run("r_align_8b"), settings)
        text = as_text(cli.findings(run, "r_align_8b", machine_with(**situations[situation])))
        return text.replace(url, "http://judge:8000/v1")

    return report


def without_figures(text: str) -> str:
    """Without what other files decide: the plan's words and figures, and the number of packages."""
    text = re.sub(r"^OK +plan .*", "OK plan", text, flags=re.MULTILINE)
    return re.sub(r"^OK( +packages +the) \d+", r"OK\1 N", text, flags=re.MULTILINE)


@pytest.mark.parametrize("situation", ["8 x H100", "driver 550", "no /dev/shm", "wrong key"])
def test_a_sample_is_what_the_code_prints(situation, printed):
    blocks = re.findall(r"```text\n(.*?)\n```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    text = printed(situation)
    assert without_figures(text) in [without_figures(block) for block in blocks], text
