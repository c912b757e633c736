"""vLLM reads the trainer's memory: same logprobs before and after every update, and no byte copied."""

import pytest


@pytest.mark.parametrize("tensor", [1, 2])
def test_generator_and_trainer_agree_on_one_copy_of_the_weights(torchrun, tensor):
    report = torchrun("shared_weights", 2, str(tensor), timeout_s=400)
    assert all(len(row) == 6 for row in report["differences"])
    worst = max(max(row) for row in report["differences"])
    assert worst <= 1e-5, report["differences"]
    assert report["versions"] == list(range(6))
    assert report["same_storage"] and report["num_shared"] == 34
    assert report["repeatable"]
    first, same, other = report["seeds"][0]
    assert first == same and len({*first, *other}) == 6
    assert all(calls == report["seeds"][0] for calls in report["seeds"])
    assert report["detects_tampering"]


def test_an_engine_in_another_layout_has_the_trainers_weights(torchrun):
    """TP 2 to 1; pipeline stages to 1 go through the 32B recipe's tests, and every layout through test_gather."""
    report = torchrun("shared_weights", 2, "2", "1", "1", timeout_s=400)
    worst = max(max(row) for row in report["differences"])
    assert worst <= 1e-5, report["differences"]
    assert report["versions"] == list(range(6))
    assert not report["same_storage"]
    assert report["repeatable"] and report["detects_tampering"]
