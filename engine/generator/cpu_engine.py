"""What vLLM needs to run beside a trainer on a CPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from ralign.engine.generator.vllm_internals import (
    CPU_GEMM,
    SHM_NAME,
    linear_reads_its_weight,
    replaced,
)
from ralign.engine.runtime.cluster import Cluster

_SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def unpacked_weights() -> Iterator[None]:
    """An engine built in here computes with its parameters as they are, and keeps no packed copy of one."""
    # torchrun's processes already share the cores; vLLM would bind each of them anew.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    with replaced(CPU_GEMM, linear_reads_its_weight):
        yield


@contextmanager
def starting(cluster: Cluster) -> Iterator[None]:
    """The generator's engine is built in here; collective over all ranks.

    vLLM names the memory that tensor-parallel ranks exchange through by the ranks' numbers alone, so that another job
    on this machine, or what a killed one left behind, would be in its way: the name gets this job's own beginning. Once
    every rank has the memory open its name is not needed, and no kill can leave it behind.
    """
    job = cluster.on_first_rank(lambda: f"ralign-{os.getpid()}-{os.urandom(4).hex()}")

    def own_name(communicator) -> str:
        return job + name_of.__func__(communicator).replace(
            "/", ""
        )  # such a name may not have a slash inside

    with unpacked_weights(), replaced(SHM_NAME, staticmethod(own_name)) as name_of:
        yield
    dist.barrier()
    for file in _SHARED_MEMORY.glob(f"{job}*"):
        file.unlink(missing_ok=True)  # another rank of this machine may be faster
