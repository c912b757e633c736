"""What a step learns from, its denominators and its metrics do not depend on how the job is cut."""

import math

import numpy as np
import pytest

# Advantages, weights and rewards come from whole numbers alike on every rank: they are equal, not close. Logprobs are
# sums in another order: fp32 rounding, here of some 1e-7 of numbers near 6, enters losses and gradients.
REL = 1e-4
MASK_LOG_EDGE = 4.0
# Differences of logprobs, which cancel: their rounding is that of the logprobs, not of the difference.
ABS = {"policy/kl": 1e-6, "policy/rollout_kl": 1e-5, "policy/approx_kl": 1e-6}


@pytest.fixture(scope="module")
def reports(torchrun_module):
    return torchrun_module("sampling_layouts", 1) | torchrun_module("sampling_layouts", 2)


def _reference(reports: dict, name: str) -> list:
    _, comma, variant = name.partition(", ")
    return reports[f"one, {variant}" if variant in ("twins", "parts", "critic") else "one"][0]


@pytest.mark.jobs
def test_the_scripted_steps_have_what_they_are_to_show(reports):
    steps = reports["one"][0]
    assert {step["metrics"]["reward/num_rounds"] for step in steps} & {2, 3, 4, 5}
    for step in steps:
        metrics, logs = step["metrics"], np.array([log for _, _, log in step["packed"].values()])
        learned = np.array(step["learned"])
        assert learned.tolist() != list(range(len(learned))) and len(learned) == 16  # not the first round
        assert 0 < metrics["judge/num_failed"] < metrics["judge/num_asked"]
        assert 0 < metrics["policy/mask"] < 1 and 0 < metrics["policy/truncated_share"] < 1
        values = np.array(step["values"])
        assert not np.array(step["valid"])[learned].all() and ((values > 0) & (values < 1)).any()
        assert np.abs(np.abs(logs) - MASK_LOG_EDGE).min() > 1e-2, "rounding decides about a sequence's mask"
    assert steps[1]["metrics"]["policy/kl"] > 1e-4


@pytest.mark.jobs
def test_advantages_denominators_and_decisions_are_those_of_one_process(reports):
    assert len(reports) == 15
    for name, ranks in reports.items():
        for rank in ranks:
            for step, expected in zip(rank, _reference(reports, name), strict=True):
                for key in ("learned", "examples", "valid", "values", "advantages", "sampler"):
                    assert step[key] == expected[key], (name, key)
                assert step["packed"].keys() == expected["packed"].keys(), name
                for index, (advantage, weight, _) in step["packed"].items():
                    assert [advantage, weight] == expected["packed"][index][:2], (name, index)


@pytest.mark.jobs
def test_metrics_and_gradient_norms_are_those_of_one_process(reports):
    for name, ranks in reports.items():
        for step in range(2):
            assert all(rank[step]["metrics"] == ranks[0][step]["metrics"] for rank in ranks), name
        for rank in ranks:
            for step, expected in zip(rank, _reference(reports, name), strict=True):
                assert step["metrics"].keys() == expected["metrics"].keys(), name
                for key, value in expected["metrics"].items():
                    close = pytest.approx(value, rel=REL, abs=ABS.get(key, 0.0), nan_ok=True)
                    assert step["metrics"][key] == close, (name, key)
        norms = [rank[-1]["metrics"]["policy/grad_norm"] for rank in ranks]
        assert all(math.isfinite(norm) and norm > 0 for norm in norms), name
