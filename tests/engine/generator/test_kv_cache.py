"""What is asked of vLLM on CUDA, whose sleep takes the engine's own weights along; a stand-in answers."""

import torch
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


def make_cache() -> tuple[KVCache, list]:
    llm = FakeLLM()
    return KVCache(llm, torch.device("cuda")), llm.calls


def test_it_sleeps_and_wakes_once():
    cache, calls = make_cache()
    cache.wake()
    cache.sleep()
    cache.sleep()
    assert calls == ["reset", "sleep 1"] and cache.num_bytes() == 0
    cache.wake()
    cache.wake()
    assert calls[2:] == ["wake weights", "wake kv_cache"] and cache.is_awake


def test_weights_wake_before_they_are_read_and_the_cache_stays_asleep():
    cache, calls = make_cache()
    cache.wake_weights()
    assert calls == []  # nothing is asleep
    cache.sleep()
    cache.wake_weights()
    cache.wake_weights()
    assert calls[2:] == ["wake weights"] and not cache.is_awake
    cache.wake()
    assert calls[3:] == ["wake kv_cache"]
    cache.sleep()
    cache.wake_weights()
    assert calls[4:] == ["reset", "sleep 1", "wake weights"]
