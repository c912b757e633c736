"""Which device a process takes, and how mistakes about GPUs end; stubs stand for CUDA."""

import getpass
import os
import tempfile

import pytest
import torch
from ralign.engine.planner import start
from ralign.engine.planner.cli import recipe_run
from ralign.engine.runtime import device
from ralign.engine.runtime.errors import UserError


@pytest.fixture
def cuda(monkeypatch):
    """(GPUs that the driver's library counts, whether torch can use them, this process's number) -> a stub CUDA."""

    def stub(num_gpus: int, *, is_usable: bool = True, local_rank: int = 0) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: is_usable and num_gpus > 0)
        monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))

    return stub


def test_each_process_has_the_gpu_of_its_number(cuda):
    cuda(8, local_rank=5)
    assert device.own_device() == torch.device("cuda", 5)


def test_a_machine_without_gpus_computes_on_its_cpu(cuda):
    cuda(0, local_rank=1)
    assert device.own_device() == torch.device("cpu")


@pytest.mark.parametrize("num_gpus", [1, 4])
def test_more_processes_than_gpus_are_refused(cuda, num_gpus):
    cuda(num_gpus, local_rank=num_gpus)
    with pytest.raises(UserError, match=f"process {num_gpus} of this node has no GPU: torch sees {num_gpus}"):
        device.own_device()


def test_a_driver_too_old_for_torch_is_no_reason_to_train_on_the_cpu(cuda):
    cuda(8, is_usable=False)
    with pytest.raises(UserError, match="8 GPU.*CUDA 13.0.*driver 580"):
        device.own_device()


def test_a_recipe_for_gpus_says_the_same_before_it_reads_a_model(cuda):
    cuda(8, is_usable=False)
    with pytest.raises(UserError, match="driver 580"):
        start.require_gpus(recipe_run("r_align_8b"), num_gpus=8, gpu="h100", launch="torchrun")


@pytest.mark.parametrize(("uuids", "is_right"), [(["a", "b"], True), (["a", "a"], False)])
def test_two_processes_with_one_gpu_are_refused(monkeypatch, uuids, is_right):
    class Properties:
        uuid = uuids[0]

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(device.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(
        device.dist, "all_gather_object", lambda everyone, own: everyone.__setitem__(slice(None), uuids)
    )
    if is_right:
        device.check_own_gpus(torch.device("cuda", 0))
        return
    with pytest.raises(UserError, match="ranks 0, 1 have the same GPU"):
        device.check_own_gpus(torch.device("cuda", 0))


def test_launches_keep_their_order_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    device.prepare_cuda(deterministic=False)
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
    device.prepare_cuda(deterministic=False)
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "8"


def test_deterministic_libraries_are_asked_for_before_they_start(monkeypatch):
    for name in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO"):
        monkeypatch.delenv(name, raising=False)
    device.prepare_cuda(deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8" and os.environ["NCCL_ALGO"] == "Ring"
    for name in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO"):
        monkeypatch.delenv(name)


def test_deterministic_kernels_are_asked_for_where_training_computes_and_nowhere_else():
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ZeroDivisionError):
        with device.deterministic_kernels(True):
            assert torch.are_deterministic_algorithms_enabled()
            raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled()
    with device.deterministic_kernels(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_kernels_compiled_for_one_kind_of_cpu_are_not_taken_on_another(monkeypatch):
    folders = set()
    for capability in ("AVX2", "AVX512"):
        default = (
            f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"  # as importing Inductor leaves it
        )
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default)
        monkeypatch.setattr(
            torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability
        )
        device.prepare_cpu()
        folders.add(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert len(folders) == 2
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    device.prepare_cpu()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
