"""The planner: what every plan must hold, and equality with the reference in plain Python."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import packing_reference as reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ralign.engine.data.packing import plan
from ralign.engine.runtime.errors import UserError

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=120).map(lambda x: np.array(x, dtype=np.int64))
OPTIONS = st.fixed_dictionaries(
    {
        "token_budget": st.integers(108, 700),
        "dp_size": st.integers(1, 5),
        "multiple": st.integers(1, 3),
        "pad_multiple": st.integers(1, 8),
        "cost": st.sampled_from([(1.0, 0.0), (100.0, 1.0), (0.0, 1.0), (0.3, 1e-5)]),
        "balance": st.booleans(),
    }
)
VERL_COST = (24576.0, 1.0)  # l and l² of a 7B model, as verl weighs them


KINDS = reference.KINDS


def as_lists(ours) -> list[list[list[int]]]:
    return [[batch.tolist() for batch in rank] for rank in ours.micro_batches]


@given(lengths=LENGTHS, options=OPTIONS)
@settings(max_examples=150, deadline=None)
def test_every_sample_once_under_the_cap_in_as_few_as_best_fit_decreasing(lengths, options):
    ours = as_lists(plan(lengths, **options))
    pad, unit = options["pad_multiple"], options["dp_size"] * options["multiple"]
    capacity = options["token_budget"] // pad * pad
    fewest = len(reference.best_fit_decreasing(sorted(lengths.tolist(), reverse=True), capacity))
    per_rank = -(-fewest // unit) * options["multiple"]
    assert [len(rank) for rank in ours] == [per_rank] * options["dp_size"]
    batches = [batch for rank in ours for batch in rank]
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(batch == sorted(batch) for batch in batches)
    padded = [-(-sum(lengths[batch]) // pad) * pad for batch in batches]
    assert max(padded) <= options["token_budget"]


@given(lengths=LENGTHS, options=OPTIONS, groups=st.none() | st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_the_plan_is_the_reference_s(lengths, options, groups, seed):
    if groups is not None:
        options = options | {"groups": np.random.default_rng(seed).integers(-groups, groups, len(lengths))}
    assert as_lists(plan(lengths, **options)) == reference.plan(lengths, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_larger_plans_are_the_reference_s(kind):
    """Enough samples that bins and samples are exchanged between ranks, and that the cap interferes."""
    lengths, budget = reference.draw_lengths(kind, 160)
    for dp_size in (2, 5):
        options = {"token_budget": budget, "dp_size": dp_size, "cost": VERL_COST}
        assert as_lists(plan(lengths, **options)) == reference.plan(lengths, **options)


@given(lengths=LENGTHS, options=OPTIONS, num_groups=st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_a_group_stays_on_one_rank(lengths, options, num_groups):
    groups = np.random.default_rng(num_groups).integers(0, num_groups, len(lengths))
    ours = as_lists(plan(lengths, groups=groups, **options))
    ranks = [{int(groups[i]) for batch in rank for i in batch} for rank in ours]
    assert sum(len(rank) for rank in ranks) == len(set(groups.tolist()))
    assert sorted(i for rank in ours for batch in rank for i in batch) == list(range(len(lengths)))
    assert all(lengths[batch].sum() <= options["token_budget"] for rank in ours for batch in rank)
    assert len({len(rank) for rank in ours}) == 1 and len(ours[0]) % options["multiple"] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "dp_size"), [(1024, 32), (4096, 64), (10240, 64)])
def test_ranks_cost_alike_to_a_thousandth(kind, n, dp_size):
    lengths, budget = reference.draw_lengths(kind, n)
    ours = plan(lengths, token_budget=budget, dp_size=dp_size, cost=VERL_COST)
    cost = lengths * (VERL_COST[0] + VERL_COST[1] * lengths)
    loads = [sum(cost[batch].sum() for batch in rank) for rank in ours.micro_batches]
    assert max(loads) <= 1.001 * max(np.mean(loads), cost.max())
    assert max(lengths[batch].sum() for rank in ours.micro_batches for batch in rank) <= budget


@pytest.mark.parametrize("kind", KINDS)
def test_bins_reach_the_lower_bound_where_best_fit_decreasing_does(kind):
    lengths, budget = reference.draw_lengths(kind, 10_000)
    num_bins = len(plan(lengths, token_budget=budget).offsets) - 1
    bound = reference.martello_toth_bound(lengths, budget)
    assert bound <= num_bins
    if kind != "third":  # near C/3 best-fit-decreasing itself is 7 % over the bound
        assert num_bins <= np.ceil(1.001 * bound)


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_the_lower_bound_is_one(lengths):
    """By trying all packings."""

    def fewest(rest, spaces):
        if not rest:
            return len(spaces)
        first, *others = rest
        tried = [
            fewest(others, [*spaces[:i], space - first, *spaces[i + 1 :]])
            for i, space in enumerate(spaces)
            if space >= first and space not in spaces[:i]
        ]
        return min([*tried, fewest(others, [*spaces, 12 - first])])

    assert reference.martello_toth_bound(np.array(lengths), 12) <= fewest(sorted(lengths, reverse=True), [])


def test_work_side_by_side_costs_alike():
    """What ranks wait for if they meet after each micro-batch, over what they would if all cost the same."""
    lengths, budget = reference.draw_lengths("lognormal", 100_000)
    cost = lengths * (VERL_COST[0] + VERL_COST[1] * lengths)
    ours = plan(lengths, token_budget=budget, dp_size=64, cost=VERL_COST).micro_batches
    costs = np.array([[cost[batch].sum() for batch in rank] for rank in ours])
    assert (np.diff(costs, axis=1) <= 0).all()
    assert costs.max(axis=0).sum() <= 1.005 * costs.sum() / 64


def test_threads_change_nothing():
    lengths = np.random.default_rng(1).integers(1, 4000, 5000)

    def run(_):
        return plan(lengths, token_budget=8192, dp_size=4, cost=VERL_COST)

    with ThreadPoolExecutor(8) as pool:
        for other in pool.map(run, range(16)):
            assert np.array_equal(other.indices, run(0).indices)
            assert np.array_equal(other.offsets, run(0).offsets)


def test_of_equal_lengths_the_earlier_is_placed_first():
    assert as_lists(plan([10] * 4, token_budget=20, dp_size=2, balance=False)) == [[[0, 1]], [[2, 3]]]
    assert as_lists(plan([10] * 4, token_budget=10, dp_size=2)) == [[[0], [2]], [[1], [3]]]


def test_too_few_samples_leave_micro_batches_empty():
    assert as_lists(plan([4, 4, 4], token_budget=5, dp_size=2)) == [[[0], [2]], [[1], []]]
    assert as_lists(plan([3], token_budget=5, dp_size=2, multiple=2)) == [[[0], []], [[], []]]


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([3, 9], {"token_budget": 5}, "sample 1 has 9 tokens, more than token_budget 5"),
        ([3, 9], {"token_budget": 9, "pad_multiple": 4}, "sample 1 has 9 .* 9 .* padded to a multiple of 4"),
        ([3, -1], {"token_budget": 5}, "sample 1 has length -1"),
        ([3, 0], {"token_budget": 5}, "sample 1 has length 0"),
        ([3, 2**62], {"token_budget": 5}, f"sample 1 has {2**62} tokens"),
        ([3, 2**70], {"token_budget": 5}, "lengths must be int64, got object"),
        ([], {"token_budget": 5}, "lengths must be int64, got float64"),
        (np.zeros(0, dtype=np.int64), {"token_budget": 5}, "lengths is empty"),
        ([1.5], {"token_budget": 5}, "int64, got float64"),
        (np.ones(3, dtype=np.int32), {"token_budget": 5}, "int64, got int32"),
        (np.ones(3, dtype=">i8"), {"token_budget": 5}, "int64, got >i8"),
        (np.ones(6, dtype=np.int64)[::2], {"token_budget": 5}, "lengths must be contiguous"),
        ([[1]], {"token_budget": 5}, "1 dimension, got 2"),
        ([1], {"token_budget": 0}, "token_budget must be from 1 to 67108864, got 0"),
        ([1], {"token_budget": 2**40}, f"got {2**40}"),
        ([1], {"token_budget": 5, "pad_multiple": 6}, "pad_multiple must be from 1 to 5, got 6"),
        ([1], {"token_budget": 5, "cost": (-1.0, 0.0)}, "cost must be two finite numbers >= 0"),
        ([1], {"token_budget": 5, "cost": (float("nan"), 0.0)}, "got nan"),
        ([1], {"token_budget": 5, "cost": (float("inf"), 0.0)}, "got inf"),
        ([1], {"token_budget": 5, "cost": (1e300, 0.0)}, "out of range"),
        ([1], {"token_budget": 5, "dp_size": 0}, "dp_size must be from 1 to 1048576, got 0"),
        (
            [1],
            {"token_budget": 5, "dp_size": 1024, "multiple": 1025},
            "multiple must be from 1 to 1024, got 1025",
        ),
        ([1, 1], {"token_budget": 5, "groups": np.array([1])}, "groups has 1 entries for 2 samples"),
        ([1], {"token_budget": 5, "groups": np.array([0.5])}, "groups must be int64, got float64"),
        ([1], {"token_budget": 5, "groups": [1]}, "groups must be a numpy array, got list"),
    ],
)
def test_a_plan_that_cannot_be_names_the_offender(lengths, options, message):
    with pytest.raises(UserError, match=message):
        plan(lengths, **options)
