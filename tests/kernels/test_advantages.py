from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ralign.kernels.advantages import DR_GRPO, GRPO, RLOO, GroupEstimator, group_advantages_ref

# An estimator that the kernels do not define: the leave-one-out baseline over the standard deviation.
SCALED_RLOO = GroupEstimator("scaled_rloo", divide_by_std=True, leave_one_out=True)
ESTIMATORS = pytest.mark.parametrize(
    "estimator", [GRPO, DR_GRPO, RLOO, SCALED_RLOO], ids=lambda estimator: estimator.name
)

SAMPLE = st.tuples(
    st.sampled_from([0.0, 1.0, -1.0, 0.3, 100.5]),  # reward
    st.sampled_from([0, 1, -7, 2**62, -(2**62)]),  # group id
    st.booleans(),  # valid
)
BATCHES = st.lists(SAMPLE, min_size=1, max_size=40)


def tensors(batch):
    rewards, group_ids, valid = zip(*batch, strict=True)
    return torch.tensor(rewards), torch.tensor(group_ids, dtype=torch.int64), torch.tensor(valid)


@ESTIMATORS
@given(batch=BATCHES)
@settings(max_examples=60, deadline=None)
def test_equals_the_loop_over_groups(estimator, batch):
    rewards, group_ids, valid = tensors(batch)
    ours = estimator(rewards, group_ids, valid)
    torch.testing.assert_close(ours, group_advantages_ref(rewards, group_ids, valid, estimator=estimator))
    assert ours.dtype == torch.float32 and (ours[~valid] == 0).all()


@ESTIMATORS
@given(batch=BATCHES, seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_order_and_failed_samples_change_nothing(estimator, batch, seed):
    rewards, group_ids, valid = tensors(batch)
    before = estimator(rewards, group_ids, valid)
    order = torch.randperm(2 * len(batch), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    order = order.to(torch.get_default_device())
    after = torch.empty(2 * len(batch))
    after[order] = estimator(
        torch.cat([rewards, torch.full_like(rewards, torch.nan)])[order],
        torch.cat([group_ids, group_ids])[order],
        torch.cat([valid, torch.zeros_like(valid)])[order],
    )
    torch.testing.assert_close(after[: len(batch)], before)
    assert (after[len(batch) :] == 0).all()


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # Group 5: rewards 1, 0, 0, 0: mean 1/4, variance with ddof 1 (9/16 + 3/16) / 3 = 1/4, std 1/2.
        (GRPO, [1.5, -0.5, -0.5, -0.5, 0.0]),
        (DR_GRPO, [0.75, -0.25, -0.25, -0.25, 0.0]),
        (RLOO, [1.0, -1 / 3, -1 / 3, -1 / 3, 0.0]),
        (SCALED_RLOO, [2.0, -2 / 3, -2 / 3, -2 / 3, 0.0]),
    ],
    ids=lambda value: value.name if isinstance(value, GroupEstimator) else "",
)
def test_by_hand(estimator, expected):
    rewards, group_ids = torch.tensor([1.0, 0, 0, 0, 9]), torch.tensor([5, 5, 5, 5, 6])
    valid = torch.ones(5, dtype=torch.bool)
    # The lone sample of group 6 is 0 / (0 + eps): only eps keeps it from NaN.
    ours = replace(estimator, eps=0.0)(rewards, group_ids, valid)
    torch.testing.assert_close(ours[:4], torch.tensor(expected[:4]))
    ours = estimator(rewards, group_ids, valid)
    torch.testing.assert_close(ours, torch.tensor(expected), rtol=1e-5, atol=1e-6)


@ESTIMATORS
def test_equal_rewards_give_exactly_zero(estimator):
    rewards = torch.full((7,), 0.1)
    ours = estimator(rewards, torch.zeros(7, dtype=torch.int64), rewards > 0)
    assert (ours == 0).all()


def test_small_spread_on_a_large_offset():
    rewards = torch.tensor([4096.0, 4096.0009765625])  # uncentred, the variance in fp32 is 0
    ours = replace(GRPO, eps=1e-9)(rewards, torch.tensor([3, 3]), rewards > 0)
    torch.testing.assert_close(ours, torch.tensor([-(0.5**0.5), 0.5**0.5]), rtol=1e-4, atol=0)


def test_invalid_arguments_are_rejected():
    rewards, group_ids, valid = torch.zeros(3), torch.zeros(3, dtype=torch.int64), torch.ones(3).bool()
    with pytest.raises(ValueError, match="int32"):
        GRPO(rewards, group_ids.int(), valid)
    with pytest.raises(ValueError, match=r"\[2\]"):
        GRPO(rewards, group_ids[:2], valid)
