import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ralign.kernels.advantages import KINDS, group_advantages, group_advantages_ref

SAMPLE = st.tuples(
    st.sampled_from([0.0, 1.0, -1.0, 0.3, 100.5]),  # reward
    st.sampled_from([0, 1, -7, 2**62, -(2**62)]),  # group id
    st.booleans(),  # valid
)
BATCHES = st.lists(SAMPLE, min_size=1, max_size=40)


def tensors(batch):
    rewards, group_ids, valid = zip(*batch, strict=True)
    return torch.tensor(rewards), torch.tensor(group_ids, dtype=torch.int64), torch.tensor(valid)


@pytest.mark.parametrize("kind", KINDS)
@given(batch=BATCHES)
@settings(max_examples=60, deadline=None)
def test_equals_the_loop_over_groups(kind, batch):
    rewards, group_ids, valid = tensors(batch)
    ours = group_advantages(rewards, group_ids, valid, kind=kind)
    torch.testing.assert_close(ours, group_advantages_ref(rewards, group_ids, valid, kind=kind))
    assert ours.dtype == torch.float32 and (ours[~valid] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@given(batch=BATCHES, seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_order_and_failed_samples_change_nothing(kind, batch, seed):
    rewards, group_ids, valid = tensors(batch)
    before = group_advantages(rewards, group_ids, valid, kind=kind)
    order = torch.randperm(2 * len(batch), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    order = order.to(torch.get_default_device())
    after = torch.empty(2 * len(batch))
    after[order] = group_advantages(
        torch.cat([rewards, torch.full_like(rewards, torch.nan)])[order],
        torch.cat([group_ids, group_ids])[order],
        torch.cat([valid, torch.zeros_like(valid)])[order],
        kind=kind,
    )
    torch.testing.assert_close(after[: len(batch)], before)
    assert (after[len(batch) :] == 0).all()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Group 5: rewards 1, 0, 0, 0: mean 1/4, variance with ddof 1 (9/16 + 3/16) / 3 = 1/4, std 1/2.
        ("grpo", [1.5, -0.5, -0.5, -0.5, 0.0]),
        ("dr_grpo", [0.75, -0.25, -0.25, -0.25, 0.0]),
        ("rloo", [1.0, -1 / 3, -1 / 3, -1 / 3, 0.0]),
    ],
)
def test_by_hand(kind, expected):
    rewards, group_ids = torch.tensor([1.0, 0, 0, 0, 9]), torch.tensor([5, 5, 5, 5, 6])
    ours = group_advantages(rewards, group_ids, torch.ones(5, dtype=torch.bool), kind=kind, eps=0.0)
    # The lone sample of group 6: 0 / (0 + eps) is what eps is for.
    torch.testing.assert_close(ours[:4], torch.tensor(expected[:4]))
    ours = group_advantages(rewards, group_ids, torch.ones(5, dtype=torch.bool), kind=kind)
    torch.testing.assert_close(ours, torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_rewards_give_exactly_zero(kind):
    rewards = torch.full((7,), 0.1)
    ours = group_advantages(rewards, torch.zeros(7, dtype=torch.int64), rewards > 0, kind=kind)
    assert (ours == 0).all()


def test_small_spread_on_a_large_offset():
    rewards = torch.tensor([4096.0, 4096.0009765625])  # uncentred, the variance in fp32 is 0
    ours = group_advantages(rewards, torch.tensor([3, 3]), rewards > 0, kind="grpo", eps=1e-9)
    torch.testing.assert_close(ours, torch.tensor([-(0.5**0.5), 0.5**0.5]), rtol=1e-4, atol=0)


def test_what_does_not_fit_is_refused():
    rewards, group_ids, valid = torch.zeros(3), torch.zeros(3, dtype=torch.int64), torch.ones(3).bool()
    with pytest.raises(ValueError, match="'ppo'"):
        group_advantages(rewards, group_ids, valid, kind="ppo")
    with pytest.raises(ValueError, match="int32"):
        group_advantages(rewards, group_ids.int(), valid, kind="grpo")
    with pytest.raises(ValueError, match=r"\[2\]"):
        group_advantages(rewards, group_ids[:2], valid, kind="grpo")
