"""The twin's mean as a factor: the same expectation as a random partner's, with less variance; never cancelled."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ralign.engine.algorithms.coupling import coupled, twin_consistency
from ralign.engine.algorithms.grouping import grouped
from ralign.engine.algorithms.rewards import LABEL, score
from ralign.engine.config.algo import AlgoConfig
from ralign.engine.config.algo_validation import check_algo
from ralign.engine.config.checks import Checks
from ralign.engine.config.registry import ADVANTAGES
from ralign.engine.config.run import GenRMRun
from ralign.engine.data.pairs import other_side
from ralign.engine.runtime.errors import UserError

NAN = math.nan


def pair(first, second):
    groups = np.array([0] * len(first) + [1] * len(second))
    return np.array([*first, *second], dtype=float), groups, groups ^ 1


@pytest.mark.parametrize(
    ("first", "second", "earned"),
    [
        ([1, 0, 1], [1, 1, 0], [2 / 3, 0, 2 / 3, 2 / 3, 2 / 3, 0]),
        ([0.5, 1], [0.25, 0.75], [0.25, 0.5, 0.1875, 0.5625]),
        ([1, NAN], [1, 0], [0.5, NAN, 1.0, 0.0]),  # an unknown value is left out of the twin's mean
        ([1, NAN], [0, 0], [0, 0, 0, 0]),  # nothing was earned, whatever the unknown value is
        ([1, 0], [NAN, NAN], [NAN, 0, NAN, NAN]),
        ([-1, 1], [1, -1], [-1, 0.5, 0.5, -1]),  # what costs costs whole
    ],
)
def test_by_hand(first, second, earned):
    np.testing.assert_allclose(coupled(*pair(first, second)), earned)


@given(
    st.lists(st.integers(0, 1), min_size=1, max_size=6), st.lists(st.integers(0, 1), min_size=1, max_size=6)
)
def test_it_is_the_mean_over_all_partners(first, second):
    values, groups, others = pair(first, second)
    means = [np.mean([min(v, w) for w in second]) for v in first]
    means += [np.mean([min(v, w) for w in first]) for v in second]
    np.testing.assert_allclose(coupled(values, groups, others), means)


def test_a_random_partner_has_the_same_mean_and_more_variance():
    """8 samples a twin, right with probability 0.7 and 0.4: 4,000 draws of the reward of the first one."""
    rng = np.random.default_rng(0)
    one, all_others = [], []
    for _ in range(4000):
        values, groups, others = pair(rng.random(8) < 0.7, rng.random(8) < 0.4)
        one.append((values[:8] * values[8:]).mean())
        all_others.append(coupled(values, groups, others)[:8].mean())
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
    # Group 0: right, none. Group 1: right, wrong. Couples: (right, right) agrees, one of four.
    assert twin_consistency(correct, invalid, groups, groups ^ 1) == pytest.approx(1 / 4)


@given(st.data(), st.booleans())
def test_consistency_compares_responses_not_sides(data, swaps_sides):
    """Against the responses that the verdicts name: in a twin that swaps sides, A is the pair's B."""
    verdicts = data.draw(st.lists(st.sampled_from(["A", "B", None]), min_size=8, max_size=8))
    labels = data.draw(st.lists(st.sampled_from(["A", "B"]), min_size=2, max_size=2))
    groups = np.repeat(np.arange(4), 2)  # pair, twin, pair, twin
    is_swapped = (groups % 2 == 1) & swaps_sides
    of_sample = [labels[group // 2] for group in groups]
    seen = [other_side(x) if swapped else x for x, swapped in zip(of_sample, is_swapped, strict=True)]
    named = [other_side(x) if x and swapped else x for x, swapped in zip(verdicts, is_swapped, strict=True)]
    same = [
        named[i] is not None and named[i] == named[j]
        for i in range(8)
        for j in range(8)
        if groups[i] ^ 1 == groups[j]
    ]
    rewards = score(LABEL, verdicts, seen, groups=groups, twin_groups=groups ^ 1)
    assert rewards.twin_consistency == pytest.approx(np.mean(same))


def _is_allowed(name: str, group: str) -> bool:
    algo = AlgoConfig(advantages=name, reward="label", partner="order", couple=True, group=group)
    checks = Checks()
    check_algo(checks, GenRMRun(algo=algo))
    try:
        checks.check()
    except UserError:
        return False
    return True


# Two pairs with the same values. Their twins are right in 3 of 4 and in 1 of 4.
PAIRS = [[1, 0, -1, NAN], [1, 1, 1, 0], [1, 0, -1, NAN], [1, 0, 0, 0]]
GROUPS = np.repeat(np.arange(4), 4)


def _advantages(name: str, group: str, values: list, *, couple: bool) -> np.ndarray:
    """[num_groups, 4] float64."""
    own = np.ravel(values).astype(float)
    paid = coupled(own, GROUPS, GROUPS ^ 1) if couple else own
    valid, estimator = torch.from_numpy(~np.isnan(paid)), ADVANTAGES.load(name)
    rewards = torch.from_numpy(np.nan_to_num(paid))
    rewards = rewards[:, None] if getattr(estimator, "takes_parts", False) else rewards
    ids = torch.from_numpy(GROUPS)
    return grouped(estimator, group, rewards, ids, valid, implementation="torch").numpy().reshape(-1, 4)


CASES = [(name, group) for name in ADVANTAGES.names for group in ("prompt", "pair") if name != "gae"]


def test_what_divides_by_a_groups_std_is_refused():
    assert {name for name, group in CASES if not _is_allowed(name, group)} == {"grpo", "gdpo"}
    assert _is_allowed("gae", "prompt")  # its rewards are paid as they are


@pytest.mark.parametrize(("name", "group"), [case for case in CASES if _is_allowed(*case)])
def test_the_factor_is_not_cancelled_by_what_is_allowed(name, group):
    """Right against wrong weighs 3 times as much where the twin's mean is 3 times as large; invalid costs the same."""
    first, _, second, _ = _advantages(name, group, PAIRS, couple=True)
    right, wrong, invalid, masked = range(4)
    assert first[right] - first[wrong] == pytest.approx(3 * (second[right] - second[wrong]))
    assert first[wrong] - first[invalid] == pytest.approx(second[wrong] - second[invalid])
    assert first[right] - first[wrong] > 0.01 and first[wrong] - first[invalid] > 0.01
    assert first[masked] == second[masked] == 0


@pytest.mark.parametrize("name", ["grpo", "gdpo"])
def test_the_factor_is_cancelled_by_what_is_refused(name):
    """By group=pair, too, where a pair and its twin are right equally often."""
    assert not _is_allowed(name, "prompt") and not _is_allowed(name, "pair")
    values = [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    own, paid = (_advantages(name, "prompt", values, couple=couple) for couple in (False, True))
    np.testing.assert_allclose(paid, own, atol=2e-5)  # eps = 1e-6 of a std of at least 0.1
    values = [[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    own, paid = (_advantages(name, "pair", values, couple=couple) for couple in (False, True))
    np.testing.assert_allclose(paid, own, atol=2e-5)
    dr_grpo = [_advantages("dr_grpo", "pair", values, couple=couple) for couple in (False, True)]
    assert np.abs(dr_grpo[0] - dr_grpo[1]).max() > 0.1
