"""This process as one on a machine with 8 H100, as far as CUDA's and vLLM's questions about the machine go.

Nothing computes: what runs under these stubs is configuration, and models on FakeTensors of device `cuda:0`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from unittest import mock

import torch

NUM_GPUS = 8
MEMORY_BYTES = int(85e9)  # what torch reports of an H100 with 80 GB
CAPABILITY = (9, 0)
NAME = "NVIDIA H100 80GB HBM3"


class Stream:
    """A stream on which nothing is ever queued."""

    device = torch.device("cuda", 0)
    cuda_stream = 0
    stream_id = device_index = 0

    def __init__(self, *_args, **_kwargs):
        pass

    def wait_stream(self, _other) -> None:
        pass

    def wait_event(self, _event) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def record_event(self, _event=None):
        return mock.MagicMock()


def _properties(_device=None) -> SimpleNamespace:
    return SimpleNamespace(
        name=NAME, major=CAPABILITY[0], minor=CAPABILITY[1], total_memory=MEMORY_BYTES, is_integrated=False,
        multi_processor_count=132, warp_size=32, shared_memory_per_block_optin=232_448, L2_cache_size=50 << 20,
    )  # fmt: skip


_TORCH_CUDA = {
    "is_available": lambda: True,
    "device_count": lambda: NUM_GPUS,
    "_device_count_nvml": lambda: NUM_GPUS,
    "is_initialized": lambda: True,
    "current_device": lambda: 0,
    "set_device": lambda _device: None,
    "get_device_capability": lambda _device=None: CAPABILITY,
    "get_device_properties": _properties,
    "get_device_name": lambda _device=None: NAME,
    "mem_get_info": lambda _device=None: (MEMORY_BYTES - (1 << 30), MEMORY_BYTES),
    "is_current_stream_capturing": lambda: False,
    "synchronize": lambda _device=None: None,
    "empty_cache": lambda: None,
    "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8, device="cpu"),
    "set_rng_state": lambda _state, device=None: None,
    "manual_seed": lambda _seed: None,
    "manual_seed_all": lambda _seed: None,
    "Stream": Stream,
    "current_stream": lambda _device=None: Stream(),
    "default_stream": lambda _device=None: Stream(),
    "set_stream": lambda _stream: None,
    "stream": lambda _stream: nullcontext(),
}


@contextmanager
def as_h100() -> Iterator[None]:
    """While open, torch.cuda describes an H100, and vLLM's platform is CUDA."""
    with ExitStack() as stack:
        for name, value in _TORCH_CUDA.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for name in ("get_rng_state", "set_rng_state"):
            stack.enter_context(mock.patch.object(torch.cuda.random, name, _TORCH_CUDA[name]))
        # Megatron keeps random states for dropout, which no model here has.
        random = "megatron.core.tensor_parallel.random"
        stack.enter_context(mock.patch(f"{random}._set_cuda_rng_state", lambda *_, **__: None))
        stack.enter_context(mock.patch(f"{random}.CudaRNGStatesTracker.add", lambda *_: None))
        stack.enter_context(mock.patch(f"{random}.CudaRNGStatesTracker.fork", lambda *_: nullcontext()))
        import vllm.platforms
        from vllm.platforms.cuda import NonNvmlCudaPlatform

        stack.enter_context(mock.patch.object(vllm.platforms, "_current_platform", NonNvmlCudaPlatform()))
        yield
