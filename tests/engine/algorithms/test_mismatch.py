"""A quantile of the mismatch between engine and trainer, from counts that add."""

import numpy as np
import pytest
import torch
from ralign.engine.algorithms.mismatch import COUNTS, add_quantile, edges, tail_counts
from ralign.engine.policy.megatron_model import MegatronModel
from ralign.engine.training.trainer import policy_metrics


def counted(mismatch, weights=None, rollout=-1.0):
    """The counts of tokens with the given old − rollout, on the host."""
    mismatch = torch.as_tensor(mismatch, dtype=torch.float32)
    rollout = torch.full_like(mismatch, rollout)
    weights = torch.ones_like(mismatch) if weights is None else weights
    report = tail_counts(rollout + mismatch, rollout, weights)
    return MegatronModel._read([report], torch.zeros(()))[0][0]


def p999(sums, num_tokens):
    return add_quantile({"num_tokens": num_tokens, **sums})["rollout_ratio_p999"]


@pytest.mark.parametrize("scale", [0.003, 0.05, 1.0])
@pytest.mark.parametrize("tail", ["normal", "lognormal"])
def test_the_quantile_is_numpys_within_five_percent(scale, tail):
    rng = np.random.default_rng(0)
    mismatch = scale * (rng.normal(size=100_000) if tail == "normal" else rng.lognormal(-1, 0.7, 100_000))
    mismatch = mismatch.astype(np.float32)
    exact = np.expm1(np.quantile(np.abs(mismatch), 0.999))
    ours = p999(counted(mismatch, rollout=0.0), 100_000)
    assert ours - 1 == pytest.approx(exact, rel=0.05)


def test_micro_batches_and_tokens_that_do_not_count_change_nothing():
    rng = np.random.default_rng(1)
    mismatch = torch.from_numpy(rng.normal(0, 0.1, 10_000).astype(np.float32))
    whole = counted(mismatch)
    weights = torch.cat([torch.ones(2_000), torch.zeros(7)])
    junk = torch.tensor([torch.nan, torch.inf, 9.0, 0.0, -torch.inf, 50.0, -9.0])
    parts = [counted(torch.cat([part, junk]), weights) for part in mismatch.split(2_000)]
    assert {name: sum(part[name] for part in parts) for name in whole} == whole
    assert p999(whole, 10_000) > 1.2


def test_counts_by_hand():
    """Every 500th token is e^0.5, all others are equal: the largest 0.1 % are e^0.5."""
    mismatch = torch.zeros(2_000)
    mismatch[::500] = -0.5
    sums = counted(mismatch)
    assert max(sums.values()) == 4
    assert p999(sums, 2_000) - 1 == pytest.approx(np.expm1(0.5), rel=0.05)
    assert p999(sums, 4_000) == 1.0  # 4 tokens are the largest 0.1 % then, and none is beyond the quantile


@pytest.mark.parametrize("extreme", [80.0, 500.0, torch.inf, torch.nan])
def test_a_ratio_beyond_the_last_edge_is_given_as_the_last_edge(extreme):
    assert p999(counted([extreme] * 3), 3) == pytest.approx(1 + edges()[-1].item(), rel=1e-5)


def test_no_tokens_and_no_counts():
    assert p999(counted([1.0], torch.zeros(1)), 0) == 1.0
    assert add_quantile({"num_tokens": 4.0, "entropy_sum": 2.0}) == {"num_tokens": 4.0, "entropy_sum": 2.0}


def test_the_counts_are_replaced_by_the_quantile():
    sums = counted([0.3])
    assert len(sums) == len(edges()) and all(name.startswith(f"{COUNTS}/") for name in sums)
    assert add_quantile(sums | {"num_tokens": 1.0, "ratio_max": 2.0}).keys() == {
        "num_tokens", "ratio_max", "rollout_ratio_p999",
    }  # fmt: skip


def test_edges_are_so_close_that_their_mean_is_within_five_percent():
    excess = edges().double()
    factors = excess[1:] / excess[:-1]
    assert factors.max().sqrt() < 1.05 and excess[0] < 0.0011 and excess[-1] > 3000


def test_the_trainer_reports_the_quantile_in_place_of_its_counts():
    metrics = policy_metrics(counted([0.3] * 9) | {"num_tokens": 9.0, "mask_sum": 3.0})
    assert metrics.keys() == {"mask", "num_tokens", "rollout_ratio_p999"} and metrics["mask"] == 1 / 3
    assert metrics["rollout_ratio_p999"] - 1 == pytest.approx(np.expm1(0.3), rel=0.05)
