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
    assert report["detects_tampering"]
