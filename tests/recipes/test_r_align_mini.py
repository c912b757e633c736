"""The demo's recipe, cut short, under real torchrun: same code, same files, same answers twice."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ralign.engine.runtime.errors import UserError
from ralign.recipes import r_align_mini

pytestmark = pytest.mark.usefixtures("two_gpus")  # on a GPU machine; on a CPU nothing is needed

ROOT = Path(__file__).parents[2]
SHORT = [
    "sft.num_steps=4", "sft.competence=0", "num_steps=2", "algo.num_prompts=4", "algo.num_samples=4",
    "eval.num_pairs=16", "data.world.num_train=400", "data.world.num_dev=8", "data.world.num_test=16",
    "rollouts_every=1", "generator.max_new_tokens=24", "eval.max_new_tokens=24",
]  # fmt: skip


def run_recipe(out: Path, *overrides: str, num_processes: int = 2) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={num_processes}",
    ]
    return subprocess.run(
        [*command, str(ROOT / "recipes" / "r_align_mini.py"), f"out={out}", *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )


def without_times(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time_s/", "memory/"))} for line in lines]


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory) -> list[Path]:
    folders = []
    for number in range(2):
        out = tmp_path_factory.mktemp(f"run{number}")
        done = run_recipe(out, *SHORT)
        assert done.returncode == 0, done.stderr[-4000:]
        assert "S-Corr" in done.stdout and "R-Align" in done.stdout, "the summary is on the terminal"
        folders.append(out / "r_align_mini")
    return folders


@pytest.mark.jobs
def test_the_same_seed_gives_the_same_metrics(two_runs):
    for stage, num_steps in (("sft", 4), ("rlvr", 2), ("r_align", 2)):
        first, second = (without_times(folder / stage / "metrics.jsonl") for folder in two_runs)
        assert len(first) == num_steps
        assert first == second, stage


@pytest.mark.jobs
def test_the_run_folder_keeps_its_contract(two_runs):
    folder = two_runs[0]
    summary = json.loads((folder / "report" / "summary.json").read_text())
    assert list(summary["models"]) == ["sft", "rlvr", "rlvr_twins", "r_align", "r_align_twins"]
    for tests in summary["models"].values():
        assert list(tests) == ["in_distribution", "unbiased", "adversarial"]
        assert all(result["num_pairs"] == 16 for result in tests.values())
        assert all(list(result["flip_rate"]) == ["cues"] for result in tests.values())
    for name in ("index.html", "judgments.png", "training.png"):
        assert (folder / "report" / name).stat().st_size > 1000
    assert (folder / "config.json").exists()
    rollouts = (folder / "r_align" / "rollouts" / "step00001.jsonl").read_text().splitlines()
    assert len(rollouts) == 16
    steps = [json.loads(line) for line in (folder / "r_align" / "metrics.jsonl").read_text().splitlines()]
    for step in steps:
        assert math.isfinite(step["policy/loss"]) and math.isfinite(step["policy/grad_norm"])
        assert step["policy/ratio_min"] == step["policy/ratio_max"] == 1.0  # one update a step: on-policy
        parts = sum(
            value for name, value in step.items() if name.startswith("time_s/") and name != "time_s/total"
        )
        assert parts == pytest.approx(step["time_s/total"], rel=1e-6)


@pytest.mark.jobs
def test_every_arm_runs(tmp_path):
    names = ["shuffled", "flipped_20", "sft_golden", "r_align_coupled"]
    done = run_recipe(
        tmp_path,
        *SHORT,
        f"arms={','.join(names)}",
        "sft.num_steps=250",
        "sft.num_samples=16",
        num_processes=1,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    summary = json.loads((tmp_path / "r_align_mini" / "report" / "summary.json").read_text())
    assert list(summary["models"]) == ["sft", *names]
    steps = {name: without_times(tmp_path / "r_align_mini" / name / "metrics.jsonl") for name in names}
    assert all(len(found) == 2 for found in steps.values())
    assert "reward/twin_consistency" in steps["r_align_coupled"][0]


@pytest.mark.jobs
def test_both_rl_runs_start_from_the_same_weights_and_samples(two_runs):
    label, aligned = (without_times(two_runs[0] / name / "metrics.jsonl")[0] for name in ("rlvr", "r_align"))
    assert label["judge/l_acc"] == aligned["judge/l_acc"]
    assert label["policy/entropy"] == aligned["policy/entropy"]


def make_pairs_file(path: Path, num_pairs: int) -> None:
    with path.open("w") as file:
        for n in range(num_pairs):
            record = {
                "id": f"pair-{n}",
                "source": "test",
                "conversations": [{"role": "user", "content": f"What is {n} plus one? Answer shortly."}],
                "response_A": f"It is {n + 1}.",
                "response_B": f"It is {n + 2}, naïvely – 🙂.",
                "gt_label": "A",
                "gt_judgment": f"The sum is {n + 1}; B is wrong. \\boxed{{A}}",
            }
            file.write(json.dumps(record) + "\n")


@pytest.mark.jobs
def test_any_pairs_file_trains_with_the_label_reward(tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    make_pairs_file(pairs, 24)
    done = run_recipe(
        tmp_path, f"data.train={pairs}", "num_steps=2", "generator.max_new_tokens=16", num_processes=1
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "2 steps on" in done.stdout and "no verdict in" in done.stdout
    steps = without_times(tmp_path / "pairs_file" / "rlvr" / "metrics.jsonl")
    assert len(steps) == 2 and all(math.isfinite(step["policy/loss"]) for step in steps)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optim.lr=fast", "optim.lr=fast: expected a number"),
        ("optim.rate=1", "unknown setting optim.rate=1"),
        ("parallel.tensor=3", "parallel.tensor"),
        ("generator.top_p=0.9", "generator.top_p must be 1"),
        ("data.train=missing.jsonl", "data.train=missing.jsonl: no such file"),
        ("judge.metarm=none", "judge.metarm is now metarm.kind: give metarm.kind=none"),
    ],
)
def test_mistakes_are_refused_before_anything_is_built(tmp_path, monkeypatch, override, named):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match=named):
        r_align_mini.main([override, f"out={tmp_path}"])
    assert list(tmp_path.iterdir()) == []


def test_pairs_that_a_rule_cannot_audit_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    pairs = tmp_path / "pairs.jsonl"
    make_pairs_file(pairs, 3)
    with pytest.raises(UserError, match="metarm.kind=rule is for JudgeWorld only"):
        r_align_mini.main([f"data.train={pairs}", "metarm.kind=rule", f"out={tmp_path}/runs"])


def test_a_bad_line_of_a_pairs_file_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    pairs = tmp_path / "pairs.jsonl"
    make_pairs_file(pairs, 3)
    with pairs.open("a") as file:
        file.write("not json\n")
    with pytest.raises(UserError, match=f"{pairs}:4"):
        r_align_mini.main([f"data.train={pairs}", f"out={tmp_path}/runs"])
    assert not (tmp_path / "runs").exists()


def test_the_program_ends_a_mistake_with_one_line_and_status_2(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "r_align_mini.py"), "optim.lr=fast", f"out={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: optim.lr=fast: expected a number\n"
