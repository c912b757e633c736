"""What vLLM needs to run beside a trainer on a CPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from ralign.engine.generator.vllm_internals import CPU_GEMM, SHM_NAME, linear_reads_its_weight
from ralign.engine.runtime.cluster import Cluster

_SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def unpacked_weights() -> Iterator[None]:
    """An engine that is built in this context computes with its parameters themselves, not with packed copies."""
    # torchrun's processes already share the cores; vLLM would bind each of them anew.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    with CPU_GEMM.replaced(linear_reads_its_weight):
        yield


@contextmanager
def starting(cluster: Cluster) -> Iterator[None]:
    """Build the generator's engine in this context; collective over all ranks.

    vLLM names the memory through which tensor-parallel ranks exchange tensors by the numbers of the ranks alone, so
    that another job on this machine, or the remains of a killed one, would have the same name. Here the name starts
    with the job's own id. Once every rank has opened the memory, its name is removed, so that no kill can leave it
    behind.
    """
    job = cluster.on_first_rank(lambda: f"ralign-{os.getpid()}-{os.urandom(4).hex()}")

    def own_name(communicator) -> str:
        name = vllm_name.__func__(communicator)
        return job + name.replace("/", "")  # shm_open allows no slash inside

    with unpacked_weights(), SHM_NAME.replaced(staticmethod(own_name)) as vllm_name:
        yield
    dist.barrier()
    for file in _SHARED_MEMORY.glob(f"{job}*"):
        file.unlink(missing_ok=True)  # another rank of this machine may be faster
