"""Times of a step's stages. On CUDA the host runs ahead of the device; a stage ends when the device has finished it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

Mark = Any  # seconds of the host's clock, or a torch.cuda.Event


class Clock:
    """Time of each stage of a step, in seconds; the rest is `other`.

    On CUDA, events of the current stream mark the ends of stages: the host waits for the device once, in `times_s`.
    """

    def __init__(self, device: torch.device):
        """Start the step."""
        self._on_cuda = device.type == "cuda"
        self._start = self._mark()
        self._stages: list[tuple[str, Mark, Mark]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what runs in this context. A stage may come several times: its times are added."""
        start = self._mark()
        yield
        self._stages.append((name, start, self._mark()))

    def times_s(self) -> dict[str, float]:
        """`time_s/NAME` of every stage, of the time between stages (`other`), and of the whole step (`total`)."""
        end = self._mark()
        if self._on_cuda:
            end.synchronize()
        total = self._seconds(self._start, end)
        stages: dict[str, float] = {}
        for name, start, stop in self._stages:
            stages[name] = stages.get(name, 0.0) + self._seconds(start, stop)
        stages |= {"other": total - sum(stages.values()), "total": total}
        return {f"time_s/{name}": seconds for name, seconds in stages.items()}

    def _mark(self) -> Mark:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, start: Mark, end: Mark) -> float:
        return start.elapsed_time(end) / 1e3 if self._on_cuda else end - start
