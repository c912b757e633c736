"""What is timed on a GPU is the GPU's work: the device is waited for before both readings of the clock."""

import pytest
import timing
import torch


@pytest.fixture
def events(monkeypatch):
    """What happened, in order; every event takes a second of a clock of its own."""
    seen: list[str] = []

    def note(name: str, result=None):
        return lambda *_, **__: seen.append(name) or result

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", note("synchronize"))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: seen.append("clock") or float(len(seen)))
    return seen


ROUND = ["synchronize", "clock", "call", "synchronize", "clock"]


def test_a_call_is_timed_with_what_it_left_to_the_device(events):
    assert timing.timed_s(lambda: events.append("call")) == 3.0
    assert events == ROUND


def test_each_of_several_rounds_is(events):
    timing.best_time_s(lambda: events.append("call"), num_rounds=3)
    assert events == 3 * ROUND


def test_a_machine_without_a_gpu_waits_for_nothing(events, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    timing.timed_s(lambda: events.append("call"))
    assert events == ["clock", "call", "clock"]


def test_an_update_of_weights_is_timed_from_one_barrier_to_the_devices_end(events, monkeypatch):
    import weight_update

    monkeypatch.setattr(weight_update.dist, "barrier", lambda: events.append("barrier"))
    monkeypatch.setattr(weight_update.dist, "all_reduce", lambda *_, **__: None)
    assert weight_update.seconds(lambda: events.append("call")) == 3.0
    assert events == weight_update.NUM_ROUNDS * ["barrier", *ROUND]
