from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ralign.engine.errors import UserError
from ralign.engine.packing import Sample, materialise, plan
from ralign.kernels.logprob import IGNORE

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=120)


def best_fit_decreasing(lengths, capacity) -> int:
    """Number of bins, the slow way."""
    space = []
    for length in sorted(lengths, reverse=True):
        room = [(free, i) for i, free in enumerate(space) if free >= length]
        if room:
            space[min(room)[1]] -= length
        else:
            space.append(capacity - length)
    return len(space)


@given(
    lengths=LENGTHS,
    budget=st.integers(100, 700),
    dp_size=st.integers(1, 5),
    multiple=st.integers(1, 2),
    cost=st.sampled_from([(1.0, 0.0), (100.0, 1.0), (0.0, 1.0)]),
)
@settings(max_examples=150, deadline=None)
def test_plan(lengths, budget, dp_size, multiple, cost):
    fewest = best_fit_decreasing(lengths, budget)
    num_bins = -(-fewest // (dp_size * multiple)) * dp_size * multiple
    assume(num_bins <= len(lengths))
    ours = plan(lengths, token_budget=budget, dp_size=dp_size, multiple=multiple, cost=cost).micro_batches
    assert [len(rank) for rank in ours] == [num_bins // dp_size] * dp_size
    batches = [batch for rank in ours for batch in rank]
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    sizes = np.array(lengths)
    assert all(len(batch) > 0 and sizes[batch].sum() <= budget for batch in batches)
    assert all((np.diff(batch) > 0).all() for batch in batches)


@given(lengths=LENGTHS, dp_size=st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_ranks_cost_alike_where_the_budget_leaves_room(lengths, dp_size):
    """Longest-processing-time: no rank exceeds the mean by more than one sample's cost."""
    assume(len(lengths) >= dp_size)
    ours = plan(lengths, token_budget=10**6, dp_size=dp_size, cost=(50.0, 1.0)).micro_batches
    sample_cost = np.array([50.0 * x + x * x for x in lengths])
    loads = [sum(sample_cost[batch].sum() for batch in rank) for rank in ours]
    assert max(loads) <= np.mean(loads) + sample_cost.max()


def test_balance_and_fill_of_a_large_batch():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.9, 1, 10_000), 16, 8192).astype(np.int64)
    ours = plan(lengths, token_budget=8192, dp_size=8, cost=(24576.0, 1.0)).micro_batches
    num_batches = sum(len(rank) for rank in ours)
    assert num_batches <= -(-lengths.sum() // 8192) + 8
    sample_cost = lengths * (24576.0 + lengths)
    loads = [sum(sample_cost[batch].sum() for batch in rank) for rank in ours]
    assert max(loads) / np.mean(loads) < 1.03


def test_equal_lengths_keep_their_order_and_threads_change_nothing():
    first = plan([10] * 8, token_budget=20, dp_size=2).micro_batches
    assert [[batch.tolist() for batch in rank] for rank in first] == [[[0, 4], [2, 6]], [[1, 5], [3, 7]]]
    lengths = np.random.default_rng(1).integers(1, 4000, 5000)

    def run(_):
        return plan(lengths, token_budget=8192, dp_size=4).micro_batches

    with ThreadPoolExecutor(8) as pool:
        for other in pool.map(run, range(16)):
            assert str(other) == str(run(0))


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([3, 9], {"token_budget": 5}, "sample 1 has 9 tokens, more than token_budget 5"),
        ([3, -1], {"token_budget": 5}, "sample 1 has length -1"),
        ([3, 0], {"token_budget": 5}, "sample 1 has length 0"),
        ([3, 2**62], {"token_budget": 5}, f"sample 1 has {2**62} tokens"),
        ([], {"token_budget": 5}, "lengths is empty"),
        ([1.5], {"token_budget": 5}, "int64, got float64"),
        ([[1]], {"token_budget": 5}, "1 dimension, got 2"),
        ([1, 1], {"token_budget": 5, "dp_size": 3}, "2 samples do not give each of 3 ranks 1"),
        ([4, 4, 4], {"token_budget": 5, "dp_size": 2}, "3 samples need 3 micro-batches"),
        ([1], {"token_budget": 0}, "token_budget must be from 1 to 67108864, got 0"),
        ([1], {"token_budget": 2**40}, f"got {2**40}"),
        ([1], {"token_budget": 5, "cost": (-1.0, 0.0)}, "cost must be two numbers >= 0"),
        ([1], {"token_budget": 5, "cost": (float("nan"), 0.0)}, "got nan"),
        ([1], {"token_budget": 5, "dp_size": 0}, "0 ranks"),
    ],
)
def test_a_plan_that_cannot_be_names_the_offender(lengths, options, message):
    with pytest.raises(UserError, match=message):
        plan(lengths, **options)


def sample(prompt_len, response_len, start=0):
    ids = np.arange(start, start + prompt_len + response_len)
    return Sample(
        prompt_ids=ids[:prompt_len],
        response_ids=ids[prompt_len:],
        per_response_token={"rollout_logprobs": -1.0 - np.arange(response_len, dtype=np.float32)},
        per_sample={"advantages": float(start)},
    )


def test_materialise_by_hand():
    samples = [sample(9, 9), sample(2, 3, start=10), sample(3, 1, start=20), sample(1, 0, start=30)]
    batch = materialise(samples, np.array([1, 2, 3]), pad_multiple=4)
    assert batch.input_ids.tolist() == [10, 11, 12, 13, 14, 20, 21, 22, 23, 30, 0, 0]
    assert batch.targets.tolist() == [IGNORE, 12, 13, 14, IGNORE, IGNORE, IGNORE, 23] + [IGNORE] * 4
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 5, 9, 10, 12] and batch.max_seqlen == 5
    assert batch.per_token["rollout_logprobs"].tolist() == [0, -1, -2, -3, 0, 0, 0, -1, 0, 0, 0, 0]
    assert batch.per_token["advantages"].tolist() == [0, 10, 10, 10, 0, 0, 0, 20, 0, 0, 0, 0]
    assert [batch.input_ids.dtype, batch.targets.dtype, batch.position_ids.dtype] == [torch.int64] * 3
    assert batch.cu_seqlens.dtype == torch.int32 and batch.per_token["advantages"].dtype == torch.float32


@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12),
    pad_multiple=st.integers(1, 8),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_unpack_is_the_inverse_of_materialise(shapes, pad_multiple, seed):
    samples = [sample(*shape, start=100 * i) for i, shape in enumerate(shapes)]
    order = np.random.default_rng(seed).permutation(len(samples))
    batch = materialise(samples, order, pad_multiple=pad_multiple)
    num_tokens = sum(len(x) for x in samples)
    assert len(batch.input_ids) == num_tokens + -num_tokens % pad_multiple == batch.cu_seqlens[-1]
    assert batch.max_seqlen == batch.cu_seqlens.diff().max() and (batch.cu_seqlens.diff() > 0).all()
    assert (batch.position_ids[batch.cu_seqlens[:-1].long()] == 0).all()
    for name in ("rollout_logprobs", "advantages"):
        for i, values in zip(order, batch.unpack(batch.per_token[name]), strict=True):
            wanted = {**samples[i].per_response_token, **samples[i].per_sample}[name]
            assert values.tolist() == np.broadcast_to(wanted, len(samples[i].response_ids)).tolist()
    for i, targets in zip(order, batch.unpack(batch.targets), strict=True):
        assert targets.tolist() == samples[i].response_ids.tolist()
    assert (batch.targets != IGNORE).sum() == sum(len(x.response_ids) for x in samples)
    # Every target is the next token of the same sample.
    predicting = (batch.targets != IGNORE).nonzero()[:, 0]
    assert torch.equal(batch.targets[predicting], batch.input_ids[predicting + 1])


def test_a_sample_that_does_not_fit_is_named():
    good, bad = sample(2, 3), sample(2, 3)
    bad.per_response_token["rollout_logprobs"] = np.zeros(1, dtype=np.float32)  # numpy would broadcast it
    with pytest.raises(UserError, match=r"sample 1: rollout_logprobs has shape \[1\] for 3 response tokens"):
        materialise([good, bad], np.array([0, 1]))
    with pytest.raises(UserError, match="sample 1 has an empty prompt"):
        materialise([good, sample(0, 3)], np.array([0, 1]))
    bad.per_response_token = {}
    with pytest.raises(UserError, match="sample 1 brings"):
        materialise([good, bad], np.array([0, 1]))
