"""The device that this process trains on, and the settings of CUDA's libraries."""

import getpass
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ralign.engine.runtime.errors import UserError


def prepare_cuda(*, deterministic: bool) -> None:
    """Set environment variables that CUDA libraries read when they start; the user's own values stay."""
    # One hardware queue keeps launches in order. Megatron relies on it to overlap tensor-parallel collectives with
    # matrix products.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("NCCL_ALGO", "Ring")  # trees, and sums in the switch, add in other orders


def prepare_cpu() -> None:
    """Give torch's Inductor a cache folder of its own for each kind of vector instructions.

    vLLM compiles some kernels with Inductor. Its cache does not tell kernels for wider vectors from this CPU's: tokens
    then index out of range under tensor parallelism.
    """
    # torch sets the default when it is imported.
    default = str(Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}"))
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default) == default:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{default}_{torch.backends.cpu.get_cpu_capability()}"


def gpu_problem() -> str | None:
    """Why torch cannot use the GPUs of this machine, in one line; None if it can, or if there are none.

    torch counts GPUs by the driver's management library and decides by its own CUDA runtime whether it can use them.
    If the two disagree, one half of a job would run on the CPU and the other half on GPUs.
    """
    if not torch.cuda.device_count() or torch.cuda.is_available():
        return None
    return (
        f"this machine has {torch.cuda.device_count()} GPU(s), but torch {torch.__version__} cannot use them: it is"
        f" built for CUDA {torch.version.cuda}, which needs a newer NVIDIA driver (CUDA 13: driver 580 or newer)"
    )


def own_device() -> torch.device:
    """Make this process's device current and return it: the GPU of its local rank, or the CPU.

    Raises:
        UserError: torch cannot use the GPUs, or there are fewer GPUs than processes.
    """
    if problem := gpu_problem():
        raise UserError(problem)
    if not torch.cuda.is_available():
        prepare_cpu()
        return torch.device("cpu")
    local_rank, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise UserError(
            f"process {local_rank} of this node has no GPU: torch sees {num_gpus}; start at most one process per GPU "
            f"(torchrun --nproc-per-node {num_gpus}; under SLURM every process must see all GPUs of its node: "
            "--gpu-bind=none)"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def check_own_gpus(device: torch.device) -> None:
    """Raises UserError if two processes have the same GPU; collective."""
    own = str(torch.cuda.get_device_properties(device).uuid)
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    if everyone.count(own) > 1:
        ranks = [rank for rank, uuid in enumerate(everyone) if uuid == own]
        raise UserError(
            f"ranks {', '.join(map(str, ranks))} have the same GPU ({own}); start one process per GPU"
        )


@contextmanager
def deterministic_kernels(enabled: bool) -> Iterator[None]:
    """If `enabled`, torch uses only deterministic kernels in this context, and raises where it has none."""
    before = torch.are_deterministic_algorithms_enabled()
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(enabled or before)
    settings.fill_uninitialized_memory = False  # nothing reads what was not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = fills
