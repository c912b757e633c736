"""Checks before any model is built: the GPUs of the machine, and the memory ledger."""

import os
from dataclasses import replace

from ralign.engine.config.run import Run
from ralign.engine.planner import cli, layouts
from ralign.engine.planner.hardware import CHIPS, Constants
from ralign.engine.planner.job import Job
from ralign.engine.planner.judges import GIB
from ralign.engine.planner.memory import Ledger, ledger
from ralign.engine.planner.shapes import Shape
from ralign.engine.runtime import output
from ralign.engine.runtime.errors import UserError


def require_gpus(run: Run, *, num_gpus: int, gpu: str, launch: str) -> None:
    """Rejects a GPU recipe on a machine without the GPUs. The message has what it needs and what was found.

    Rank 0 also prints the memory table.

    Args:
        num_gpus, gpu: the smallest hardware for the recipe, with a name of `ralign-plan`.
        launch: the command line that starts the recipe.

    Raises:
        UserError: no GPU, GPUs that torch cannot use, fewer GPUs than processes, or fewer processes than `num_gpus`.
    """
    import torch
    from ralign.engine.runtime.device import gpu_problem

    if problem := gpu_problem():
        raise UserError(problem)
    found = torch.cuda.device_count()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if found >= local_size and world_size >= num_gpus:
        return
    if int(os.environ.get("RANK", "0")) == 0:
        report = cli.plan(run, num_gpus, CHIPS[gpu], Constants(), search=False)
        print(f"{cli.as_text(report)}\n", file=output.stderr(), flush=True)
    raise UserError(
        f"{run.name} needs {num_gpus} x {gpu} ({CHIPS[gpu].memory_bytes / GIB:.0f} GiB each) or similar, one"
        f" process per GPU; found {found} GPU(s) here and {world_size} process(es) in the job. Start it with:"
        f" {launch}; --smoke runs it in miniature on CPU; ralign-plan {run.name} shows layouts for other GPUs"
    )


def check_memory(
    run: Run,
    world_size: int,
    shape: Shape,
    *,
    capacity_bytes: int,
    on_gpu: bool,
    host_bytes: float = float("inf"),
) -> Ledger:
    """The memory ledger of a run on devices of this size.

    Args:
        capacity_bytes: memory of one GPU, or on a CPU one process's share of the host's memory.
        host_bytes: one process's share of the host's memory, if the device is a GPU.

    Raises:
        UserError: the run does not fit; with numbers, and the nearest layout that fits.
    """
    job = Job.of(run, world_size, shape)
    if not on_gpu:
        job = replace(job, reserve_bytes=0)
    plan = ledger(job, capacity_bytes, on_gpu=on_gpu)
    if not plan.problems() and plan.host_bytes <= host_bytes:
        return plan
    name = "GPU" if on_gpu else "process on CPU"
    chip = replace(CHIPS["h100"], name=name, memory_bytes=capacity_bytes)
    constants = Constants()
    requested = layouts.lay_out(job, chip, constants)
    near = layouts.nearest(job, layouts.fitting(job, chip, constants, host_bytes))
    if not plan.problems():
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in plan.host.items())
        raise UserError(
            f"{run.name} takes {plan.host_bytes / GIB:.1f} GiB of host memory per process ({parts}), of"
            f" {host_bytes / GIB:.1f} GiB: use more GPUs or nodes"
            + (f"; nearest layout that fits: {near.settings()}" if near else "")
        )
    raise UserError(f"{run.name} {layouts.refusal(requested, plan.problems(), near, chip, on_gpu=on_gpu)}")
