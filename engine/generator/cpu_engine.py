"""What vLLM needs to be told to run beside a trainer on a CPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from ralign.engine.cluster import Cluster

_SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def starting(cluster: Cluster) -> Iterator[None]:
    """The engine is made in here; collective over all ranks.

    vLLM names the memory that tensor-parallel ranks exchange through by the ranks' numbers alone, so that another job
    on this machine, or what a killed one left behind, would be in its way: the name gets this job's own beginning. Once
    every rank has the memory open its name is not needed, and no kill can leave it behind.
    """
    # torchrun's processes already share the cores; vLLM would bind each of them anew.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    import vllm._custom_ops as custom_ops
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    # oneDNN would pack a private copy of each weight at load and go on reading that copy.
    custom_ops._supports_onednn = False
    job = cluster.on_first_rank(lambda: f"ralign-{os.getpid()}-{os.urandom(4).hex()}")
    name_of = _CPUSHMDistributed.make_group_name

    def own_name(communicator) -> str:
        return job + name_of(communicator).replace("/", "")  # such a name may not have a slash inside

    _CPUSHMDistributed.make_group_name = staticmethod(own_name)
    yield
    _CPUSHMDistributed.make_group_name = staticmethod(name_of)
    dist.barrier()
    for file in _SHARED_MEMORY.glob(f"{job}*"):
        file.unlink(missing_ok=True)  # another rank of this machine may be faster
