"""Times of stages: on CPU by the host's clock, on CUDA by the device's, with a stub where the host runs ahead."""

import pytest
import torch
from ralign.engine.runtime.clock import Clock


def test_the_clock_accounts_for_all_of_the_step():
    clock = Clock(torch.device("cpu"))
    with clock.stage("generate"):
        sum(range(10000))
    times = clock.times_s()
    parts = times["time_s/generate"] + times["time_s/other"]
    assert parts == pytest.approx(times["time_s/total"])


def test_a_stage_takes_as_long_as_the_device_needs(monkeypatch):
    """Launches return at once; the device is busy for 3 s and 1 s with what each stage launched."""
    device_ms = 0.0
    waits: list[float] = []

    class Event:
        def __init__(self, *, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            self.ms = device_ms

        def synchronize(self) -> None:
            waits.append(self.ms)

        def elapsed_time(self, end: "Event") -> float:
            assert waits, "read before the device was done"
            return end.ms - self.ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = Clock(torch.device("cuda"))
    with clock.stage("forward_backward"):
        device_ms += 3000
    with clock.stage("optimizer"):
        device_ms += 1000
    with clock.stage("forward_backward"):
        device_ms += 500
    device_ms += 250
    assert clock.times_s() == {
        "time_s/forward_backward": 3.5,
        "time_s/optimizer": 1.0,
        "time_s/other": 0.25,
        "time_s/total": 4.75,
    }
    assert waits == [4750]
