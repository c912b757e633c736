"""The job that torchrun started: ranks, device, and Megatron's process groups."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from ralign.engine.runtime.cuda_stand_in import cuda_stand_in
from ralign.engine.runtime.device import check_own_gpus, own_device, prepare_cuda
from ralign.engine.runtime.errors import UserError

T = TypeVar("T")


@dataclass(kw_only=True, frozen=True)
class Cluster:
    """This process's place in the job. Ranks vary fastest in tensor, then context, data, pipeline parallel.

    Attributes:
        generation_timeout_s: longest wait for the rank that generates the longest.
        deterministic: training computes the same bits from the same inputs on CUDA, too.
    """

    rank: int
    world_size: int
    device: torch.device
    tp_group: dist.ProcessGroup
    dp_group: dist.ProcessGroup
    pp_group: dist.ProcessGroup
    cp_group: dist.ProcessGroup
    generation_timeout_s: float
    deterministic: bool = False

    @property
    def tp_rank(self) -> int:
        return dist.get_rank(self.tp_group)

    @property
    def tp_size(self) -> int:
        return dist.get_world_size(self.tp_group)

    @property
    def dp_rank(self) -> int:
        return dist.get_rank(self.dp_group)

    @property
    def dp_size(self) -> int:
        return dist.get_world_size(self.dp_group)

    @property
    def pp_rank(self) -> int:
        return dist.get_rank(self.pp_group)

    @property
    def pp_size(self) -> int:
        return dist.get_world_size(self.pp_group)

    @property
    def cp_rank(self) -> int:
        return dist.get_rank(self.cp_group)

    @property
    def cp_size(self) -> int:
        return dist.get_world_size(self.cp_group)

    @property
    def is_first_rank(self) -> bool:
        return self.rank == 0

    def all_gather_data(self, value: object) -> list:
        """The objects of all data-parallel ranks, in rank order, on every rank."""
        values: list = [None] * self.dp_size
        dist.all_gather_object(values, value, group=self.dp_group)
        return values

    def all_true(self, *values: bool) -> list[bool]:
        """For each value, whether it is true on every rank of the job; one small collective on the host."""
        flags = torch.tensor(values, dtype=torch.int)
        dist.all_reduce(flags, op=dist.ReduceOp.MIN)
        return [bool(flag) for flag in flags]

    def on_first_rank(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0; every rank gets the result. Collective.

        Raises:
            UserError: on every rank, if the action raised one, or an OSError.
        """
        box: list = [None, None]
        if self.is_first_rank:
            try:
                box[0] = action()
            except OSError as error:
                box[1] = UserError(f"{error.filename}: {error.strerror}" if error.filename else str(error))
            except UserError as error:
                box[1] = error
        dist.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def last_stage_rank(self) -> int:
        """The global rank that holds this rank's last pipeline stage."""
        return dist.get_process_group_ranks(self.pp_group)[-1]


def start(
    *,
    tensor: int = 1,
    pipeline: int = 1,
    context: int = 1,
    timeout_s: float = 1800.0,
    generation_timeout_s: float = 7200.0,
    deterministic: bool = False,
) -> Cluster:
    """Join the job that torchrun started, or start a job of one process, and lay out the parallel groups.

    Args:
        tensor: ranks that share each layer's matrices.
        pipeline: ranks that share the stack of layers.
        context: ranks that share the tokens of a micro-batch.
        timeout_s: how long a collective may wait before the job ends.
        generation_timeout_s: the same where ranks wait for the one that generates the longest.
        deterministic: training computes the same bits from the same inputs on CUDA, too.

    Raises:
        UserError: the sizes do not divide the number of processes; torch cannot use the GPUs; there are fewer GPUs
            than processes.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size % (tensor * pipeline * context):
        raise UserError(
            f"parallel.tensor={tensor} x parallel.pipeline={pipeline} x parallel.context={context} does not "
            f"divide the {world_size} processes of this job"
        )
    prepare_cuda(deterministic=deterministic)
    device = own_device()
    if not dist.is_initialized():
        for name, value in {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
        }.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
        if device.type == "cuda":
            check_own_gpus(device)
    if parallel_state.is_initialized():  # another layout of the same processes
        parallel_state.destroy_model_parallel()
    with cuda_stand_in():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor,
            pipeline_model_parallel_size=pipeline,
            context_parallel_size=context,
            distributed_timeout_minutes=max(1, int(timeout_s // 60)),
        )
        # Sequence parallelism and recomputation need the tracker, although there is no dropout to draw.
        model_parallel_cuda_manual_seed(0)
    return Cluster(
        rank=dist.get_rank(),
        world_size=world_size,
        device=device,
        tp_group=_group(parallel_state.get_tensor_model_parallel_group()),
        dp_group=_group(parallel_state.get_data_parallel_group()),
        pp_group=_group(parallel_state.get_pipeline_model_parallel_group()),
        cp_group=_group(parallel_state.get_context_parallel_group()),
        generation_timeout_s=generation_timeout_s,
        deterministic=deterministic,
    )


def stop() -> None:
    """Leave the job."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def _group(group: object) -> dist.ProcessGroup:
    assert isinstance(group, dist.ProcessGroup), group
    return group


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
