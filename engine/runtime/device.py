"""Which device this process trains on, and how CUDA's libraries compute there."""

import getpass
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from ralign.engine.runtime.errors import UserError


def prepare_cuda(*, deterministic: bool) -> None:
    """Environment variables that CUDA libraries read when they start."""
    # One queue in hardware keeps the order of launches, which Megatron relies on to overlap tensor-parallel
    # collectives with the products beside them.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("NCCL_ALGO", "Ring")  # in-switch sums and trees add in another order


def prepare_cpu() -> None:
    """Compiled kernels are kept apart by the CPU's vector instructions.

    vLLM compiles a few with torch's Inductor, whose cache takes a kernel that was compiled for wider vectors for this
    CPU's: tokens then index out of range under tensor parallelism.
    """
    default = str(Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}"))
    if (
        os.environ.get("TORCHINDUCTOR_CACHE_DIR", default) == default
    ):  # torch itself sets the default when imported
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{default}_{torch.backends.cpu.get_cpu_capability()}"


def gpu_problem() -> str | None:
    """Why the GPUs of this machine cannot be used, in one line; None where they can, or where there are none.

    torch asks the driver's management library how many GPUs there are, and its own CUDA runtime whether it can use
    them. Where the two disagree, a job would be half on CPU and half on GPU.
    """
    if not torch.cuda.device_count() or torch.cuda.is_available():
        return None
    return (
        f"{torch.cuda.device_count()} GPU(s) are here, but torch {torch.__version__} cannot use them: it is built for "
        f"CUDA {torch.version.cuda}, which needs a newer NVIDIA driver (CUDA 13: driver 580 or newer)"
    )


def own_device() -> torch.device:
    """This process's device, made current: the GPU of its number on the node, or the CPU.

    Raises:
        UserError: GPUs that torch cannot use, or fewer than processes.
    """
    if problem := gpu_problem():
        raise UserError(problem)
    if not torch.cuda.is_available():
        prepare_cpu()
        return torch.device("cpu")
    local_rank, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise UserError(
            f"process {local_rank} of this node has no GPU: torch sees {num_gpus}; start at most one process a GPU "
            f"(torchrun --nproc-per-node {num_gpus}; under SLURM every process must see all GPUs of its node: "
            "--gpu-bind=none)"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def check_own_gpus(device: torch.device) -> None:
    """Raises UserError where two processes have the same GPU; collective."""
    own = str(torch.cuda.get_device_properties(device).uuid)
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    if everyone.count(own) > 1:
        ranks = [rank for rank, uuid in enumerate(everyone) if uuid == own]
        raise UserError(f"ranks {', '.join(map(str, ranks))} have the same GPU ({own}): one process a GPU")


@contextmanager
def deterministic_kernels(enabled: bool) -> Iterator[None]:
    """While open, with `enabled`, torch uses only kernels that give the same bits for the same inputs, or raises."""
    before = torch.are_deterministic_algorithms_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(enabled or before)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads what was not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fills
