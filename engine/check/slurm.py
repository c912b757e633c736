"""Checks of SLURM: its programs on a login node; in a job, its variables against the visible GPUs."""

import re
from collections.abc import Mapping

from ralign.engine.check.report import Finding, fail, ok, warn

_NEEDED = ("sbatch", "srun", "squeue", "scontrol")
# In a job that torchrun or srun has launched.
_INDEX = "but vLLM takes the device of index LOCAL_RANK"
_UNBOUND = (
    "let each task see all GPUs of its node: --gpus-per-node in place of --gpus-per-task, and --gpu-bind=none"
    " (ralign-submit --sbatch=--gpu-bind=none)"
)


def check_slurm(programs: frozenset[str], env: Mapping[str, str], num_visible: int) -> Finding:
    """SLURM can queue a run. Inside a job, every task sees the GPUs of its process.

    Args:
        programs: installed programs of SLURM.
        num_visible: GPUs that are visible to this process.
    """
    if "SLURM_JOB_ID" in env:
        return _check_job(env, num_visible)
    if not programs:
        return ok("slurm", "none here, and none is needed: torchrun starts a run")
    missing = [name for name in _NEEDED if name not in programs]
    if missing:
        step = "load the cluster's module of SLURM, or go to a login node: ralign-submit uses them"
        return warn("slurm", f"here, but without {', '.join(missing)}", step)
    return ok("slurm", "here, and this is not inside a job: ralign-submit queues a run")


def _check_job(env: Mapping[str, str], num_visible: int) -> Finding:
    job, on_node, tasks = env["SLURM_JOB_ID"], gpus_on_node(env), tasks_per_node(env)
    given = f"job {job}: {_counted(on_node, 'GPU')}" + (f" and {_counted(tasks, 'task')}" if tasks else "")
    given += " on this node"
    if not on_node and not num_visible:
        return ok("slurm", f"{given}: a run on CPUs")
    if not on_node:
        found = f"{given}, and this process sees {num_visible}: other jobs may use them"
        return warn("slurm", found, "request GPUs: ralign-submit --gpus N, or --gpus-per-node=N")
    several = tasks is None or tasks > 1
    if num_visible < on_node and several:
        found = f"{given}, and this process sees {num_visible}: each task has its own, {_INDEX}"
        return fail("slurm", found, _UNBOUND)
    if several and (bound := _binding(env)):
        found = f"{given}; {bound} binds GPUs to tasks, {_INDEX}"
        return fail("slurm", found, _UNBOUND)
    if num_visible < on_node:
        found = f"{given}, and this process sees {num_visible}"
        return warn("slurm", found, "see CUDA_VISIBLE_DEVICES, and the line on the driver")
    if tasks is None:
        step = "give --ntasks-per-node, one task per GPU: recipes/slurm/train.sbatch reads it"
        return warn("slurm", given, step)
    if tasks != on_node:
        step = (
            f"one task per GPU: --ntasks-per-node={on_node} (as ralign-submit), or torchrun in a single task"
        )
        return warn("slurm", given, step)
    return ok("slurm", f"{given}; this process sees all GPUs")


def _counted(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def gpus_on_node(env: Mapping[str, str]) -> int:
    """GPUs of the job, or the step, on this node."""
    if re.fullmatch(r"\d+", env.get("SLURM_GPUS_ON_NODE", "")):
        return int(env["SLURM_GPUS_ON_NODE"])
    listed = env.get("SLURM_STEP_GPUS") or env.get("SLURM_JOB_GPUS") or ""
    return len([index for index in listed.split(",") if index])


def tasks_per_node(env: Mapping[str, str]) -> int | None:
    """Tasks on this node; None if neither the job nor the step sets them."""
    text = env.get("SLURM_NTASKS_PER_NODE", "")
    return int(text) if re.fullmatch(r"\d+", text) else None


def _binding(env: Mapping[str, str]) -> str | None:
    """The variable that makes srun bind GPUs to tasks, as NAME=VALUE; None without one."""
    if env.get("SLURM_GPU_BIND") == "none":
        return None
    for name in ("SLURM_GPU_BIND", "SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU"):
        if env.get(name):
            return f"{name}={env[name]}"
    return None
