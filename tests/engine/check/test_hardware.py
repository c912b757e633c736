"""Driver, GPUs, processes, NCCL, shared memory, NVLink: each fault is named with its values and the next step."""

from dataclasses import replace

import pytest
from ralign.engine.check import hardware
from ralign.engine.check.machine import SharedMemory, Torch

GIB = 2**30


def driver_of(machine, need="here"):
    return hardware.check_driver(machine.driver, machine.torch, need)


def test_a_machine_as_it_should_be_is_ok_in_every_line(machine_with):
    machine = machine_with()
    found = [
        hardware.check_torch(machine),
        driver_of(machine),
        hardware.check_gpus(machine, "here", 0.9),
        hardware.check_processes({}, 8, 8, 192),
        hardware.check_nccl(machine.torch, {}, 8),
        hardware.check_shared_memory(machine.shared_memory),
        hardware.check_nvlink(8, (), 8),
    ]
    assert [finding.level for finding in found] == ["OK"] * 7
    assert "8 x NVIDIA H100 80GB HBM3 (79.2 GiB, sm_90)" in found[2].found


def test_torch_that_does_not_import_or_has_no_cuda_beside_gpus_fails(machine_with, no_gpus):
    missing = hardware.check_torch(machine_with(torch=None, torch_error="No module named 'torch'"))
    assert missing.level == "FAIL" and "No module named 'torch'" in missing.found
    beside = hardware.check_torch(machine_with(torch=Torch(version="2.13.0+cpu")))
    assert beside.level == "FAIL" and "without CUDA" in beside.found and "KIND=cuda" in beside.next_step
    assert hardware.check_torch(machine_with(**no_gpus)).level == "OK"


def test_an_old_driver_is_told_from_a_new_one_that_does_not_start(machine_with, old_driver):
    old = driver_of(machine_with(**old_driver))
    assert old.level == "FAIL" and "550.54.15 is too old for CUDA 13.0" in old.found
    assert "torch sees 8 GPUs and can use none" in old.found and "driver 580 or newer" in old.next_step

    error = "Error 802: system not yet initialized"
    torch = replace(old_driver["torch"], cuda_error=error)
    broken = driver_of(machine_with(torch=torch))
    assert broken.level == "FAIL" and "new enough" in broken.found and error in broken.found
    assert "nvidia-fabricmanager" in broken.next_step


@pytest.mark.parametrize(
    ("cuda", "driver", "level"),
    [
        ("13.0", "580.65.06", "OK"),
        ("13.0", "579.99", "WARN"),  # CUDA starts: forward compatibility
        ("12.8", "550.54.15", "OK"),
        ("12.8", "470.57", "WARN"),
        ("14.0", "580.65.06", "OK"),  # no rule is known
    ],
)
def test_the_least_driver_follows_cudas_major_version(machine_with, cuda, driver, level):
    torch = replace(machine_with().torch, cuda=cuda)
    assert driver_of(machine_with(torch=torch, driver=driver)).level == level


def test_without_gpus_lines_warn_unless_the_recipe_needs_them(machine_with, no_gpus):
    machine = machine_with(**no_gpus)
    for check in (driver_of, lambda machine, need: hardware.check_gpus(machine, need, None)):
        assert [check(machine, need).level for need in ("no", "elsewhere", "here")] == [
            "WARN",
            "WARN",
            "FAIL",
        ]
    assert "miniature recipes and --smoke" in hardware.check_gpus(machine, "no", None).found
    cuda_build = machine_with(**no_gpus | {"torch": Torch(version="2.13.0+cu130", cuda="13.0")})
    assert "no engine for a CPU" in hardware.check_gpus(cuda_build, "here", None).found
    assert hardware.check_nccl(machine.torch, {}, 0).level == "OK"
    assert hardware.check_processes({}, 0, 2, 2).level == "OK"


def test_gpus_that_are_too_old_or_in_use_are_named(machine_with):
    gpus = machine_with().gpus
    old = replace(gpus[0], name="Tesla V100", capability=(7, 0))
    finding = hardware.check_gpus(machine_with(gpus=(*gpus[:7], old)), "here", 0.9)
    assert (
        finding.level == "FAIL" and "GPU 7 too old" in finding.found and "8.0 or newer" in finding.next_step
    )

    used = replace(gpus[0], free_bytes=20 * GIB)
    busy = machine_with(gpus=(*gpus[:3], used, *gpus[4:]))
    full = hardware.check_gpus(busy, "here", 0.9)
    assert full.level == "FAIL" and "GPU 3 has 20.0 of 79.2 GiB free" in full.found
    assert "NVIDIA H100 80GB HBM3" in full.details[3]
    # A run whose memory is of a fixed size may fit beside it; and 5 % in use leave the 90 % that a run fills.
    assert hardware.check_gpus(busy, "no", None).level == "WARN"
    little = replace(gpus[0], free_bytes=int(0.95 * gpus[0].memory_bytes))
    assert hardware.check_gpus(machine_with(gpus=(little,)), "here", 0.9).level == "WARN"
    mixed = machine_with(gpus=(*gpus[:7], replace(gpus[0], name="NVIDIA H200")))
    assert hardware.check_gpus(mixed, "here", 0.9).level == "WARN"


@pytest.mark.parametrize(
    ("env", "num_visible", "num_gpus", "level", "text"),
    [
        ({}, 8, None, "OK", "torchrun --nproc-per-node 8"),
        ({}, 8, 4, "OK", "4 of 8 GPUs"),
        ({}, 8, 32, "OK", "4 nodes like this one, of 8 GPUs"),
        ({}, 8, 12, "WARN", "12 GPUs are not a whole number of nodes"),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, 1, None, "FAIL", "2 processes here"),
        ({"LOCAL_RANK": "3"}, 1, None, "FAIL", "LOCAL_RANK=3 is not a device"),
        ({"LOCAL_RANK": "7", "LOCAL_WORLD_SIZE": "8"}, 8, 8, "OK", "one a GPU"),
    ],
)
def test_processes_and_gpus_have_to_match(env, num_visible, num_gpus, level, text):
    finding = hardware.check_processes(env, num_visible, num_gpus, 192)
    assert finding.level == level and text in finding.found


def test_nccl_is_there_and_none_of_its_ways_is_turned_off(machine_with):
    torch = machine_with().torch
    off = hardware.check_nccl(torch, {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "0"}, 8)
    assert off.level == "WARN" and "NCCL_P2P_DISABLE=1" in off.found and "NCCL_IB_DISABLE" not in off.found
    assert hardware.check_nccl(replace(torch, nccl=None), {}, 8).level == "FAIL"


def test_shared_memory_that_is_missing_small_or_closed():
    assert hardware.check_shared_memory(None).found.startswith("does not exist")
    assert "--shm-size" in hardware.check_shared_memory(None).next_step

    def level(free_bytes, is_writable=True):
        shared = SharedMemory(total_bytes=max(free_bytes, 1), free_bytes=free_bytes, is_writable=is_writable)
        return hardware.check_shared_memory(shared).level

    assert [level(64 << 20), level(65 << 20), level(1 << 30)] == ["FAIL", "WARN", "OK"]
    assert level(1 << 40, is_writable=False) == "FAIL"
    assert hardware.check_shared_memory(None).level == "FAIL"


def test_pairs_without_nvlink_are_counted_and_what_to_do_depends_on_tensor_parallelism():
    unlinked = ((0, 1), (0, 3), (1, 2), (2, 3))
    finding = hardware.check_nvlink(4, unlinked, 4)
    assert (
        finding.level == "WARN"
        and "4 of 6 pairs" in finding.found
        and "(0-1, 0-3, 1-2, ...)" in finding.found
    )
    assert "parallel.tensor" in finding.next_step
    assert "nothing" in hardware.check_nvlink(4, unlinked, 1).next_step
    assert hardware.check_nvlink(4, None, 4).level == "WARN"
    assert hardware.check_nvlink(1, (), 1).level == "OK"
