"""Host clocks around work that a GPU does later: the device is waited for at both ends."""

import time
from collections.abc import Callable

import torch


def synchronize() -> None:
    """Wait until the GPU, where there is one, has done all that was asked of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed_s(call: Callable[[], object]) -> float:
    """Seconds of one call and of what it left to the device, without what the device was busy with before."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def best_time_s(call: Callable[[], object], num_rounds: int = 5) -> float:
    """The fastest of some rounds."""
    return min(timed_s(call) for _ in range(num_rounds))
