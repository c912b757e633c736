"""Models on FakeTensors of device `cuda:0`: shapes, types and devices are right, nothing is computed.

`fake_cuda` is the mode, `fake_world` the process groups of a job with any number of ranks, seen from one of them.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import stub_libcuda
import torch
import torch.distributed as dist
from as_h100 import NUM_GPUS
from safetensors import safe_open
from torch import Tensor, nn
from torch._C._distributed_c10d import FakeWork
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore

# What Megatron's optimizer calls, and torch gives FakeTensors no answer to.
_COALESCED = torch.library.Library("c10d", "IMPL")
for _name in ("reduce_scatter_tensor_coalesced_", "allgather_into_tensor_coalesced_", "allreduce_coalesced_"):
    _COALESCED.impl(_name, lambda *_: FakeWork().boxed(), "Meta")


def _addmm_to_fp32(total: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype, *, out: Tensor) -> Tensor:
    """The shapes of a sum in fp32 of a product in bf16, for which torch 2.11 takes the rule of the plain product."""
    assert total is out and out.dtype == dtype and out.shape == (a.shape[0], b.shape[1])
    assert a.device == b.device == out.device
    return out


class _FakeCudaMode(FakeTensorMode):
    """torch is to make no CUDA context for it, whatever `torch.cuda.is_available` says."""

    avoid_device_init = True

    def dispatch(self, func: Callable, types, args=(), kwargs=None):
        if func is torch.ops.aten.addmm.dtype_out:
            return _addmm_to_fp32(*args, **kwargs)
        return super().dispatch(func, types, args, kwargs)


class _HostMemory(TorchFunctionMode):
    """Host memory, pinned or not (whoever says which means it), is plain and real: values are written into it."""

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is Tensor.pin_memory:
            return args[0]
        if kwargs.pop("pin_memory", None) is not None and func is torch.empty:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        # Asked of the embedding and a tied head: in files by us, in the model by vLLM.
        if func is torch.equal:
            with unset_fake_temporarily():
                return args[0].shape == args[1].shape and (isinstance(args[0], FakeTensor) or func(*args))
        return func(*args, **kwargs)


class _RealSlice:
    """A tensor of a safetensors file, read outside the mode: the reader makes its tensors from raw memory."""

    def __init__(self, source):
        self._source = source

    def get_shape(self) -> list[int]:
        return self._source.get_shape()

    def __getitem__(self, index) -> Tensor:
        with unset_fake_temporarily():
            return self._source[index]


class _RealFile:
    """What `safe_open` gives, with `_RealSlice`s."""

    def __init__(self, *args, **kwargs):
        self._file = safe_open(*args, **kwargs)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def keys(self) -> list[str]:
        return self._file.keys()

    def get_slice(self, name: str) -> _RealSlice:
        return _RealSlice(self._file.get_slice(name))


def _to(module: nn.Module, device: torch.device) -> nn.Module:
    """`nn.Module.to`, which cannot exchange FakeTensors that something refers to, and here has nothing to exchange."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    elsewhere = [name for name, tensor in tensors if tensor.device != device]
    assert not elsewhere, f"made elsewhere, then copied to {device}"
    return module


@contextmanager
def fake_cuda() -> Iterator[list[torch.Size]]:
    """While open, tensors are FakeTensors, and `backward` runs torch's own engine on those of `cuda:0`."""
    from ralign.engine.policy import hf

    torch._C._ensureCUDADeviceGuardSet()  # before any device is counted: the guard that does nothing
    stub_libcuda.pretend_devices(NUM_GPUS)
    reads = []

    def tolist(tensor: FakeTensor) -> list[float] | list[int]:
        reads.append(tensor.shape)
        return [1.0] * len(tensor) if tensor.is_floating_point() else list(range(len(tensor)))

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", tolist))
        # Storages of FakeTensors have no memory; who shares one is told by its address.
        stack.enter_context(
            mock.patch.object(torch.UntypedStorage, "data_ptr", lambda storage: storage._cdata)
        )
        stack.callback(stub_libcuda.pretend_devices, 0)
        stack.enter_context(mock.patch.object(hf, "safe_open", _RealFile))
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", lambda _device: None))
        stack.enter_context(mock.patch.object(nn.Module, "to", _to))
        # vLLM's loader collects twice, seconds each among a million objects; there is no memory to win here.
        stack.enter_context(mock.patch.object(gc, "collect", lambda *_: 0))
        stack.enter_context(_FakeCudaMode(allow_non_fake_inputs=True))
        stack.enter_context(_HostMemory())
        yield reads


@contextmanager
def fake_world(*, size: int, rank: int = 0, **layout: int) -> Iterator:
    """The cluster of rank `rank` of `size`, laid out as `cluster.start(**layout)` does it.

    Collectives of tensors return at once; those of Python objects see this rank's own object in every place.
    """
    from ralign.engine.runtime import cluster as cluster_module

    new_group = dist.new_group

    def new_fake_group(ranks=None, timeout=None, backend=None, *_, **options):
        options = {
            name: options[name] for name in ("use_local_synchronization", "group_desc") if name in options
        }
        return new_group(ranks, backend="fake", **options)

    def all_gather_object(everyone: list, mine: object, group=None) -> None:
        everyone[:] = [mine] * len(everyone)

    def broadcast_object_list(box: list, *_, **__) -> None:
        box[:] = [{"loss": 1.0} if value == {} else value for value in box]  # metrics, from the last stage

    with ExitStack() as stack:
        # Each rank on a node of its own: the guard that does nothing knows of one current device, `cuda:0`.
        ranks = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(size)}
        stack.enter_context(mock.patch.dict(os.environ, ranks))
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
        stack.callback(cluster_module.stop)
        stack.enter_context(mock.patch.object(dist, "new_group", new_fake_group))
        stack.enter_context(mock.patch.object(dist, "all_gather_object", all_gather_object))
        stack.enter_context(mock.patch.object(dist, "broadcast_object_list", broadcast_object_list))
        yield cluster_module.start(**layout)
