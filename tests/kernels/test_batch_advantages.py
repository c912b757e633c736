"""Advantages whitened over the batch: against the loop, and the properties that each formula promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ralign.kernels.advantages import GRPO
from ralign.kernels.batch_advantages import GDPO, REINFORCE_PP, REINFORCE_PP_BASELINE, batch_advantages_ref

ESTIMATORS = {e.name: e for e in (REINFORCE_PP, REINFORCE_PP_BASELINE, GDPO)}


def draw(seed, num=24, num_groups=4):
    options = {"generator": torch.Generator(device="cpu").manual_seed(seed), "device": "cpu"}
    rewards = torch.randint(0, 3, (num, 2), **options).double()
    groups, valid = torch.randint(0, num_groups, (num,), **options), torch.rand(num, **options) > 0.2
    device = torch.get_default_device()
    return [x.to(device) for x in (rewards, groups, valid)]


@pytest.mark.parametrize("name", ESTIMATORS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_equals_the_loop(name, seed):
    estimator = ESTIMATORS[name]
    rewards, groups, valid = draw(seed)
    rewards = rewards if estimator.takes_parts else rewards[:, 0]
    ours = estimator(rewards, groups, valid)
    expected = batch_advantages_ref(rewards, groups, valid, estimator=estimator)
    torch.testing.assert_close(ours, expected.to(ours.device))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_valid_samples_have_mean_0_and_deviation_1_and_others_change_nothing(name):
    estimator = ESTIMATORS[name]
    rewards, groups, valid = draw(1)
    rewards = rewards if estimator.takes_parts else rewards[:, 0]
    ours = estimator(rewards, groups, valid)
    assert ours[valid].mean().abs() < 1e-12 and ours[valid].std() == pytest.approx(1, abs=1e-4)
    assert (ours[~valid] == 0).all()
    spoiled = rewards.clone()
    spoiled[~valid] = float("nan")
    assert torch.equal(estimator(spoiled, groups, valid), ours)


@pytest.mark.parametrize("name", ["reinforce_pp_baseline", "gdpo"])
def test_a_group_without_spread_gets_exactly_0(name):
    estimator = ESTIMATORS[name]
    rewards = torch.tensor([1, 1, 1, 0.3, 0.1, 0.7])[:, None].expand(-1, 2)
    rewards = rewards if estimator.takes_parts else rewards[:, 0]
    groups, valid = torch.tensor([0, 0, 0, 1, 1, 1]), torch.ones(6, dtype=torch.bool)
    assert estimator(rewards, groups, valid)[:3].tolist() == [0, 0, 0]


def test_gdpo_tells_apart_what_a_sum_does_not():
    """Label and rationale: (0, 1) and (1, 0) have the same sum. The rarer part counts for more."""
    parts = torch.tensor([[1, 1], [1, 0], [1, 0], [0, 1]], dtype=torch.float64)
    groups, valid = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool)
    of_sum = GRPO(parts.sum(1), groups, valid)
    assert of_sum[1] == of_sum[3]
    ours = GDPO(parts, groups, valid)
    assert ours[3] < ours[1] < ours[0]


def test_rewards_of_another_shape_are_refused():
    rewards, groups, valid = draw(0)
    with pytest.raises(ValueError, match=r"gdpo: got rewards of the shape \[24\]"):
        GDPO(rewards[:, 0], groups, valid)
