"""What is read of a machine: NVML's and torch's answers by stand-ins of their modules, the rest from this one."""

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
from ralign.engine.check import machine
from ralign.engine.check.machine import Driver, Gpu


class NVMLError(Exception):
    pass


def stub_nvml(*, num_gpus: int = 4, joined: bool = True, broken: str = "") -> ModuleType:
    """nvidia-ml-py's functions as its own module defines them; GPUs 0 and 3 have no NVLink between them."""
    module = ModuleType("pynvml")
    module.NVMLError = NVMLError
    module.NVML_P2P_CAPS_INDEX_NVLINK, module.NVML_P2P_STATUS_OK = 2, 0
    module.nvmlDeviceGetCount = lambda: num_gpus
    module.nvmlDeviceGetHandleByIndex = lambda index: index
    module.nvmlDeviceGetName = lambda handle: "NVIDIA H100 80GB HBM3"
    module.nvmlDeviceGetUUID = lambda handle: f"GPU-{handle:08d}-aaaa"
    module.nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(total=8000 + handle, free=7000 + handle)
    module.nvmlDeviceGetCudaComputeCapability = lambda handle: (9, 0)
    module.nvmlSystemGetDriverVersion = lambda: "580.95.05"
    module.nvmlDeviceGetP2PStatus = lambda a, b, index: 5 if {a, b} == {0, 3} or not joined else 0
    module.nvmlInit = lambda: None

    def fails(*args):
        raise NVMLError("stub")

    if broken:
        setattr(module, broken, fails)
    return module


def test_nvml_gives_driver_gpus_and_links(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", stub_nvml())
    driver = machine.read_driver()
    assert driver.version == "580.95.05" and len(driver.gpus) == 4
    assert driver.gpus[2] == Gpu(
        name="NVIDIA H100 80GB HBM3",
        memory_bytes=8002,
        free_bytes=7002,
        capability=(9, 0),
        uuid="00000002-aaaa",
    )
    assert machine.unlinked_pairs(driver.gpus, driver.linked) == ((0, 3),)
    # CUDA_VISIBLE_DEVICES shows two of them, in another order: pairs are of the indices that a process uses.
    assert machine.unlinked_pairs((driver.gpus[3], driver.gpus[0]), driver.linked) == ((0, 1),)
    assert machine.unlinked_pairs(driver.gpus[1:], driver.linked) == ()


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlSystemGetDriverVersion", "nvmlDeviceGetMemoryInfo"])
def test_without_an_answer_of_nvml_there_are_no_gpus_and_no_crash(monkeypatch, broken):
    monkeypatch.setitem(sys.modules, "pynvml", stub_nvml(broken=broken))
    assert machine.read_driver().gpus == ()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert machine.read_driver().gpus == ()


def test_links_that_nvml_does_not_tell_are_unknown(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", stub_nvml(broken="nvmlDeviceGetP2PStatus"))
    driver = machine.read_driver()
    assert driver.linked is None and machine.unlinked_pairs(driver.gpus, None) is None


def stub_torch(*, num_devices: int, is_available: bool, cuda: str | None = "13.0") -> ModuleType:
    """torch with CUDA; device i is NVML's device i + 2."""
    module = ModuleType("torch")
    module.__version__ = "2.13.0+cu130"
    module.version = SimpleNamespace(cuda=cuda)
    module.distributed = SimpleNamespace(is_nccl_available=lambda: True)

    def init():
        if not is_available:
            raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040).\nMore")

    module.cuda = SimpleNamespace(
        device_count=lambda: num_devices,
        is_available=lambda: is_available,
        init=init,
        nccl=SimpleNamespace(version=lambda: (2, 29, 7)),
        get_device_properties=lambda index: SimpleNamespace(
            name="NVIDIA H100 80GB HBM3", total_memory=7900, major=9, minor=0, uuid=f"{index + 2:08d}-aaaa"
        ),
    )
    return module


def test_gpus_are_those_that_torch_sees_with_nvmls_free_memory(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", stub_nvml())
    monkeypatch.setitem(sys.modules, "torch", stub_torch(num_devices=2, is_available=True))
    found, error, gpus = machine.read_torch(machine.read_driver())
    assert (found.nccl, found.num_devices, found.cuda_error, error) == ("2.29.7", 2, "", "")
    assert [(gpu.memory_bytes, gpu.free_bytes) for gpu in gpus] == [(7900, 7002), (7900, 7003)]


def test_gpus_are_the_drivers_where_cuda_does_not_start_or_torch_does_not_import(monkeypatch):
    driver = Driver(
        version="550.54.15", gpus=(Gpu(name="a", memory_bytes=1, free_bytes=1, capability=(9, 0)),)
    )
    monkeypatch.setitem(sys.modules, "torch", stub_torch(num_devices=1, is_available=False))
    found, _, gpus = machine.read_torch(driver)
    assert gpus == driver.gpus and found.num_devices == 1 and not found.is_available
    assert found.cuda_error == "The NVIDIA driver on your system is too old (found version 12040)."
    monkeypatch.setitem(sys.modules, "torch", None)
    found, error, gpus = machine.read_torch(driver)
    assert found is None and "torch" in error and gpus == driver.gpus


def test_shared_memory_and_disk_are_of_the_file_system_that_will_be_used(tmp_path):
    assert machine.read_shared_memory(tmp_path / "missing") is None
    shared = machine.read_shared_memory(tmp_path)
    assert shared.is_writable and 0 < shared.free_bytes <= shared.total_bytes
    free = machine.free_disk_bytes(tmp_path / "runs" / "not" / "there")
    assert abs(free - machine.free_disk_bytes(tmp_path)) < 1 << 30  # others may write


def test_this_machine_can_be_read_and_its_environment_is_not_printed(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    found = machine.read_machine()
    assert found.torch.version and found.packages["torch"] and found.extension_error == ""
    assert found.env["OPENAI_API_KEY"] == os.environ["OPENAI_API_KEY"] and "sk-secret" not in repr(found)
