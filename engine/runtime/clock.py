"""Times of a step's stages. On CUDA the host runs ahead: a stage ends when the device is done with it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

Mark = float | torch.cuda.Event


class Clock:
    """Time of each stage of a step, in seconds; what no stage covers is `other`.

    On CUDA events of the current stream mark the stages' ends: the host waits for the device once, in `times_s`.
    """

    def __init__(self, device: torch.device, on_stage: Callable[[str], None] = lambda name: None):
        """`on_stage` hears the name of each stage as it begins."""
        self._on_cuda, self._on_stage = device.type == "cuda", on_stage
        self._start = self._mark()
        self._stages: list[tuple[str, Mark, Mark]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._on_stage(name)
        start = self._mark()
        yield
        self._stages.append((name, start, self._mark()))

    def times_s(self) -> dict[str, float]:
        """`time_s/NAME` of every stage, of what lies between them (`other`) and of all (`total`)."""
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
