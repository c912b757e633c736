"""Runs Megatron-core on a machine without CUDA.

Megatron-core passes `device="cuda"` to its factories, reads devices and random states from `torch.cuda`, and compares
`Tensor.type()` with CUDA names. `cuda_stand_in` answers these calls with the CPU, and only while Megatron's own code
runs: vLLM in the same process never sees the patches. On a machine with CUDA it does nothing.

Read in Megatron-core 0.16.1 and torch 2.11. Every patch is undone when the context ends.
"""

import contextlib
import functools
from collections.abc import Iterator
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

_CUDA_TYPE_NAMES = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
    torch.float16: "torch.cuda.HalfTensor",
}


class _CpuForCuda(TorchFunctionMode):
    """Sends what names a CUDA device to the CPU, and reports the type names Megatron compares with."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if kwargs and (device := kwargs.get("device")) is not None and str(device).startswith("cuda"):
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return _CUDA_TYPE_NAMES.get(args[0].dtype) or func(*args)
        if func is torch.Tensor.cuda:
            return args[0]
        return func(*args, **(kwargs or {}))


def _set_cpu_rng_state(state: torch.Tensor, *args, **kwargs) -> None:
    torch.set_rng_state(state)


_PATCHES = {
    "torch.cuda.current_device": lambda: torch.device("cpu"),
    "torch.cuda.synchronize": lambda *args, **kwargs: None,
    "torch.cuda.get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
    "torch.cuda.random.get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
    "torch.cuda.set_rng_state": _set_cpu_rng_state,
    "torch.cuda.manual_seed": torch.manual_seed,
    "megatron.core.tensor_parallel.random._set_cuda_rng_state": _set_cpu_rng_state,
}
_stand_in_depth = 0


@contextlib.contextmanager
def cuda_stand_in() -> Iterator[None]:
    """While open, Megatron's requests for CUDA get the CPU; nothing happens where CUDA is present."""
    global _stand_in_depth
    if torch.cuda.is_available() or _stand_in_depth:
        yield
        return
    with contextlib.ExitStack() as stack:
        for target, replacement in _PATCHES.items():
            stack.enter_context(mock.patch(target, replacement))
        stack.enter_context(_CpuForCuda())
        _stand_in_depth += 1
        stack.callback(_leave)
        yield


def _leave() -> None:
    global _stand_in_depth
    _stand_in_depth -= 1


def on_megatron(method):
    """Run a method inside `cuda_stand_in`: for everything that enters Megatron's code."""

    @functools.wraps(method)
    def wrapped(*args, **kwargs):
        with cuda_stand_in():
            return method(*args, **kwargs)

    return wrapped
