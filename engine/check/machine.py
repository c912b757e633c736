"""This machine: read once into a `Machine`, the input of every check.

Tests construct a `Machine`. Heavy packages are imported by `read_machine` only, and torch may be missing.
"""

import importlib.metadata
import itertools
import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_SLURM_PROGRAMS = ("sinfo", "squeue", "sbatch", "srun", "scontrol")


@dataclass(frozen=True, kw_only=True, slots=True)
class Torch:
    """The installed torch.

    Attributes:
        cuda: version of CUDA that it was built for; None for a CPU build.
        nccl: version of its NCCL; None without NCCL.
        num_devices: `torch.cuda.device_count()`, which uses NVML and so works even if CUDA does not start.
        is_available: whether CUDA starts.
        cuda_error: CUDA's message if it does not start.
    """

    version: str
    cuda: str | None = None
    nccl: str | None = None
    num_devices: int = 0
    is_available: bool = False
    cuda_error: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU that is visible to this process. `free_bytes` is None if the driver does not report it."""

    name: str
    memory_bytes: int
    free_bytes: int | None
    capability: tuple[int, int]
    uuid: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedMemory:
    """The file system at /dev/shm."""

    total_bytes: int
    free_bytes: int
    is_writable: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Driver:
    """NVML's report: all GPUs of the machine, and the pairs with NVLink."""

    version: str | None = None
    gpus: tuple[Gpu, ...] = ()
    linked: frozenset[tuple[str, str]] | None = None  # pairs of UUIDs, both ways; None if unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The input of all checks, except for the run's files and servers.

    Attributes:
        torch, torch_error: None and the reason if torch cannot be imported.
        driver: version of the NVIDIA driver; None without one.
        gpus: in the order of device indices.
        unlinked: pairs of device indices without NVLink; None if unknown.
        shared_memory: None if /dev/shm does not exist.
        num_cores, host_bytes: CPU cores and free memory of the host.
        packages: installed distributions with their versions, by normalised name.
        extension_error: why the C++ extension cannot be imported; empty if it can.
        c_compiler, cxx_compiler: None if there is none.
        python_header, has_python_header: expected path of Python.h, and whether it exists.
        programs: installed programs of SLURM.
        env: the environment; it has keys and is never printed.
        free_disk_bytes: folder -> free space of its file system.
    """

    torch: Torch | None
    torch_error: str = ""
    driver: str | None = None
    gpus: tuple[Gpu, ...] = ()
    unlinked: tuple[tuple[int, int], ...] | None = None
    shared_memory: SharedMemory | None
    num_cores: int
    host_bytes: int
    packages: Mapping[str, str] = field(repr=False)
    extension_error: str = ""
    c_compiler: str | None
    cxx_compiler: str | None
    python_header: str
    has_python_header: bool
    programs: frozenset[str] = frozenset()
    env: Mapping[str, str] = field(repr=False)
    free_disk_bytes: Callable[[Path], int] = field(repr=False)


def read_machine() -> Machine:
    """This machine, as visible to this process."""
    import psutil

    driver = read_driver()
    torch, torch_error, gpus = read_torch(driver)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return Machine(
        torch=torch,
        torch_error=torch_error,
        driver=driver.version,
        gpus=gpus,
        unlinked=unlinked_pairs(gpus, driver.linked),
        shared_memory=read_shared_memory(SHARED_MEMORY),
        num_cores=len(os.sched_getaffinity(0)),
        host_bytes=psutil.virtual_memory().available,
        packages=installed_packages(),
        extension_error=_extension_error(),
        c_compiler=_first_program(os.environ.get("CC"), "gcc", "clang"),
        cxx_compiler=_first_program(os.environ.get("CXX"), "c++", "g++", "clang++"),
        python_header=str(header),
        has_python_header=header.is_file(),
        programs=frozenset(name for name in _SLURM_PROGRAMS if shutil.which(name)),
        env=os.environ,
        free_disk_bytes=free_disk_bytes,
    )


def read_driver() -> Driver:
    """The NVIDIA driver, read with nvidia-ml-py if it is installed (vLLM's CUDA build brings it)."""
    version = None
    if _DRIVER_FILE.is_file():  # "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue ..."
        words = _DRIVER_FILE.read_text(encoding="utf-8", errors="replace").split("\n")[0].split()
        version = next((word for word in words if word[:1].isdigit() and "." in word), None)
    try:
        import pynvml  # pyright: ignore[reportMissingImports]
    except ImportError:
        return Driver(version=version)
    try:
        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
        count = pynvml.nvmlDeviceGetCount()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        gpus = tuple(_read_gpu(pynvml, handle) for handle in handles)
    except pynvml.NVMLError:  # no driver; or one that was replaced while its module is still loaded
        return Driver(version=version)
    return Driver(version=version, gpus=gpus, linked=_linked(pynvml, gpus, handles))


def _read_gpu(nvml, handle) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        name=nvml.nvmlDeviceGetName(handle),
        memory_bytes=memory.total,
        free_bytes=memory.free,
        capability=tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        uuid=_plain_uuid(nvml.nvmlDeviceGetUUID(handle)),
    )


def _linked(nvml, gpus: tuple[Gpu, ...], handles: list) -> frozenset[tuple[str, str]] | None:
    """Pairs with NVLink, from the NVML query by which vLLM decides on its custom all-reduce."""
    linked = set()
    try:
        for a, b in itertools.permutations(range(len(gpus)), 2):
            status = nvml.nvmlDeviceGetP2PStatus(handles[a], handles[b], nvml.NVML_P2P_CAPS_INDEX_NVLINK)
            if status == nvml.NVML_P2P_STATUS_OK:
                linked.add((gpus[a].uuid, gpus[b].uuid))
    except nvml.NVMLError:
        return None
    return frozenset(linked)


def read_torch(driver: Driver) -> tuple[Torch | None, str, tuple[Gpu, ...]]:
    """torch, the error of its import, and the GPUs: torch's, or the driver's if CUDA does not start."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a CUDA library that is missing
        return None, f"{type(error).__name__}: {error}", driver.gpus
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about an old driver, which the report has
        found = Torch(
            version=torch.__version__,
            cuda=torch.version.cuda,
            nccl=_nccl_version(torch),
            num_devices=torch.cuda.device_count(),
            is_available=torch.cuda.is_available(),
            cuda_error=_cuda_error(torch),
        )
    if not found.is_available:
        return found, "", driver.gpus
    free_bytes = {gpu.uuid: gpu.free_bytes for gpu in driver.gpus}
    gpus = []
    for index in range(found.num_devices):
        properties = torch.cuda.get_device_properties(index)
        uuid = _plain_uuid(str(properties.uuid))
        gpu = Gpu(
            name=properties.name,
            memory_bytes=properties.total_memory,
            free_bytes=free_bytes.get(uuid),
            capability=(properties.major, properties.minor),
            uuid=uuid,
        )
        gpus.append(gpu)
    return found, "", tuple(gpus)


def _nccl_version(torch) -> str | None:
    if torch.version.cuda is None or not torch.distributed.is_nccl_available():
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))


def _cuda_error(torch) -> str:
    if torch.version.cuda is None or torch.cuda.is_available() or not torch.cuda.device_count():
        return ""
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return str(error).split("\n")[0]
    return ""


def unlinked_pairs(
    gpus: tuple[Gpu, ...], linked: frozenset[tuple[str, str]] | None
) -> tuple[tuple[int, int], ...] | None:
    """Pairs of device indices without NVLink; None if the driver does not report it."""
    if linked is None or not all(gpu.uuid for gpu in gpus):
        return None
    pairs = itertools.combinations(range(len(gpus)), 2)
    return tuple((a, b) for a, b in pairs if (gpus[a].uuid, gpus[b].uuid) not in linked)


def _plain_uuid(text: str) -> str:
    return text.removeprefix("GPU-")


def read_shared_memory(folder: Path) -> SharedMemory | None:
    if not folder.is_dir():
        return None
    usage = shutil.disk_usage(folder)
    is_writable = os.access(folder, os.W_OK | os.X_OK)
    return SharedMemory(total_bytes=usage.total, free_bytes=usage.free, is_writable=is_writable)


def free_disk_bytes(folder: Path) -> int:
    """Free bytes of the file system of the folder or of its nearest existing parent, without quotas."""
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def installed_packages() -> dict[str, str]:
    from packaging.utils import canonicalize_name

    found = ((d.metadata["Name"], d.version) for d in importlib.metadata.distributions())
    return {canonicalize_name(name): version for name, version in found if name and version}


def _extension_error() -> str:
    try:
        import ralign.kernels._packing  # noqa: F401
    except ImportError as error:
        return str(error)
    return ""


def _first_program(*names: str | None) -> str | None:
    return next((path for name in names if name and (path := shutil.which(name))), None)
