"""What ralign-submit hands to sbatch, and what it refuses."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from ralign.engine.runtime.errors import UserError
from ralign.engine.slurm import notice, submit

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "recipes" / "slurm" / "train.sbatch"


def dry_run(capsys, *argv: str) -> list[str]:
    submit._main(["--dry-run", *argv])
    lines = capsys.readouterr().out.splitlines()
    assert any("srun --kill-on-bad-exit" in line for line in lines)  # it shows the script too
    return shlex.split(lines[0])


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_nodes_and_gpus_become_tasks(capsys):
    words = dry_run(capsys, "r_align_mini", "--nodes", "4", "optim.lr=1e-6", "--time", "1-00:00:00")
    assert {"--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--time=1-00:00:00"} <= set(words)
    assert {"--requeue", "--signal=B:USR1@1200", f"--chdir={ROOT}"} <= set(words)
    assert {"--cpus-per-task=8", "--mem=0"} <= set(words)  # a GPU's CPUs, and all of the node's memory
    assert words[-3:] == [str(SCRIPT), str(ROOT / "recipes" / "r_align_mini.py"), "optim.lr=1e-6"]


def test_cpus_and_memory_of_a_part_of_a_node(capsys):
    words = dry_run(capsys, "r_align_mini", "--nodes=1", "--gpus=2", "--cpus-per-task=12", "--mem=200G")
    assert {"--cpus-per-task=12", "--mem=200G", "--gpus-per-node=2"} <= set(words)


def test_cpu_nodes_take_a_task_each_and_flags_follow_two_dashes(capsys):
    words = dry_run(capsys, "--nodes=2", "--gpus=0", "recipes/r_align_mini.py", "--", "seed=3", "--smoke")
    assert "--ntasks-per-node=1" in words
    assert not any(name in word for name in ("gpus", "cpus", "--mem") for word in words)
    assert words[-2:] == ["seed=3", "--smoke"]


def test_seeds_make_an_array_of_named_runs(capsys):
    words = dry_run(capsys, "r_align_mini", "--nodes=1", "--seeds=0-3", "name=paper")
    assert "--array=0-3" in words and "RALIGN_NAME=paper" in words
    assert any(word.startswith("--output=") and "%A_%a" in word for word in words)


@pytest.mark.parametrize("given", [["name=foo"], ["--name=foo"], ["--name", "foo"], ["name=x", "--name=foo"]])
def test_the_name_of_an_array_counts_in_every_spelling(capsys, given):
    words = dry_run(capsys, "r_align_mini", "--nodes=1", "--seeds=0-1", "--", *given, "--smoke")
    assert "RALIGN_NAME=foo" in words and words[-1] == "--smoke"


def test_the_notice_covers_the_predicted_step_and_a_checkpoint(capsys):
    """Half as long again as 2,392 s (docs/scale.md's figure) and 12 bytes a parameter at 1 GB/s."""
    submit._main(["--dry-run", "r_align_32b", "--nodes=1", "--gpu=h200", "--time=1-0"])
    shown = capsys.readouterr()
    needed_s = 2392 + 12 * 32.8
    seconds = int(re.search(r"--signal=B:USR1@(\d+)", shown.out)[1])
    assert seconds == pytest.approx(1.5 * needed_s, abs=120) and seconds % 60 == 0
    assert "a step of 40 minutes" in shown.err and "8 x h200" in shown.err and "warning" not in shown.err


@pytest.mark.parametrize("options", [["--warn-minutes=20"], ["--time=01:00:00"]])
def test_a_notice_shorter_than_a_step_is_pointed_out(capsys, options):
    submit._main(["--dry-run", "r_align_32b", "--nodes=1", "--gpu=h200", *options])
    shown = capsys.readouterr()
    assert "warning: a notice of" in shown.err and "shorter than a step of 40 minutes" in shown.err
    minutes = 20 if "--warn-minutes=20" in options else 30  # at most half of the time
    assert f"USR1@{60 * minutes} " in shown.out


def test_what_cannot_be_planned_gets_twenty_minutes(capsys, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise AssertionError('a file that is not a recipe is not imported')")
    for recipe, setting in ((str(script), "a=1"), ("r_align_32b", "model.hf_path=no/such/model")):
        words = dry_run(capsys, recipe, "--nodes=1", f"--script={SCRIPT}", setting)
        assert "--signal=B:USR1@1200" in words


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("1:30:00", 5400),
        ("2-0", 172800),
        ("1-2:30", 95400),
        ("1-0:0:5", 86405),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text, seconds):
    assert notice.limit_s(text) == seconds


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["r_align_mini", "--nodes=0"], "'0' is not a whole number"),
        (["no_such_recipe", "--nodes=1"], "recipe no_such_recipe: no such file"),
        (["r_align_mini", "--nodes=1", "--time=tomorrow"], "--time=tomorrow"),
        (["r_align_mini", "--nodes=1", "--seeds=a"], "--seeds=a"),
        (
            ["r_align_mini", "--nodes=1", "--gpus=-1"],
            "argument --gpus: '-1' is not a whole number of at least 0",
        ),
        (["r_align_mini", "--nodes=1", "--gpu=tpu"], "got 'tpu'"),
        (["r_align_mini", "--nodes=1", "--mem=much"], "--mem=much"),
        (["r_align_mini", "--nodes=1", "--cpus-per-task=0"], "'0' is not a whole number"),
        (
            ["r_align_mini", "--nodes=1", "--warn-minutes=0"],
            "argument --warn-minutes: '0' is not a finite number",
        ),
        (["r_align_mini", "--nodes=1", "--warn-minutes=1e-9"], "--warn-minutes=1e-09: expected more than 0"),
        (["r_align_mini", "--nodes=1", "--warn-minutes=1100"], "at most 1092"),
        (["r_align_mini", "--nodes=1", "--warn-minutes=nan"], "'nan' is not a finite number above 0"),
        (["r_align_mini", "--nodes=1", "--warn-minutes=inf"], "'inf' is not a finite number above 0"),
        (
            ["r_align_mini", "--nodes=1", "--max-restarts=-1"],
            "argument --max-restarts: '-1' is not a whole number",
        ),
        (["r_align_mini", "--nodes=1", f"--time={'9' * 5000}"], "expected [DAYS-]HH:MM:SS"),
        (
            ["r_align_mini", "--nodes=1", "--logs=README.md"],
            "cannot write into README.md: it is not a folder",
        ),
        (
            ["r_align_mini", "--nodes=1", "--logs=README.md/a"],
            "cannot write README.md/a: README.md is not a folder",
        ),
        (
            ["r_align_mini", "--nodes=1", "--script=/dev/zero"],
            "cannot read /dev/zero: it is not a regular file",
        ),
        (["README.md", "--nodes=1"], "recipe README.md: expected a Python file, whose name ends in .py"),
        (
            ["r_align_mini", "--nodes=1", "--seeds=0-1", "--", "--seed=3"],
            "--seeds=0-1 sets the seed of each run",
        ),
        (["r_align_mini", "--nodes=1", "--seeds=0-1", "--", "--seed", "3"], "leave out seed=3"),
        (
            ["r_align_mini", "--nodes=1", "--time=soon", "--seeds=a", "--mem=much", "lr"],
            "4 mistakes: --time=soon: expected [DAYS-]HH:MM:SS; --seeds=a: expected numbers and ranges, as in 0-3 or"
            " 0,2,5; --mem=much: expected a size, as in 500G, or 0; cannot read 'lr'",
        ),
        (["r_align_mini", "--nodes=1", "--time=20", "--warn-minutes=20"], "the time limit is 20 minutes"),
        (["r_align_mini", "--nodes=1", "optim.lr=fast"], "optim.lr=fast"),
        (["r_align_mini", "--nodes=1", "lr"], "cannot read 'lr'"),
        (["r_align_mini", "--nodes=1", "--script=nowhere.sbatch"], "nowhere.sbatch"),
        (["r_align_mini", "--nodes=1", "--script="], "cannot read .: it is a folder"),
        (["r_align_mini", "--nodes=1", "--mem=５G"], "--mem=５G: expected a size"),
        (["r_align_mini", "--nodes=1", "--seeds=０-3"], "--seeds=０-3: expected numbers"),
        (["r_align_mini", "--nodes=1", "--seeds=3-1"], "--seeds=3-1: expected numbers"),
        (["r_align_mini", "--nodes=1", "--seeds=0-99999999999999999999"], "expected numbers and ranges"),
        (["r_align_mini", "--nodes=1", "--seeds=0-3%0"], "--seeds=0-3%0: expected numbers"),
        (["r_align_mini", "--nodes=1", "--partition="], "--partition='': expected a name"),
        (["r_align_mini", "--nodes=1", "--partition=a; rm -rf b"], "--partition='a; rm -rf b': expected a"),
        (["r_align_mini", "--nodes=1", "--account=-x"], "--account='-x': expected a name"),
        (["r_align_mini", "--nodes=1", "--qos=\x1b[31m"], r"--qos='\x1b[31m': expected a name"),
        (["r_align_mini", "--nodes=1", "--sbatch="], "--sbatch='': expected an option of sbatch"),
        # sbatch would take the word for its script
        (["r_align_mini", "--nodes=1", "--sbatch=run.sh"], "--sbatch='run.sh': expected an option of sbatch"),
        (["r_align_mini"], "--nodes"),
    ],
)
def test_mistakes_are_named(argv, named):
    with pytest.raises(UserError, match=re.escape(named)):
        submit._main(["--dry-run", *argv])


@pytest.mark.parametrize(
    ("sbatch", "message"),
    [
        ("echo no such partition >&2; exit 1", "sbatch refused the job: no such partition"),
        ("exit 0", "sbatch refused the job: "),
        (r"printf '\377\033[31m' >&2; exit 1", r"sbatch refused the job: \xff\x1b[31m"),
    ],
)
def test_what_sbatch_answers_is_one_line(tmp_path, monkeypatch, capsys, sbatch, message):
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\n{sbatch}\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(sys, "argv", ["", "r_align_mini", "--nodes=1", f"--logs={tmp_path}/logs"])
    with pytest.raises(SystemExit):
        submit.main()
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}".strip()


def test_options_of_sbatch_are_passed_on_with_their_values(capsys):
    words = dry_run(capsys, "r_align_mini", "--nodes=1", "--sbatch=-w", "--sbatch=n1", "--sbatch=--wait")
    assert words[words.index("-w") : words.index("-w") + 3] == ["-w", "n1", "--wait"]


def test_a_remark_has_no_character_that_a_terminal_obeys(capsys):
    submit._main(["--dry-run", "r_align_32b", "--nodes=1", "model.hf_path=\x1b[31m"])
    remarks = [line for line in capsys.readouterr().err.splitlines() if "no prediction" in line]
    assert len(remarks) == 1 and r"\x1b[31m" in remarks[0] and remarks[0].isprintable()


def test_without_slurm_it_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="sbatch is not installed here"):
        submit._main(["r_align_mini", "--nodes=1"])
