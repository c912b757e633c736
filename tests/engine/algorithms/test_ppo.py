"""Advantages and returns of a step, by hand; who learns when; what masked samples change (nothing)."""

import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ralign.engine.algorithms import ppo
from ralign.engine.algorithms.ppo import PPO, add_advantages, policy_lambda, rewards_at_the_end
from ralign.engine.config.algo import CriticConfig
from ralign.engine.data.packing import Sample, materialise

# Values of the response tokens, the sample's reward and weight; and by hand, for gamma = lambda = 1/2:
#   first: deltas 0.5 * 2 - 1, 0.5 * 3 - 2, 4 - 3 = 0, -0.5, 1; A = -1/16, -1/4, 1.   second: A = 1 - 0.5.
FIRST, SECOND = ([1.0, 2.0, 3.0], 4.0, 0.25), ([0.5], 1.0, 0.25)
MASKED = ([float("nan"), 7.0], float("nan"), 0.0)
ADVANTAGES, RETURNS = [-0.0625, -0.25, 1.0, 0.5], [0.9375, 1.75, 4.0, 1.0]
CONFIG = {"gamma": 0.5, "lam": 0.5}


@pytest.fixture
def alone(monkeypatch):
    """No other rank."""
    monkeypatch.setattr(ppo.dist, "all_reduce", lambda tensor, group: None)


def make_batch(*rows):
    """A micro-batch of these samples, with values that no sample has in the prompts."""
    samples = [
        Sample(
            prompt_ids=np.array([1, 2]),
            response_ids=np.full(len(values), 3),
            per_response_token={"values": np.array(values, dtype=np.float32)},
            per_sample={"rewards": reward, "weights": weight},
        )
        for values, reward, weight in rows
    ]
    (batch,) = materialise(samples, [np.arange(len(samples))], pad_multiple=8)
    batch.per_token["values"][~batch.loss_mask] = float("nan")
    return batch


def of_responses(batch, name: str) -> list[float]:
    return [x for part in batch.unpack(batch.per_token[name]) for x in part.tolist()]


def test_a_reward_stands_on_the_last_response_token(alone):
    rewards = rewards_at_the_end(make_batch(FIRST, SECOND))
    assert rewards[rewards != 0].tolist() == [4.0, 1.0]
    assert rewards.nonzero()[:, 0].tolist() == [1 + 2, 5 + 1]  # before the third token of 5, the third of 3


def test_advantages_and_returns_by_hand(alone):
    batch = make_batch(FIRST, SECOND)
    sums = add_advantages([[batch]], CriticConfig(whiten=False, **CONFIG), None)
    assert of_responses(batch, "advantages") == ADVANTAGES and of_responses(batch, "returns") == RETURNS
    assert sums.tolist() == [4, sum(ADVANTAGES), sum(x * x for x in ADVANTAGES)]
    assert (batch.per_token["advantages"][~batch.loss_mask] == 0).all()


def test_the_policys_lambda_may_differ_from_the_critics(alone):
    """By hand for lambda = 1, gamma = 1/2: A_t = sum of discounted rewards - V_t."""
    batch = make_batch(FIRST, SECOND)
    add_advantages([[batch]], CriticConfig(whiten=False, gamma=0.5, lam=0.5, policy_lam=1.0), None)
    assert of_responses(batch, "returns") == RETURNS
    assert of_responses(batch, "advantages") == [4 / 4 - 1, 4 / 2 - 2, 4 - 3, 1 - 0.5]


def test_a_length_adaptive_lambda_is_that_of_the_answers_length(alone):
    batch = make_batch(FIRST, SECOND)
    lams = policy_lambda(batch, CriticConfig(length_adaptive=2.0))
    assert lams[:2].tolist() == pytest.approx([1 - 1 / 6, 1 - 1 / 2])
    assert len(lams) == len(batch.cu_seqlens) - 1  # with the padding
    add_advantages([[batch]], CriticConfig(whiten=False, gamma=1.0, lam=1.0, length_adaptive=2.0), None)
    deltas, lam = [1.0, 1.0, 1.0], 5 / 6
    expected = [deltas[0] + lam * deltas[1] + lam**2 * deltas[2], deltas[1] + lam * deltas[2], deltas[2]]
    assert of_responses(batch, "advantages") == pytest.approx([*expected, 0.5])
    assert of_responses(batch, "returns") == pytest.approx([4.0, 4.0, 4.0, 1.0])


def test_a_kl_term_may_be_taken_from_each_tokens_reward(alone):
    batch = make_batch(FIRST, SECOND)
    for name, value in (("old_logprobs", -1.0), ("ref_logprobs", -1.5)):
        batch.per_token[name] = torch.where(batch.loss_mask, value, float("nan"))
    add_advantages([[batch]], CriticConfig(whiten=False, gamma=1.0, lam=1.0), None, kl_coef=0.2)
    # Each token costs 0.2 * 0.5; with gamma = lambda = 1 returns are the sums of the rewards to go.
    assert of_responses(batch, "returns") == pytest.approx([4 - 0.3, 4 - 0.2, 4 - 0.1, 1 - 0.1])


@pytest.mark.parametrize(
    "split", ["one micro-batch", "two micro-batches", "two updates", "with a masked sample"]
)
def test_whitening_is_over_all_counted_tokens_of_the_step(alone, split):
    updates = {
        "one micro-batch": [[make_batch(FIRST, SECOND)]],
        "two micro-batches": [[make_batch(FIRST), make_batch(SECOND)]],
        "two updates": [[make_batch(FIRST)], [make_batch(SECOND)]],
        "with a masked sample": [[make_batch(FIRST, MASKED), make_batch(SECOND)]],
    }[split]
    add_advantages(updates, CriticConfig(**CONFIG), None)
    mean, deviation = statistics.fmean(ADVANTAGES), statistics.pstdev(ADVANTAGES)
    batches = [batch for micro_batches in updates for batch in micro_batches]
    found = [x for batch in batches for x in of_responses(batch, "advantages")]
    expected = [(x - mean) / deviation for x in ADVANTAGES]
    if "masked" in split:
        expected[3:3] = [0.0, 0.0]
    assert found == pytest.approx(expected, rel=1e-6)
    returns = [x for batch in batches for x in of_responses(batch, "returns")]
    assert [x for x in returns if x] == RETURNS  # the critic learns what is paid, not what is whitened


def test_whitening_is_over_all_ranks(monkeypatch):
    """The other rank's part of the sums comes by the collective."""
    others = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)  # the second sample's one advantage
    monkeypatch.setattr(ppo.dist, "all_reduce", lambda tensor, group: tensor.add_(others))
    batch = make_batch(FIRST)
    add_advantages([[batch]], CriticConfig(**CONFIG), None)
    mean, deviation = statistics.fmean(ADVANTAGES), statistics.pstdev(ADVANTAGES)
    assert of_responses(batch, "advantages") == pytest.approx(
        [(x - mean) / deviation for x in ADVANTAGES[:3]]
    )


def test_equal_advantages_and_none_at_all_are_0(alone):
    rows = [([0.0] * 3, 0.7, 1.0), ([0.0] * 2, 0.7, 1.0)]
    batch = make_batch(*rows)
    add_advantages([[batch]], CriticConfig(lam=1.0), None)
    assert of_responses(batch, "advantages") == pytest.approx([0.0] * 5, abs=1e-6)
    batch = make_batch(MASKED)
    add_advantages([[batch]], CriticConfig(), None)
    assert not batch.per_token["advantages"].any() and not batch.per_token["returns"].any()


def test_explained_variance_by_hand():
    values, returns = np.array([0.5, 1.0, 2.0]), np.array([1.0, 1.0, 4.0])
    sums = {
        "num_tokens": 3.0, "value_sum": values.sum(), "return_sum": returns.sum(),
        "return_square_sum": (returns**2).sum(), "value_error_sum": ((values - returns) ** 2).sum(),
        "value_clipped_sum": 1.0,
    }  # fmt: skip
    stats = SimpleNamespace(metrics=sums, loss=2.0, grad_norm=3.0, lr=0.1)
    part = PPO.__new__(PPO)
    part._sums = torch.tensor([3.0, 3.0, 6.0], dtype=torch.float64)
    metrics = part.metrics([stats, stats])
    assert metrics["critic/explained_variance"] == pytest.approx(1 - (returns - values).var() / returns.var())
    assert metrics["critic/clipped_share"] == pytest.approx(1 / 3) and metrics["critic/loss"] == 2.0
    assert (metrics["critic/advantage_mean"], metrics["critic/advantage_std"]) == (1.0, 1.0)


@pytest.mark.jobs
def test_during_the_warm_up_only_the_critic_learns(torchrun):
    report = torchrun("ppo_warm_up", 1)
    policy, critic = report["policy"], report["critic"]
    assert len(policy) == len(critic) == 6  # before the first step and after each of five; four warm up
    assert len(set(policy[:5])) == 1 and policy[5] != policy[4]
    assert len(set(critic)) == 6
    assert report["weight_versions"] == [0, 0, 0, 0, 2]
    assert ["policy/loss" in names for names in report["metrics"]] == [False] * 4 + [True]
    assert all("critic/explained_variance" in names for names in report["metrics"])
