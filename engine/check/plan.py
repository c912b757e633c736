"""Checks of the plan against GPU or host memory, and of a run's files against free disk space."""

import re
from dataclasses import replace
from pathlib import Path

from ralign.engine.check.folders import BadFolder, folder_shape
from ralign.engine.check.machine import Gpu, Machine
from ralign.engine.check.report import Finding, fail, ok, size_text, warn
from ralign.engine.config.run import GenRMRun, Run
from ralign.engine.config.validation import validate
from ralign.engine.planner import cli as planner
from ralign.engine.planner.hardware import CHIPS, Chip, Constants
from ralign.engine.planner.job import BYTES
from ralign.engine.planner.judges import GIB
from ralign.engine.planner.shapes import Shape, shape_of, shape_of_folder
from ralign.engine.planner.start import check_memory
from ralign.engine.runtime.errors import UserError

CHECKPOINT_BYTES = 12  # per parameter: fp32 weights and Adam's two moments


def needs_gpus(run: Run) -> bool:
    """Whether the run needs GPUs: a KV cache of the remaining memory (generator.kv_cache_gib=0) needs one."""
    return run.generator.kv_cache_gib == 0


def check_plan(run: Run, recipe: str, machine: Machine, num_gpus: int, chip: Chip | None) -> Finding:
    """The plan of `ralign-plan` for this run.

    Args:
        num_gpus: of the job, over all nodes.
        chip: the kind of GPU; None for a CPU.
    """
    if chip is None and needs_gpus(run):
        step = f"ralign-check {recipe} --gpus N --gpu h100, or run this on a machine with GPUs"
        return warn("plan", "no GPU here to plan for", step)
    # Other checks cover the data file and the judge's address.
    run = replace(run, data=replace(run.data, train=None))
    if isinstance(run, GenRMRun) and run.metarm.kind == "endpoint":
        run = replace(run, metarm=replace(run.metarm, kind="rule"))
    try:
        shape = run_shape(run)
        if chip is None:
            return _plan_on_cpu(run, machine, num_gpus, shape)
        return _plan_on_gpus(run, recipe, machine, num_gpus, chip)
    except BadFolder as bad:
        return fail("plan", f"no plan without the model's sizes: {bad.found}", bad.next_step)
    except UserError as error:
        step = f"change these settings, or the number of GPUs: ralign-plan {recipe} shows layouts that fit"
        if chip is None:
            step = "start fewer or more processes, or change these settings"
        return fail("plan", str(error), step)


def _plan_on_gpus(run: Run, recipe: str, machine: Machine, num_gpus: int, chip: Chip) -> Finding:
    host_gb = planner.HOST_GB
    if machine.gpus:
        host_gb = machine.host_bytes / min(num_gpus, len(machine.gpus)) / 1e9
    report = planner.plan(run, num_gpus, chip, Constants(), host_gb=host_gb)
    where = f"{num_gpus} x {chip.name} ({chip.memory_bytes / GIB:.1f} GiB)"
    if report["problems"]:
        others = [problem for problem in report["problems"] if problem not in report["refusal"]]
        step = f"use the layout or the number of GPUs above; ralign-plan {recipe} prints the memory table"
        return fail("plan", "; ".join([report["refusal"], *others]), step)
    totals = report["layout"]["total_bytes"]
    fullest = max(totals, key=totals.get)
    found = (
        f"fits {where}: {totals[fullest] / GIB:.1f} GiB a GPU in its fullest phase ({fullest}); a step is predicted"
        f" to take {report['layout']['time_s']['total']:.0f} s"
    )
    return ok("plan", found, report["advice"])


def _plan_on_cpu(run: Run, machine: Machine, num_processes: int, shape: Shape) -> Finding:
    validate(run, num_processes)
    capacity = machine.host_bytes // num_processes
    ledger = check_memory(run, num_processes, shape, capacity_bytes=capacity, on_gpu=False)
    fullest = ledger.peak_phase
    return ok(
        "plan",
        f"fits {num_processes} processes on this CPU: {ledger.total_bytes(fullest) / GIB:.2f} of"
        f" {capacity / GIB:.1f} GiB each in the fullest phase ({fullest})",
    )


def chip_of_gpus(gpus: tuple[Gpu, ...]) -> Chip | None:
    """The planner's chip for these GPUs, with the memory of the smallest; None without GPUs.

    An unknown GPU gets the speed of an H100, as in `ralign-plan --gpu MEMORY`.
    """
    if not gpus:
        return None
    smallest = min(gpus, key=lambda gpu: gpu.memory_bytes)
    known = (chip for name, chip in CHIPS.items() if re.search(rf"\b{name}\b", smallest.name.lower()))
    chip = next(known, None) or replace(CHIPS["h100"], name=smallest.name)
    return replace(chip, memory_bytes=smallest.memory_bytes)


def default_num_gpus(run: Run | None, machine: Machine) -> int | None:
    """GPUs (on a CPU, processes) of the current job; else all GPUs of its nodes; else one model or two processes."""
    if machine.env.get("WORLD_SIZE", "").isdigit():
        return int(machine.env["WORLD_SIZE"])
    if machine.gpus:
        num_nodes = machine.env.get("SLURM_JOB_NUM_NODES", "")
        return len(machine.gpus) * (int(num_nodes) if num_nodes.isdigit() else 1)
    if run is None:
        return None
    layout = run.parallel
    size = layout.tensor * layout.pipeline * layout.context
    return size if size > 1 else 2


def run_shape(run: Run) -> Shape:
    """Sizes of the policy.

    Raises:
        BadFolder: config.json cannot be read.
        UserError: there is no config.json, and no published model of the folder's name.
    """
    folder = run.model.hf_path
    if folder is not None and (Path(folder) / "config.json").is_file():
        return folder_shape(Path(folder))
    return shape_of(run.model)


def check_disk(run: Run | None, machine: Machine) -> Finding:
    """Free disk space at the run's folder against the size of a stage's files."""
    folder = run.folder if run else Path(Run().out)
    free = machine.free_disk_bytes(folder)
    room = f"{size_text(free)} free at {folder}/"
    if run is None:
        return ok("disk", room)
    try:
        exports, checkpoint, num_checkpoints = stage_bytes(run)
    except BadFolder as bad:
        return warn("disk", f"{room}; the model's size is unknown: {bad.found}", bad.next_step)
    except UserError as error:
        return warn("disk", f"{room}; the model's size is unknown: {error}", "see the line on model")
    needed = exports + num_checkpoints * checkpoint
    held = held_bytes(folder)
    saves = f"{num_checkpoints} checkpoint{'s' * (num_checkpoints > 1)} of {size_text(checkpoint)}"
    found = f"{room}; a stage writes {size_text(needed)} (exports {size_text(exports)}, {saves})"
    if held:
        found += f", of which {size_text(held)} exist"
    if free + held < needed:
        step = (
            "make room, name another folder with out=, or lower checkpoint.keep_last and checkpoint.keep_best"
        )
        return fail("disk", found, step)
    return ok("disk", found)


def stage_bytes(run: Run) -> tuple[int, int, int]:
    """Files of an RL stage: bytes of its exports, bytes of a checkpoint, and largest number of checkpoints at once.

    An export has the weights in the run's dtype, a checkpoint 12 bytes per parameter. While a checkpoint is written,
    all kept ones still exist.
    """
    shape = run_shape(run)
    exported = shape.num_parameters
    if run.has_critic:
        start = run.critic.hf_path
        critic = (shape_of_folder(start, "critic.hf_path") if start else shape).as_critic()
        exported += critic.num_parameters
    kept = run.checkpoint.keep_last + run.checkpoint.keep_best
    num_saves = -(-run.num_steps // run.checkpoint_every) if run.checkpoint_every else 1  # one at the end
    return BYTES[run.parallel.dtype] * exported, CHECKPOINT_BYTES * exported, max(min(num_saves, kept + 1), 1)


def held_bytes(folder: Path) -> int:
    """Bytes of the checkpoints and exports in a run's folder, before it resumes."""
    files = (file for pattern in ("*/checkpoints/*/*", "*/*hf/*") for file in folder.glob(pattern))
    return sum(file.stat().st_size for file in files if file.is_file())
