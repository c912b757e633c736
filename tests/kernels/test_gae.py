import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ralign.kernels.gae import gae, gae_ref


def packed(lengths, seed, counted=0.7):
    """Returns random rewards, values (NaN where masked out), mask and starts of sequences of these lengths."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    num = sum(lengths)
    rewards, values = torch.randn(2, num, generator=generator, device="cpu")
    mask = torch.rand(num, generator=generator, device="cpu") < counted
    rewards[~mask] = values[~mask] = torch.nan
    starts = torch.tensor([0, *lengths], device="cpu").cumsum(0).int()
    device = torch.get_default_device()
    return [x.to(device) for x in (rewards, values, mask, starts)]


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    seed=st.integers(0, 999),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(max_examples=8 if os.environ.get("TRITON_INTERPRET") == "1" else 60, deadline=None)
def test_equals_the_loop(lengths, seed, gamma, lam):
    inputs = packed(lengths, seed)
    ours, expected = (f(*inputs, gamma=gamma, lam=lam) for f in (gae, gae_ref))
    torch.testing.assert_close(ours, expected)
    mask = inputs[2]
    assert all((x[~mask] == 0).all() for x in ours)


def test_sequences_longer_than_a_block():
    inputs = packed([300, 1, 128, 0, 129], 3, counted=0.9)
    torch.testing.assert_close(
        gae(*inputs, gamma=0.99, lam=0.95), gae_ref(*inputs, gamma=0.99, lam=0.95), rtol=1e-5, atol=1e-5
    )


def test_lambda_may_differ_between_sequences():
    inputs = packed([5, 0, 200, 7], 4)
    lam = torch.tensor([1.0, 0.3, 0.9, 0.0], dtype=torch.float64)
    ours, expected = (f(*inputs, gamma=0.9, lam=lam) for f in (gae, gae_ref))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"lam must be a number or \[4\], got \[3\]"):
        gae(*inputs, lam=lam[:3])


def test_a_long_gap_between_counted_tokens():
    rewards, values, mask, starts = packed([300], 1, counted=1.0)
    mask[5:290] = False
    ours = gae(rewards, values, mask, starts, gamma=0.9, lam=0.8)
    kept = torch.cat([torch.arange(5), torch.arange(290, 300)]).to(values.device)
    alone = gae(
        rewards[kept], values[kept], mask[kept], torch.tensor([0, 15], dtype=torch.int32), gamma=0.9, lam=0.8
    )
    torch.testing.assert_close([x[kept] for x in ours], list(alone))


def test_by_hand():
    # A prompt of two tokens and a response of three with its reward on the last; then a response of one token.
    rewards = torch.tensor([9.0, 9.0, 0.0, 0.0, 1.0, -2.0])
    values = torch.tensor([9.0, 9.0, 0.5, 0.25, 0.5, 1.0])
    mask = torch.tensor([False, False, True, True, True, True])
    starts = torch.tensor([0, 5, 6])
    # γ = 0.5, λ = 0.5: δ = (0.125 − 0.5, 0.25 − 0.25, 1 − 0.5) = (−0.375, 0, 0.5).
    # A_3 = 0.5; A_2 = 0 + 0.25 · 0.5 = 0.125; A_1 = −0.375 + 0.25 · 0.125 = −0.34375.
    advantages, returns = gae(rewards, values, mask, starts, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [0, 0, -0.34375, 0.125, 0.5, -3.0]
    assert returns.tolist() == [0, 0, 0.15625, 0.375, 1.0, -2.0]


def test_lambda_one_gives_the_sum_of_rewards_and_lambda_zero_the_one_step_error():
    rewards, values, mask, starts = packed([6, 4], 2, counted=1.0)
    advantages, returns = gae(rewards, values, mask, starts, gamma=1.0, lam=1.0)
    to_go = torch.cat([part.flip(0).cumsum(0).flip(0) for part in rewards.split([6, 4])])
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, to_go - values)
    one_step, _ = gae(rewards, values, mask, starts, gamma=1.0, lam=0.0)
    following = torch.cat([torch.cat([part[1:], part.new_zeros(1)]) for part in values.split([6, 4])])
    torch.testing.assert_close(one_step, rewards + following - values)


def test_empty_and_fully_masked_inputs():
    empty = torch.zeros(0)
    advantages, returns = gae(empty, empty, empty.bool(), torch.tensor([0, 0]))
    assert advantages.shape == returns.shape == (0,)
    masked = gae(torch.ones(3), torch.ones(3), torch.zeros(3).bool(), torch.tensor([0, 3]))
    assert all((x == 0).all() for x in masked)


def test_invalid_arguments_are_rejected():
    x, mask, starts = torch.zeros(3), torch.ones(3).bool(), torch.tensor([0, 3])
    with pytest.raises(ValueError, match="1.5"):
        gae(x, x, mask, starts, gamma=1.5)
    with pytest.raises(ValueError, match=r"\[2\]"):
        gae(x, x[:2], mask, starts)
    with pytest.raises(ValueError, match="float32"):
        gae(x, x, mask.float(), starts)
