"""Checks of torch, driver, GPUs, processes, NCCL, shared memory and NVLink."""

import re
from collections.abc import Mapping
from typing import Literal

from ralign.engine.check.machine import SHARED_MEMORY, Gpu, Machine, SharedMemory, Torch
from ralign.engine.check.report import Finding, fail, ok, size_text, warn
from ralign.engine.planner.judges import GIB

# Major version of CUDA -> oldest driver, from NVIDIA's table of minor version compatibility.
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
LEAST_CAPABILITY = (8, 0)
# Size of /dev/shm: the default in containers, and the recommendation of NCCL's guide for containers.
CONTAINER_SHARED_BYTES = 64 << 20
SHARED_BYTES = 1 << 30
_USED_SHARE = 0.02  # of a GPU's memory: more than the driver uses on an idle GPU
_NEW_CUDA = (
    "pip install 'ralign[cuda]' into a new environment (repository: remove .venv, then make venv KIND=cuda)"
)
_NEW_CPU = (
    "pip install 'ralign[cpu]' into a new environment (repository: remove .venv, then make venv KIND=cpu)"
)
_SET_UP = "pip install 'ralign[cuda]' ('ralign[cpu]' without GPUs), or make venv in the repository"

# Whether the run needs GPUs: no; on this machine; on a machine that the user has named.
Need = Literal["no", "here", "elsewhere"]
_NO_GPU = {
    "no": (
        "none here: CPU only, for miniature recipes and --smoke",
        "nothing for those; start GPU recipes on a machine with GPUs",
    ),
    "here": (
        "none here, and this recipe needs them",
        "start it on a machine with GPUs; here run recipes/r_align_mini.py, or this recipe with --smoke",
    ),
    "elsewhere": (
        "none here; the plan below is for GPUs elsewhere",
        "repeat ralign-check on the GPU machine, for example at the start of the job",
    ),
}


def check_torch(machine: Machine) -> Finding:
    """torch can be imported, and its build fits the machine."""
    torch = machine.torch
    if torch is None:
        return fail("torch", f"does not import ({machine.torch_error})", f"{_SET_UP}; then run this again")
    if torch.cuda is None and machine.driver is not None:
        found = f"{torch.version} is built without CUDA, but there is an NVIDIA driver ({machine.driver})"
        return fail("torch", found, _NEW_CUDA)
    built = f"built for CUDA {torch.cuda}" if torch.cuda else "built for CPU"
    return ok("torch", f"{torch.version}, {built}")


def check_driver(driver: str | None, torch: Torch | None, need: Need) -> Finding:
    """The NVIDIA driver supports the CUDA version of torch, and CUDA starts."""
    num_devices = torch.num_devices if torch else 0
    if driver is None and not num_devices:
        return _absent("driver", need, "no NVIDIA driver here", "see the line on gpus")
    version = driver or "of unknown version"
    if torch is None or torch.cuda is None:
        return warn(
            "driver", f"{version}; no CUDA build of torch to compare it with", "see the line on torch"
        )
    least = LEAST_DRIVER.get(int(torch.cuda.split(".")[0]), 0)
    is_old = driver is not None and int(driver.split(".")[0]) < least
    needs = f"CUDA {torch.cuda}, which torch {torch.version} is built for"
    if torch.is_available and is_old:
        found = f"{version} is older than {needs}; CUDA starts nevertheless (forward compatibility), untested"
        return warn("driver", found, f"install NVIDIA driver {least} or newer if anything goes wrong")
    if torch.is_available:
        return ok("driver", f"{version}, new enough for {needs}")
    if is_old:
        found = f"{version} is too old for {needs}: torch sees {num_devices} GPUs and can use none"
        step = f"have NVIDIA driver {least} or newer installed on this machine; a newer CUDA toolkit does not help"
        return fail("driver", found, step)
    reason = f": {torch.cuda_error}" if torch.cuda_error else ""
    found = f"{version} is new enough for {needs}, but CUDA does not start on {num_devices} GPUs{reason}"
    step = "see nvidia-smi; start a container with --gpus all; with NVSwitch check that nvidia-fabricmanager runs"
    return fail("driver", found, step)


def check_gpus(machine: Machine, need: Need, fills_memory: float | None) -> Finding:
    """Total memory, free memory and compute capability.

    Args:
        fills_memory: share of a GPU's memory that the run fills; None for a fixed size, or if unknown.
    """
    gpus, torch = machine.gpus, machine.torch
    if not gpus and torch and torch.cuda:
        found = f"none here, and torch {torch.version} and its vLLM are CUDA builds, which have no engine for a CPU"
        step = f"go to a machine with GPUs; or {_NEW_CPU}"
        return _absent("gpus", need, found, step)
    if not gpus:
        return _absent("gpus", need, *_NO_GPU[need])
    found = _described(gpus)
    details = [f"{i}: {_described([gpu])}, {_free(gpu)} free" for i, gpu in enumerate(gpus)]
    old = [index for index, gpu in enumerate(gpus) if gpu.capability < LEAST_CAPABILITY]
    if old:
        step = (
            "use GPUs of compute capability 8.0 or newer (A100, H100, H200, B200): bf16 and kernels need it"
        )
        return fail("gpus", f"{found}; {_listed(old)} too old", step, details)
    held = {
        index: 1 - gpu.free_bytes / gpu.memory_bytes
        for index, gpu in enumerate(gpus)
        if gpu.free_bytes is not None and gpu.free_bytes < (1 - _USED_SHARE) * gpu.memory_bytes
    }
    if held:
        fullest = max(held, key=held.__getitem__)
        taken = f"GPU {fullest} has {_free(gpus[fullest])} free"
        taken += f", and {len(held) - 1} more are in use" if len(held) > 1 else ""
        step = "find the process with nvidia-smi, and end it or use another GPU"
        too_full = fills_memory is not None and 1 - held[fullest] < fills_memory
        level = fail if too_full else warn
        return level("gpus", f"{found}; {taken}", step, details)
    if len({gpu.name for gpu in gpus}) > 1:
        step = "give the job GPUs of one kind (CUDA_VISIBLE_DEVICES): a step waits for the slowest of them"
        return warn("gpus", found, step, details)
    return ok("gpus", found, details)


def check_processes(
    env: Mapping[str, str], num_visible: int, num_gpus: int | None, num_cores: int
) -> Finding:
    """One process per GPU: in the current job of torchrun or SLURM, or in a job to be started."""
    local_rank, local_size = _number(env, "LOCAL_RANK"), _number(env, "LOCAL_WORLD_SIZE")
    if not num_visible:
        return ok("processes", f"on a CPU any number; {num_cores} cores here")
    if local_size is not None and local_size > num_visible:
        found = f"{local_size} processes here (LOCAL_WORLD_SIZE), {num_visible} GPUs seen"
        return fail(
            "processes", found, f"start {num_visible} per node (torchrun --nproc-per-node {num_visible})"
        )
    if local_rank is not None and local_rank >= num_visible:
        found = f"LOCAL_RANK={local_rank} is not a device: this process sees {num_visible} GPU(s)"
        return fail("processes", found, "let every process see all GPUs of its node (see the line on SLURM)")
    if num_gpus is None or num_gpus == num_visible:
        return ok("processes", f"one a GPU: torchrun --nproc-per-node {num_visible}")
    if num_gpus < num_visible:
        found = f"{num_gpus} processes use {num_gpus} of {num_visible} GPUs"
        return ok("processes", f"{found}: torchrun --nproc-per-node {num_gpus}")
    if num_gpus % num_visible:
        found = f"{num_gpus} GPUs are not a whole number of nodes like this one, with {num_visible}"
        return warn("processes", found, f"use a multiple of {num_visible}, the same number on each node")
    return ok("processes", f"one a GPU: {num_gpus // num_visible} nodes like this one, of {num_visible} GPUs")


def check_nccl(torch: Torch | None, env: Mapping[str, str], num_visible: int) -> Finding:
    """NCCL is available, and no variable disables one of its transports."""
    if torch is None or not num_visible:
        return ok("nccl", "not used: without GPUs processes use gloo")
    if torch.nccl is None:
        return fail("nccl", f"torch {torch.version} is built without NCCL", _NEW_CUDA)
    off = [
        name for name in ("NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE") if env.get(name) == "1"
    ]
    if off:
        found = f"NCCL {torch.nccl}, with {', '.join(f'{name}=1' for name in off)}"
        return warn("nccl", found, "unset it: it makes collectives far slower (set it only for diagnosis)")
    return ok("nccl", f"NCCL {torch.nccl}")


def check_shared_memory(shared: SharedMemory | None) -> Finding:
    """Room in /dev/shm for NCCL and vLLM. A container has 64 MB by default."""
    check, docker = str(SHARED_MEMORY), "docker run --shm-size=16g (or --ipc=host)"
    if shared is None:
        step = f"mount a tmpfs there: {docker}; in Kubernetes an emptyDir with medium: Memory"
        return fail(check, "does not exist; NCCL and vLLM exchange data between processes there", step)
    if not shared.is_writable:
        return fail(check, "cannot be written to by this user", f"chmod 1777 {check}, as root")
    room = f"{size_text(shared.free_bytes)} free of {size_text(shared.total_bytes)}"
    if shared.free_bytes <= CONTAINER_SHARED_BYTES:
        step = f"start the container with {docker}, or remove old files in {check}"
        return fail(check, f"{room}: too little for NCCL and vLLM", step)
    if shared.free_bytes < SHARED_BYTES:
        return warn(check, f"{room}; NCCL's guide gives containers 1 GB", f"more, to be safe: {docker}")
    return ok(check, room)


def check_nvlink(num_visible: int, unlinked: tuple[tuple[int, int], ...] | None, tensor: int) -> Finding:
    """NVLink between all GPUs of this machine.

    Args:
        unlinked: pairs without NVLink; None if unknown.
        tensor: tensor-parallel size, which needs NVLink most.
    """
    if num_visible < 2:
        return ok("nvlink", f"not needed: {num_visible or 'no'} GPU{'' if num_visible == 1 else 's'} here")
    if unlinked is None:
        return warn(
            "nvlink", "unknown: NVML does not report it", "nvidia-smi topo -m shows it: NV18, NV12 are NVLink"
        )
    num_pairs = num_visible * (num_visible - 1) // 2
    if not unlinked:
        return ok("nvlink", f"between all {num_visible} GPUs")
    pairs = ", ".join(f"{a}-{b}" for a, b in unlinked[:3]) + (", ..." if len(unlinked) > 3 else "")
    found = f"{len(unlinked)} of {num_pairs} pairs of GPUs have none ({pairs})"
    step = "keep parallel.tensor within linked GPUs (nvidia-smi topo -m); a smaller size costs less over PCIe"
    if tensor == 1:
        step = "nothing at parallel.tensor=1, but gradients use PCIe"
    return warn("nvlink", found, step)


def _absent(check: str, need: Need, found: str, next_step: str) -> Finding:
    return (fail if need == "here" else warn)(check, found, next_step)


def _described(gpus: "tuple[Gpu, ...] | list[Gpu]") -> str:
    """`8 x NVIDIA H100 80GB HBM3 (79.2 GiB, sm_90)`, for each kind."""
    kinds: dict[str, int] = {}
    for gpu in gpus:
        major, minor = gpu.capability
        kind = f"{gpu.name} ({gpu.memory_bytes / GIB:.1f} GiB, sm_{major}{minor})"
        kinds[kind] = kinds.get(kind, 0) + 1
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.items())


def _free(gpu: Gpu) -> str:
    if gpu.free_bytes is None:
        return "unknown"
    return f"{gpu.free_bytes / GIB:.1f} of {gpu.memory_bytes / GIB:.1f} GiB"


def _listed(indices: list[int]) -> str:
    return f"GPU {', '.join(map(str, indices))}"


def _number(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name, "")
    return int(text) if re.fullmatch(r"\d+", text) else None
