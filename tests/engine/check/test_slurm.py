"""SLURM's programs and variables: above all, a cluster that shows each task one GPU."""

import pytest
from ralign.engine.check.slurm import check_slurm

PROGRAMS = frozenset({"sinfo", "sbatch", "srun", "squeue", "scontrol"})
JOB = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "8"}


def test_outside_of_a_job():
    assert check_slurm(frozenset(), {}, 8).level == "OK"
    assert check_slurm(PROGRAMS, {}, 0).level == "OK"
    finding = check_slurm(PROGRAMS - {"sbatch"}, {}, 0)
    assert finding.level == "WARN" and "without sbatch" in finding.found


@pytest.mark.parametrize(
    ("env", "num_visible", "level", "text"),
    [
        ({}, 8, "OK", "job 7: 8 GPUs and 8 tasks on this node"),
        # srun --gpus-per-task=1, or --gpu-bind=single:1, in a task
        ({"LOCAL_RANK": "3"}, 1, "FAIL", "this process sees 1: each task has its own"),
        ({"SLURM_GPU_BIND": "closest"}, 2, "FAIL", "this process sees 2"),
        # the same, in the batch script, which sees all of them
        ({"SLURM_GPUS_PER_TASK": "1"}, 8, "FAIL", "SLURM_GPUS_PER_TASK=1 binds GPUs to tasks"),
        ({"SLURM_GPU_BIND": "single:1"}, 8, "FAIL", "SLURM_GPU_BIND=single:1 binds"),
        ({"SLURM_GPU_BIND": "none", "SLURM_GPUS_PER_TASK": "1"}, 8, "OK", "sees all GPUs"),
        # torchrun in one task
        ({"SLURM_NTASKS_PER_NODE": "1", "SLURM_GPUS_PER_TASK": "8"}, 8, "WARN", "1 task on this node"),
        ({"SLURM_NTASKS_PER_NODE": "1"}, 4, "WARN", "sees 4"),
        ({"SLURM_NTASKS_PER_NODE": "4"}, 8, "WARN", "8 GPUs and 4 tasks"),
        ({"SLURM_NTASKS_PER_NODE": ""}, 8, "WARN", "8 GPUs on this node"),
        ({"SLURM_GPUS_ON_NODE": ""}, 8, "WARN", "no GPUs"),
        ({"SLURM_GPUS_ON_NODE": "", "SLURM_JOB_GPUS": "0,1"}, 2, "WARN", "2 GPUs and 8 tasks"),
        ({"SLURM_GPUS_ON_NODE": ""}, 0, "OK", "a run on CPUs"),
    ],
)
def test_inside_a_job(env, num_visible, level, text):
    finding = check_slurm(PROGRAMS, JOB | env, num_visible)
    assert finding.level == level and text in finding.found
    if level == "FAIL":
        assert "--gpu-bind=none" in finding.next_step
