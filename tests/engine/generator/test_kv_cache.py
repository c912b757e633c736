"""What is asked of vLLM on CUDA, whose sleep takes the engine's own weights along; a stand-in answers."""

from types import SimpleNamespace

import pytest
import torch
from ralign.engine.generator.generator import Generator
from ralign.engine.generator.kv_cache import KVCache


class FakeLLM:
    def __init__(self):
        self.calls: list = []

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset")
        return True

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake {' '.join(tags)}")


@pytest.fixture
def make_cache(monkeypatch):
    """owns_weights -> (the cache, what is asked of vLLM and of torch's allocator)."""

    def make(owns_weights: bool = False) -> tuple[KVCache, list]:
        llm = FakeLLM()
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: llm.calls.append("empty"))
        return KVCache(llm, torch.device("cuda"), owns_weights=owns_weights), llm.calls

    return make


def test_it_sleeps_and_wakes_once(make_cache):
    cache, calls = make_cache()
    cache.wake()
    cache.sleep()
    cache.sleep()
    assert calls == ["reset", "sleep 1"] and cache.num_bytes() == 0
    cache.wake()
    cache.wake()
    # What torch has freed but kept goes back to the driver before vLLM asks for memory.
    assert calls[2:] == ["empty", "wake weights", "empty", "wake kv_cache"] and cache.is_awake


def test_weights_wake_before_they_are_read_and_the_cache_stays_asleep(make_cache):
    cache, calls = make_cache()
    cache.wake_weights()
    assert calls == []  # nothing is asleep
    cache.sleep()
    cache.wake_weights()
    cache.wake_weights()
    assert calls[2:] == ["empty", "wake weights"] and not cache.is_awake
    cache.wake()
    assert calls[4:] == ["empty", "wake kv_cache"]
    cache.sleep()
    cache.wake_weights()
    assert calls[6:] == ["reset", "sleep 1", "empty", "wake weights"]


def make_generator(cache: KVCache, calls: list, *, is_stale: bool) -> Generator:
    """Of the gather path, without an engine."""
    generator = object.__new__(Generator)
    generator.kv_cache, generator._is_stale = cache, is_stale
    generator._gather = SimpleNamespace(update=lambda: calls.append("update"))
    return generator


def test_an_engines_own_weights_are_not_kept_and_come_back_before_they_are_needed(make_cache):
    cache, calls = make_cache(owns_weights=True)
    generator = make_generator(cache, calls, is_stale=False)
    generator.sync_weights()
    assert calls == []  # they are there
    cache.sleep()
    assert calls == ["reset", "sleep 2"]
    generator.sync_weights()  # though no update came in between
    generator.sync_weights()
    assert calls[2:] == ["empty", "wake weights", "update"]
    cache.wake()
    assert calls[5:] == ["empty", "wake kv_cache"]


def test_shared_weights_are_never_lost(make_cache):
    cache, _ = make_cache()
    cache.sleep()
    assert not cache.lost_weights
