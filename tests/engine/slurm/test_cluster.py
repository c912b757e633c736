"""Jobs on a real SLURM of two nodes: ranks, logs, CPUs, seeds, and a node that dies."""

import hashlib
import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TINY = [
    "sft.competence=0", "arms=rlvr,r_align",
    "sft.num_steps=3", "num_steps=8", "algo.num_prompts=4", "algo.num_samples=2", "eval.num_pairs=4",
    "data.world.num_train=64", "data.world.num_warm_start=64", "data.world.num_dev=8", "data.world.num_test=8",
    "generator.max_new_tokens=24", "eval.max_new_tokens=8", "rollouts_every=0", "model.num_layers=2",
    "algo.entropy_coef=0.01", "algo.kl_coef=0.05", "checkpoint_every=1",
]  # fmt: skip


def test_every_task_has_its_rank_its_log_and_the_first_nodes_address(jobs):
    job = jobs.submit("--tasks=2", "a=1")
    assert jobs.wait_for_end(job) == ("COMPLETED", 0)
    logs = jobs.logs(job)
    assert list(logs) == ["rank0", "rank1", "rank2", "rank3"]
    ranks, worlds, local_ranks, addresses, ports, nodes, words = zip(
        *(logs[f"rank{rank}"][0][2:] for rank in range(4)), strict=True
    )
    assert ranks == ("0", "1", "2", "3") and worlds == ("4",) * 4 and local_ranks == ("0", "1", "0", "1")
    assert nodes == ("n1", "n1", "n2", "n2") and addresses == ("127.0.0.1",) * 4
    assert len(set(ports)) == 1 and words == ("a=1",) * 4


@pytest.mark.skipif(os.cpu_count() < 2, reason="a node here has one CPU")
def test_cpus_of_a_task_reach_srun(slurm, jobs):
    """sbatch's --cpus-per-task is not srun's, since SLURM 22.05."""
    job = jobs.submit("--cpus-per-task=2", nodes=1)
    assert jobs.wait_for_end(job) == ("COMPLETED", 0)
    assert slurm.job(job)["CPUs/Task"] == "2"
    assert jobs.logs(job)["rank0"][1] == ["cpus", "2"]


def test_seeds_are_runs_of_their_own_and_notice_to_one_is_not_to_the_others(slurm, jobs):
    job = jobs.submit("--seeds=3,5", "wait=1@0", nodes=1)
    for seed in (3, 5):
        jobs.wait_for_step(job, name=f"stand_in_seed{seed}", num_ranks=1)
    # One of the seeds has the array's number as its own, which names all of them.
    fields = {seed: slurm.job(f"{job}_{seed}") for seed in (3, 5)}
    (same,) = (seed for seed in (3, 5) if fields[seed]["JobId"] == job)
    slurm.run("scancel", "--signal=USR1", "--batch", f"{job}_{same}")
    assert jobs.wait_for_end(f"{job}_{same}") == ("COMPLETED", 1)
    other = slurm.job(f"{job}_{8 - same}")
    assert (other["JobState"], other["Restarts"]) == ("RUNNING", "0")
    for seed, numbers in ((same, ["0", "1"]), (8 - same, ["0"])):
        starts = [line for line in jobs.logs(f"{job}_{seed}")["rank0"] if line[0] == "start"]
        assert [line[1] for line in starts] == numbers
        assert all(line[-2:] == [f"seed={seed}", f"name=stand_in_seed{seed}"] for line in starts)


def test_a_node_that_dies_is_made_up_for(slurm, jobs):
    job = jobs.submit("steps=9", "step_s=0.05", "hang=5@0")
    jobs.wait_for_step(job, 4)
    slurm.kill_node("n2")
    # As a cluster's health check would; SLURM finds it out by itself some 20 s later, in the slow test below.
    slurm.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=dead")
    slurm.wait_for(lambda: slurm.job(job)["JobState"] == "PENDING", "a requeue", 60)
    slurm.start_node("n2")
    assert jobs.wait_for_end(job) == ("COMPLETED", 1)
    assert not (jobs.folder / "logs" / job / "failures").exists()
    for rank, lines in enumerate(jobs.logs(job).values()):
        digest = ""
        for step in range(1, 10):  # as a run that was never interrupted has it
            digest = hashlib.sha256(f"{digest} {rank} {step}".encode()).hexdigest()
        assert lines[-2:] == [["goes", "on", "after", "step", "4"], ["done", digest]]


def without_times(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time_s/", "memory/"))} for line in lines]


@pytest.mark.slow
def test_a_node_that_dies_costs_a_real_run_nothing_but_time(slurm, jobs):
    recipe = ROOT / "recipes" / "r_align_mini.py"
    folders = {name: jobs.folder / name / "runs" / "r_align_mini" for name in ("whole", "cut")}
    for name in ("whole", "cut"):
        (jobs.folder / name).mkdir()
        job = jobs.submit(*TINY, recipe=recipe, folder=jobs.folder / name)
        if name == "cut":
            metrics = folders["cut"] / "rlvr" / "metrics.jsonl"
            slurm.wait_for(
                lambda path=metrics: path.exists() and path.read_text().count("\n") >= 4, "four steps", 240
            )
            slurm.kill_node("n2")
            slurm.wait_for(lambda job=job: slurm.job(job)["JobState"] == "PENDING", "a requeue", 90)
            slurm.start_node("n2")
        assert jobs.wait_for_end(job, 300) == ("COMPLETED", int(name == "cut")), slurm.logs()
    log = (jobs.folder / "logs" / job / "rank0.log").read_text()
    assert "resumes the interrupted run" in log and "rlvr continues after step" in log
    for stage in ("sft", "rlvr", "r_align"):
        whole, cut = (without_times(folders[name] / stage / "metrics.jsonl") for name in ("whole", "cut"))
        assert whole == cut and len(whole) == (3 if stage == "sft" else 8), stage
        weights = [
            (folder / stage / "hf" / "model-stage00-00000.safetensors").read_bytes()
            for folder in folders.values()
        ]
        assert weights[0] == weights[1], stage
    assert os.listdir(folders["cut"] / "heartbeat")
