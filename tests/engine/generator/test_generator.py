"""vLLM reads the trainer's memory: same logprobs before and after every update, and no byte copied.

On CUDA the engine's fp32 is TF32 (its Triton attention multiplies so: differences near 1e-3), which proves nothing
about the weights. There the engine and the trainer are compared in bf16, the dtype that GPUs train in.
"""

import pytest
import torch

DTYPE = "bf16" if torch.cuda.is_available() else "fp32"
MAX_DIFFERENCE_FP32 = 1e-5  # of one logprob: rounding
MEAN_DIFFERENCE_BF16 = 0.015  # over an update's tokens; docs/gpu.md


def too_far(report: dict, dtype: str) -> list[tuple[int, int, float]]:
    """(rank, update, difference) where trainer and engine differ by more than rounding in this dtype explains."""
    key, limit = {
        "fp32": ("max_differences", MAX_DIFFERENCE_FP32),
        "bf16": ("mean_differences", MEAN_DIFFERENCE_BF16),
    }[dtype]
    return [
        (rank, update, difference)
        for rank, row in enumerate(report[key])
        for update, difference in enumerate(row)
        if not difference <= limit
    ]


def check(report: dict, dtype: str) -> None:
    """What holds in every layout."""
    assert report["engine_dtypes"] == [{"fp32": "torch.float32", "bf16": "torch.bfloat16"}[dtype]]
    assert all(len(row) == 6 for row in report["mean_differences"] + report["max_differences"])
    assert not too_far(report, dtype), (report["mean_differences"], report["max_differences"])
    assert report["versions"] == list(range(6))
    assert report["repeatable"] and report["detects_tampering"]


@pytest.mark.parametrize("tensor", [pytest.param(1, marks=pytest.mark.jobs), 2])
def test_generator_and_trainer_agree_on_one_copy_of_the_weights(torchrun, tensor):
    report = torchrun("shared_weights", 2, str(tensor), "1", "0", DTYPE, timeout_s=400)
    check(report, DTYPE)
    assert report["same_storage"] and report["num_shared"] == 34
    first, same, other = report["seeds"][0]
    assert first == same and len({*first, *other}) == 6
    assert all(calls == report["seeds"][0] for calls in report["seeds"])


@pytest.mark.jobs
def test_they_agree_in_bf16_too(torchrun):
    """One process: what one GPU measures (benchmarks/first_contact.py)."""
    report = torchrun("shared_weights", 1, "1", "1", "0", "bf16", timeout_s=400)
    check(report, "bf16")
    assert report["same_storage"]


@pytest.mark.jobs
def test_an_update_does_not_depend_on_asserts(torchrun):
    """Without them, too, the prefix cache of the old weights is dropped."""
    check(torchrun("shared_weights", 1, "1", "1", "0", DTYPE, timeout_s=400, optimize=True), DTYPE)


@pytest.mark.jobs
def test_an_engine_in_another_layout_has_the_trainers_weights(torchrun):
    """TP 2 to 1; pipeline stages to 1 go through the 32B recipe's tests, and every layout through test_gather."""
    report = torchrun("shared_weights", 2, "2", "1", "1", DTYPE, timeout_s=400)
    check(report, DTYPE)
    assert not report["same_storage"]


def test_rounding_to_bf16_is_allowed_in_bf16_alone():
    rounded = {"mean_differences": [[0.006, 0.007]], "max_differences": [[0.03, 0.08]]}
    assert not too_far(rounded, "bf16") and too_far(rounded, "fp32") == [(0, 0, 0.03), (0, 1, 0.08)]
    stale = {"mean_differences": [[0.006, 0.4]], "max_differences": [[0.03, float("nan")]]}
    assert too_far(stale, "bf16") == [(0, 1, 0.4)] and len(too_far(stale, "fp32")) == 2
