"""The other order's mean as a factor: the same expectation as a random partner's, with less variance."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ralign.engine.algorithms.both_orders import couple, swap_consistency

NAN = math.nan


def pair(first, second):
    groups = np.array([0] * len(first) + [1] * len(second))
    return np.array([*first, *second], dtype=float), groups, groups ^ 1


@pytest.mark.parametrize(
    ("first", "second", "earned"),
    [
        ([1, 0, 1], [1, 1, 0], [2 / 3, 0, 2 / 3, 2 / 3, 2 / 3, 0]),
        ([0.5, 1], [0.25, 0.75], [0.25, 0.5, 0.1875, 0.5625]),
        ([1, NAN], [1, 0], [0.5, NAN, 1.0, 0.0]),  # an unknown value is left out of the other order's mean
        ([1, NAN], [0, 0], [0, 0, 0, 0]),  # nothing was earned, whatever the unknown value is
        ([1, 0], [NAN, NAN], [NAN, 0, NAN, NAN]),
        ([-1, 1], [1, -1], [-1, 0.5, 0.5, -1]),  # what costs costs whole
    ],
)
def test_by_hand(first, second, earned):
    np.testing.assert_allclose(couple(*pair(first, second)), earned)


@given(
    st.lists(st.integers(0, 1), min_size=1, max_size=6), st.lists(st.integers(0, 1), min_size=1, max_size=6)
)
def test_it_is_the_mean_over_all_partners(first, second):
    values, groups, others = pair(first, second)
    means = [np.mean([min(v, w) for w in second]) for v in first]
    means += [np.mean([min(v, w) for w in first]) for v in second]
    np.testing.assert_allclose(couple(values, groups, others), means)


def test_a_random_partner_has_the_same_mean_and_more_variance():
    """8 samples an order, right with probability 0.7 and 0.4: 4,000 draws of the reward of the first order."""
    rng = np.random.default_rng(0)
    one, all_others = [], []
    for _ in range(4000):
        values, groups, others = pair(rng.random(8) < 0.7, rng.random(8) < 0.4)
        one.append((values[:8] * values[8:]).mean())
        all_others.append(couple(values, groups, others)[:8].mean())
    assert np.mean(one) == pytest.approx(0.28, abs=0.01) and np.mean(all_others) == pytest.approx(
        0.28, abs=0.01
    )
    assert np.var(all_others) < 0.85 * np.var(one)


def test_consistency_is_over_all_couples():
    correct = np.array(
        [True, True, False, False]
    )  # the second is without a verdict in one, wrong in the other
    groups = np.array([0, 1, 0, 1])
    invalid = np.array([False, False, True, False])
    # Order 0: right, none. Order 1: right, wrong. Couples: (right, right) agrees, one of four.
    assert swap_consistency(correct, invalid, groups, groups ^ 1) == pytest.approx(1 / 4)
