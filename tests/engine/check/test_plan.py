"""The plan and the disk for a machine that is here or named: the planner's own numbers, with what to do."""

from dataclasses import replace
from pathlib import Path

import pytest
from ralign.engine.check import plan
from ralign.engine.check.machine import Gpu
from ralign.engine.check.plan import check_disk, check_plan, chip_of_gpus, default_num_gpus, needs_gpus
from ralign.engine.config.run import CheckpointConfig, ModelConfig, ParallelConfig, Run
from ralign.engine.planner.cli import recipe_run
from ralign.engine.planner.hardware import CHIPS

GB = 10**9


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No models/ and no runs/ of this repository."""
    monkeypatch.chdir(tmp_path)


def test_what_fits_names_its_fullest_phase_and_the_time_of_a_step(machine_with):
    machine = machine_with()
    finding = check_plan(recipe_run("r_align_8b"), "r_align_8b", machine, 8, chip_of_gpus(machine.gpus))
    assert finding.level == "OK" and "fits 8 x h100 (79.2 GiB)" in finding.found
    assert (
        "a step is predicted to take" in finding.found and "GiB a GPU in its fullest phase" in finding.found
    )


def test_what_does_not_fit_is_refused_in_the_planners_words(machine_with):
    machine = machine_with()
    finding = check_plan(recipe_run("r_align_32b"), "r_align_32b", machine, 8, chip_of_gpus(machine.gpus))
    assert finding.level == "FAIL" and "does not fit 8 x h100" in finding.found
    assert "16 GPUs are enough" in finding.found and "ralign-plan r_align_32b" in finding.next_step


def test_host_memory_is_shared_by_the_gpus_of_a_node(machine_with):
    run = recipe_run("r_align_8b")
    small = machine_with(host_bytes=8 * 8 * GB)
    finding = check_plan(run, "r_align_8b", small, 8, chip_of_gpus(small.gpus))
    assert finding.level == "FAIL" and "of pinned host memory per GPU, of 7.5 GiB" in finding.found
    # Two nodes of eight: a GPU's share is that of its own node.
    assert check_plan(run, "r_align_8b", machine_with(), 16, chip_of_gpus(machine_with().gpus)).level == "OK"


def test_a_layout_that_cannot_be_is_the_planners_line(machine_with):
    machine = machine_with()
    run = replace(recipe_run("r_align_8b"), parallel=ParallelConfig(tensor=3))
    finding = check_plan(run, "r_align_8b", machine, 8, chip_of_gpus(machine.gpus))
    assert finding.level == "FAIL" and "does not divide" in finding.found


def test_the_judges_address_and_the_data_file_do_not_stand_in_the_way(machine_with, qwen3_folder, tmp_path):
    qwen3_folder(tmp_path)  # with a folder the planner validates the settings, too
    machine, run = machine_with(), recipe_run("r_align_8b")
    run.data.train = "missing.jsonl"
    assert check_plan(run, "r_align_8b", machine, 8, chip_of_gpus(machine.gpus)).level == "OK"
    assert run.metarm.kind == "endpoint" and run.data.train == "missing.jsonl"


def test_without_gpus_there_is_a_plan_for_those_that_are_named_or_advice(machine_with, no_gpus):
    machine, run = machine_with(**no_gpus), recipe_run("r_align_32b")
    none = check_plan(run, "r_align_32b", machine, 8, None)
    assert none.level == "WARN" and "--gpus N --gpu h100" in none.next_step
    assert check_plan(run, "r_align_32b", machine, 8, CHIPS["h200"]).level == "OK"


def test_a_miniature_is_planned_for_processes_on_this_cpu(machine_with, no_gpus):
    run = recipe_run("r_align_mini")
    finding = check_plan(run, "r_align_mini", machine_with(**no_gpus), 2, None)
    assert finding.level == "OK" and "fits 2 processes on this CPU" in finding.found
    small = machine_with(**no_gpus | {"host_bytes": 2**28})
    assert check_plan(run, "r_align_mini", small, 2, None).level == "FAIL"
    # 32 prompts do not divide by 3 processes.
    odd = check_plan(run, "r_align_mini", machine_with(**no_gpus), 3, None)
    assert odd.level == "FAIL" and "algo.num_prompts = 32" in odd.found


@pytest.mark.parametrize(
    ("name", "chip"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "NVIDIA GH200 480GB"),
    ],
)
def test_a_gpu_is_planned_as_the_chip_of_its_name_with_its_own_memory(name, chip):
    gpu = Gpu(name=name, memory_bytes=80 * GB, free_bytes=None, capability=(9, 0))
    found = chip_of_gpus((gpu, replace(gpu, memory_bytes=79 * GB)))
    assert found.name == chip and found.memory_bytes == 79 * GB
    assert chip_of_gpus(()) is None


def test_the_number_of_gpus_is_the_jobs_or_what_is_here(machine_with, no_gpus):
    run = recipe_run("r_align_mini")
    assert default_num_gpus(run, machine_with(env={"WORLD_SIZE": "32"})) == 32
    assert default_num_gpus(run, machine_with()) == 8
    assert default_num_gpus(run, machine_with(env={"SLURM_JOB_NUM_NODES": "4"})) == 32
    assert default_num_gpus(run, machine_with(**no_gpus)) == 2
    assert default_num_gpus(replace(run, parallel=ParallelConfig(tensor=4)), machine_with(**no_gpus)) == 4


def test_recipes_for_gpus_are_told_from_miniatures():
    needs = {name: needs_gpus(recipe_run(name)) for name in ("r_align_32b", "actor_rlhf_8b", "r_align_mini")}
    assert needs == {"r_align_32b": True, "actor_rlhf_8b": True, "r_align_mini": False}


def disk_of(machine_with, run, free_bytes):
    return check_disk(run, machine_with(free_disk_bytes=lambda folder: free_bytes))


def test_a_disk_holds_the_checkpoints_that_are_kept_the_one_being_written_and_the_export(machine_with):
    run = Run(
        model=ModelConfig(hf_path="models/Qwen3-32B"),
        parallel=ParallelConfig(dtype="bf16"),
        num_steps=100,
        checkpoint_every=10,
        checkpoint=CheckpointConfig(keep_last=2, keep_best=1),
    )
    num_parameters = 32_762_762_240  # of the published config.json, vocabulary padded
    exports, checkpoint, num_checkpoints = plan.stage_bytes(run)
    assert exports == pytest.approx(2 * num_parameters, rel=1e-3)
    assert checkpoint == pytest.approx(12 * num_parameters, rel=1e-3) and num_checkpoints == 4
    needed = exports + 4 * checkpoint
    assert disk_of(machine_with, run, needed).level == "OK"
    finding = disk_of(machine_with, run, needed - 1)
    assert finding.level == "FAIL" and "4 checkpoints of 393 GB" in finding.found
    assert "checkpoint.keep_last" in finding.next_step


def test_fewer_saves_than_are_kept_take_less_and_a_critic_takes_as_much_again():
    run = Run(model=ModelConfig(hf_path="models/Qwen3-8B"), num_steps=100, checkpoint_every=100)
    assert plan.stage_bytes(run)[2] == 1
    assert plan.stage_bytes(replace(run, checkpoint_every=0))[2] == 1
    assert plan.stage_bytes(replace(run, checkpoint_every=50))[2] == 2
    alone = plan.stage_bytes(run)
    run.algo.advantages = "gae"
    # The critic has one row in place of the LM head.
    assert 1.9 < plan.stage_bytes(run)[1] / alone[1] < 2 and plan.stage_bytes(run)[0] > 1.9 * alone[0]


def test_what_an_interrupted_run_has_written_is_not_needed_again(machine_with, tmp_path):
    run = Run(out=str(tmp_path), name="r", num_steps=2, checkpoint_every=1)
    exports, checkpoint, num_checkpoints = plan.stage_bytes(run)
    needed = exports + num_checkpoints * checkpoint
    assert disk_of(machine_with, run, needed - checkpoint).level == "FAIL"
    step = run.folder / "r_align" / "checkpoints" / "step00000001"
    step.mkdir(parents=True)
    with (step / "__0_0.distcp").open("wb") as file:
        file.truncate(checkpoint)
    finding = disk_of(machine_with, run, needed - checkpoint)
    assert finding.level == "OK" and "exist" in finding.found


def test_a_model_of_unknown_size_warns(machine_with, tmp_path):
    unknown = Run(model=ModelConfig(hf_path="models/Unknown-7B"))
    assert disk_of(machine_with, unknown, 10**13).level == "WARN"
    Path("models/Unknown-7B").mkdir(parents=True)
    Path("models/Unknown-7B/config.json").write_text("{")
    assert disk_of(machine_with, unknown, 10**13).level == "WARN"
    assert disk_of(machine_with, None, 10**13).level == "OK"
    assert check_plan(unknown, "x", machine_with(), 8, CHIPS["h100"]).level == "FAIL"
