"""Megatron-core on a machine without CUDA: its requests for CUDA devices get the CPU.

Megatron-core names CUDA devices, tensor types and random states in its code. In the context `cuda_stand_in` these names
mean the CPU. Only training and model construction run in it; vLLM in the same process never sees the patches. On a
machine with CUDA it does nothing.

Read in Megatron-core 0.16.1, with torch 2.11 and 2.13. Every patch is undone when the context ends.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from ralign.engine.runtime.internals import Internal
from torch.overrides import TorchFunctionMode

P = ParamSpec("P")
T = TypeVar("T")

# Megatron tells gradients and parameters apart by these: optimizer/distrib_optimizer.py, optimizer/clip_grads.py.
_CUDA_TYPE_NAMES = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
    torch.float16: "torch.cuda.HalfTensor",
}


class _CpuForCuda(TorchFunctionMode):
    """`device="cuda"` and `Tensor.cuda()` give tensors on the CPU; `Tensor.type()` gives the name of the CUDA type.

    Callers in Megatron-core: pipeline_parallel/schedules.py, optimizer/optimizer.py, optimizer/clip_grads.py, and
    models/common/language_module/language_module.py.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if kwargs and (device := kwargs.get("device")) is not None and str(device).startswith("cuda"):
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return _CUDA_TYPE_NAMES.get(args[0].dtype) or func(*args)
        if func is torch.Tensor.cuda:
            return args[0]
        return func(*args, **(kwargs or {}))


def _set_cpu_rng_state(state: torch.Tensor, *args: object, **kwargs: object) -> None:
    torch.set_rng_state(state)


_PATCHES: dict[str, Callable[..., Any]] = {
    # tensor_parallel/layers.py, distributed/param_and_grad_buffer.py, pipeline_parallel/p2p_communication.py,
    # dist_checkpointing/strategies/state_dict_saver.py
    "torch.cuda.current_device": lambda: torch.device("cpu"),
    # pipeline_parallel/p2p_communication.py, dist_checkpointing/strategies/filesystem_async.py
    "torch.cuda.synchronize": lambda *args, **kwargs: None,
    # tensor_parallel/random.py
    "torch.cuda.get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
    "torch.cuda.random.get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
    "torch.cuda.set_rng_state": _set_cpu_rng_state,
    "torch.cuda.manual_seed": torch.manual_seed,
    "megatron.core.tensor_parallel.random._set_cuda_rng_state": _set_cpu_rng_state,
}


@contextlib.contextmanager
def cuda_stand_in() -> Iterator[None]:
    """In this context Megatron-core's requests for CUDA get the CPU; does nothing where CUDA is available.

    Raises:
        MissingInternal: the installed torch or Megatron-core has no function of a patched name.
    """
    if torch.cuda.is_available():
        yield
        return
    with contextlib.ExitStack() as stack:
        for name, replacement in _PATCHES.items():
            stack.enter_context(patched(name).replaced(replacement))
        stack.enter_context(_CpuForCuda())
        yield


def patched(name: str) -> Internal:
    """A function of `_PATCHES`."""
    module, _, function = name.rpartition(".")
    read_in = "2.11 and 2.13" if module.startswith("torch") else "0.16.1"
    return Internal(module=module, name=function, purpose="training without CUDA", read_in=read_in)


def on_megatron(method: Callable[P, T]) -> Callable[P, T]:
    """Run a function in `cuda_stand_in`; for every one that calls Megatron-core."""

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with cuda_stand_in():
            return method(*args, **kwargs)

    return wrapped
