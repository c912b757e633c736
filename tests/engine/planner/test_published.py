"""docs/scale.md's section on published runs shows what `ralign-plan` prints today."""

import shlex
from pathlib import Path

import pytest
from published_runs import RUNS, command, comparison, terms
from ralign.engine.planner import cli

DOC = (Path(__file__).resolve().parents[3] / "docs" / "scale.md").read_text(encoding="utf-8")
SECTION = DOC.split("## The plan against a published run\n")[1].split("\n## ")[0]
BLOCKS = SECTION.split("```\n")[1::2]  # the fenced ones
AGAIN = "print it again: python benchmarks/published_runs.py"


def test_the_printed_comparison_is_the_planner_s():
    assert comparison() in SECTION, AGAIN


def test_the_printed_commands_give_the_printed_figures(capsys):
    """The commands as a reader copies them, run in this process."""
    commands, table = BLOCKS
    assert commands == "\n\n".join(map(command, RUNS)) + "\n", AGAIN
    printed = []
    for text in commands.split("\n\n"):
        name, *argv = shlex.split(text.replace("\\\n", " "))
        assert name == "ralign-plan"
        cli.main(argv)  # a layout that does not fit would raise
        printed.append(capsys.readouterr().out)
    assert table in printed[0], AGAIN
    for run, output in zip(RUNS, printed, strict=True):
        assert terms(run) in output
        for layout in (run.report["layout"], run.report["best"][0]):
            assert cli.terms_table(layout) in output


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.source)
def test_the_plan_is_asked_for_the_published_case(run):
    layout = run.report["layout"]
    cut = (layout["tensor"], layout["pipeline"], layout["context"], layout["generate_tensor"])
    assert cut == (run.tensor, run.pipeline, 1, run.generate_tensor)
    assert layout["data"] * run.tensor * run.pipeline == run.num_gpus and not run.report["problems"]
    # 2,048 samples of the published length and the prompt, in the predicted time.
    tokens = layout["tokens_per_s_per_gpu"] * layout["time_s"]["total"] * run.num_gpus
    assert tokens == pytest.approx(2048 * (104 + run.mean_new_tokens))
    if run.tokens_per_s_per_gpu is not None:
        published = run.tokens_per_s_per_gpu * run.total_s * run.num_gpus
        assert published == pytest.approx(tokens, rel=2e-3)  # both figures are rounded
