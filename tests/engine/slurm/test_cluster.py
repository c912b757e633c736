"""Jobs on a real SLURM of two nodes: ranks and logs, seeds, notice and requeue, a node that dies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TINY = [
    "sft.num_steps=3", "num_steps=8", "algo.num_prompts=4", "algo.num_samples=2", "eval.num_pairs=4",
    "data.world.num_train=64", "data.world.num_warm_start=64", "data.world.num_dev=8", "data.world.num_test=8",
    "generator.max_new_tokens=24", "eval.max_new_tokens=8", "rollouts_every=0", "model.num_layers=2",
    "algo.entropy_coef=0.01", "algo.kl_coef=0.05", "checkpoint_every=1",
]  # fmt: skip

# Stands for a recipe where only the batch script is under test.
STAND_IN = """
import os, signal, sys, time
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURMD_NODENAME")
restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
print(restart, *(os.environ[name] for name in names), *sys.argv[1:], flush=True)
asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
wanted = dict(word.split("=") for word in sys.argv[1:])
if wanted.get("until") == "asked" and not restart:
    while not asked:
        time.sleep(0.05)
    print("saved", flush=True)
if "status" in wanted and not (wanted.get("once") and restart):
    sys.exit(int(wanted["status"]))
"""


@pytest.fixture
def stand_in(tmp_path) -> Path:
    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN)
    return path


def submit(slurm, folder: Path, recipe: Path, *words: str, nodes: int = 2) -> str:
    """The job's number."""
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "ralign.engine.slurm.submit",
                str(recipe),
                f"--nodes={nodes}",
                "--gpus=0",
            ),
            *(f"--logs={folder / 'logs'}", f"--script={ROOT / 'recipes' / 'slurm' / 'train.sbatch'}", *words),
        ],
        env={**slurm.env, "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("Submitted batch job ")[1].split()[0]


def ended(slurm, job: str) -> bool:
    return slurm.job(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")


def logs_of(folder: Path, job: str) -> dict[str, list[list[str]]]:
    files = sorted((folder / "logs" / job).glob("rank*.log"))
    return {file.stem: [line.split() for line in file.read_text().splitlines()] for file in files}


def test_every_task_has_its_rank_its_log_and_the_first_nodes_address(slurm, stand_in, tmp_path):
    job = submit(slurm, tmp_path, stand_in, "--tasks=2", "a=1")
    slurm.wait_for(lambda: ended(slurm, job), "the job's end", 60)
    assert slurm.job(job)["JobState"] == "COMPLETED"
    logs = logs_of(tmp_path, job)
    assert list(logs) == ["rank0", "rank1", "rank2", "rank3"]
    lines = [logs[f"rank{rank}"][0] for rank in range(4)]
    assert [line[1] for line in lines] == ["0", "1", "2", "3"]
    assert [line[3] for line in lines] == ["0", "1", "0", "1"]
    assert [line[6] for line in lines] == ["n1", "n1", "n2", "n2"]
    assert all(line[2] == "4" and line[4] == "127.0.0.1" and line[7] == "a=1" for line in lines)
    assert len({line[5] for line in lines}) == 1


def test_seeds_are_runs_of_their_own(slurm, stand_in, tmp_path):
    job = submit(slurm, tmp_path, stand_in, "--seeds=3,5", nodes=1)
    slurm.wait_for(
        lambda: all((tmp_path / "logs" / f"{job}_{seed}" / "rank0.log").exists() for seed in (3, 5)),
        "both seeds",
        60,
    )
    slurm.wait_for(lambda: not slurm.run("squeue", "-h").strip(), "an empty queue", 60)
    for seed in (3, 5):
        (line,) = logs_of(tmp_path, f"{job}_{seed}")["rank0"]
        assert line[-2:] == [f"seed={seed}", f"name=stand_in_seed{seed}"]


def test_notice_saves_and_the_job_queues_itself_again(slurm, stand_in, tmp_path):
    job = submit(slurm, tmp_path, stand_in, "until=asked")
    slurm.wait_for(lambda: len(logs_of(tmp_path, job).get("rank1", [])) == 1, "two running tasks", 60)
    slurm.run("scancel", "--signal=USR1", "--batch", job)
    slurm.wait_for(lambda: ended(slurm, job), "the job's end", 90)
    assert slurm.job(job)["JobState"] == "COMPLETED" and slurm.job(job)["Restarts"] == "1"
    for lines in logs_of(tmp_path, job).values():
        assert lines[1] == ["saved"] and [line[0] for line in (lines[0], lines[2])] == ["0", "1"]


@pytest.mark.parametrize(
    ("words", "state", "restarts"),
    [
        (["status=2"], "FAILED", "0"),  # a user's mistake is not tried again
        (["status=70", "once=1"], "COMPLETED", "1"),  # a stall is
        (["status=1", "--max-restarts=1"], "FAILED", "1"),
    ],
)
def test_what_is_queued_again_after_a_failure(slurm, stand_in, tmp_path, words, state, restarts):
    job = submit(slurm, tmp_path, stand_in, *words)
    slurm.wait_for(lambda: ended(slurm, job), "the job's end", 90)
    assert (slurm.job(job)["JobState"], slurm.job(job)["Restarts"]) == (state, restarts)


def without_times(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time_s/", "memory/"))} for line in lines]


@pytest.mark.slow
def test_a_node_that_dies_costs_nothing_but_time(slurm, tmp_path):
    recipe = ROOT / "recipes" / "r_align_mini.py"
    folders = {name: tmp_path / name / "runs" / "r_align_mini" for name in ("whole", "cut")}
    jobs = {}
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        jobs[name] = job = submit(slurm, tmp_path / name, recipe, *TINY)
        if name == "cut":
            metrics = folders["cut"] / "rlvr" / "metrics.jsonl"
            slurm.wait_for(
                lambda path=metrics: path.exists() and path.read_text().count("\n") >= 4, "four steps", 240
            )
            slurm.kill_node("n2")
            slurm.wait_for(lambda job=job: slurm.job(job)["JobState"] == "PENDING", "a requeue", 90)
            slurm.start_node("n2")
        slurm.wait_for(lambda job=job: ended(slurm, job), f"the end of {name}", 300)
        assert slurm.job(job)["JobState"] == "COMPLETED", slurm.logs()
    assert slurm.job(jobs["cut"])["Restarts"] == "1"
    log = (tmp_path / "cut" / "logs" / jobs["cut"] / "rank0.log").read_text()
    assert "goes on with the interrupted run" in log and "rlvr goes on after step" in log
    for stage in ("sft", "rlvr", "r_align"):
        whole, cut = (without_times(folders[name] / stage / "metrics.jsonl") for name in ("whole", "cut"))
        assert whole == cut and len(whole) == (3 if stage == "sft" else 8), stage
        weights = [
            (folder / stage / "hf" / "model-stage00-00000.safetensors").read_bytes()
            for folder in folders.values()
        ]
        assert weights[0] == weights[1], stage
    assert os.listdir(folders["cut"] / "heartbeat")
