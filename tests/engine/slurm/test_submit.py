"""What ralign-submit hands to sbatch, and what it refuses."""

import shlex
from pathlib import Path

import pytest
from ralign.engine.errors import UserError
from ralign.engine.slurm import submit

ROOT = Path(__file__).parents[3]


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
    assert words[-3:] == ["recipes/slurm/train.sbatch", "recipes/r_align_mini.py", "optim.lr=1e-6"]


def test_cpu_nodes_take_a_task_each_and_flags_follow_two_dashes(capsys):
    words = dry_run(capsys, "--nodes=2", "--gpus=0", "recipes/r_align_mini.py", "--", "seed=3", "--smoke")
    assert "--ntasks-per-node=1" in words and not any("gpus" in word for word in words)
    assert words[-2:] == ["seed=3", "--smoke"]


def test_seeds_make_an_array_of_named_runs(capsys):
    words = dry_run(capsys, "r_align_mini", "--nodes=1", "--seeds=0-3", "name=paper")
    assert "--array=0-3" in words and "RALIGN_NAME=paper" in words
    assert any(word.startswith("--output=") and "%A_%a" in word for word in words)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["r_align_mini", "--nodes=0"], "'0' is not a whole number"),
        (["no_such_recipe", "--nodes=1"], "no recipe no_such_recipe"),
        (["r_align_mini", "--nodes=1", "--time=tomorrow"], "--time=tomorrow"),
        (["r_align_mini", "--nodes=1", "--seeds=a"], "--seeds=a"),
        (["r_align_mini", "--nodes=1", "--gpus=-1"], "--gpus=-1"),
        (["r_align_mini", "--nodes=1", "lr"], "cannot read 'lr'"),
        (["r_align_mini", "--nodes=1", "--script=nowhere.sbatch"], "nowhere.sbatch"),
        (["r_align_mini"], "--nodes"),
    ],
)
def test_mistakes_are_named(argv, named):
    with pytest.raises(UserError, match=named.replace("(", r"\(")):
        submit._main(["--dry-run", *argv])


def test_without_slurm_it_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="sbatch is not installed here"):
        submit._main(["r_align_mini", "--nodes=1"])
