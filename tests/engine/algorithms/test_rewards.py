"""Rewards from verdicts and outcomes, alone and coupled with a twin's; rewards of a user's own."""

import itertools
import math

import numpy as np
import pytest
from ralign.engine.algorithms.rewards import LABEL, LABEL_RATIONALE, R_ALIGN, Reward, check_failures, score
from ralign.engine.config.registry import REWARDS
from ralign.engine.judging.metarm import Outcome
from ralign.engine.runtime.errors import UserError

VERDICTS = ["A", "A", "A", "A", "B", None, None]
LABELS = ["A", "A", "A", "A", "A", "A", "B"]
SKIP = Outcome.SKIPPED
COUPLED = {"groups": np.array([0, 1]), "twin_groups": np.array([1, 0]), "couple": True}
OUTCOMES = [Outcome.CORRECT, Outcome.INCORRECT, Outcome.CALL_FAIL, Outcome.PARSE_FAIL, SKIP, SKIP, SKIP]


def test_the_label_reward_depends_on_the_verdict_only():
    rewards = score(LABEL, VERDICTS, LABELS, OUTCOMES)
    np.testing.assert_array_equal(rewards.values, np.float32([1, 1, 1, 1, 0, 0, 0]))
    assert rewards.values.dtype == np.float32 and rewards.valid.all()
    without = score(LABEL, VERDICTS, LABELS)
    np.testing.assert_array_equal(without.values, rewards.values)
    assert math.isnan(without.s_corr)


def test_r_align_needs_the_right_reason_too_and_masks_failures():
    rewards = score(R_ALIGN, VERDICTS, LABELS, OUTCOMES)
    np.testing.assert_array_equal(rewards.values, np.float32([1, 0, 0, 0, 0, 0, 0]))
    np.testing.assert_array_equal(rewards.valid, [True, True, False, False, True, True, True])


@pytest.mark.parametrize("name", ["label", "r_align"])
def test_a_missing_verdict_has_a_reward_of_its_own(name):
    rewards = score(REWARDS.load(name), VERDICTS, LABELS, OUTCOMES, invalid_reward=-0.5)
    np.testing.assert_array_equal(rewards.values[5:], np.float32([-0.5, -0.5]))
    assert rewards.valid[5:].all()


@pytest.mark.parametrize("name", ["label", "r_align"])
def test_counts_and_metrics_follow_the_released_definitions(name):
    rewards = score(REWARDS.load(name), VERDICTS, LABELS, OUTCOMES)
    assert (rewards.num_samples, rewards.num_invalid, rewards.num_judge_failed) == (7, 2, 2)
    assert (rewards.num_label_correct, rewards.num_aligned, rewards.num_spurious) == (4, 1, 1)
    assert rewards.l_acc == 4 / 7 and rewards.s_corr == 1 / 2 and rewards.f_score == 1 / 5


def test_r_align_needs_outcomes():
    assert R_ALIGN.needs_metarm and not LABEL.needs_metarm
    with pytest.raises(UserError, match="needs a MetaRM"):
        score(R_ALIGN, VERDICTS, LABELS)


def test_a_coupled_sample_earns_only_what_its_twin_earns():
    # Pairs (0, 1), (2, 3), ...: right twice, right once, right but spurious once, unread once, wrong twice.
    verdicts = ["A", "B", "A", "A", "A", "B", "A", None, "B", "A"]
    labels = ["A", "B"] * 5
    outcomes = [Outcome.CORRECT, Outcome.CORRECT, Outcome.CORRECT, SKIP, Outcome.CORRECT, Outcome.INCORRECT]
    outcomes += [Outcome.CORRECT, SKIP, SKIP, SKIP]
    twins = {"groups": np.arange(10), "twin_groups": np.arange(10) ^ 1}
    aligned = score(R_ALIGN, verdicts, labels, outcomes, invalid_reward=-1.0, couple=True, **twins)
    assert aligned.values.tolist() == [1, 1, 0, 0, 0, 0, 0, -1, 0, 0]
    label = score(LABEL, verdicts, labels, outcomes, couple=True, **twins)
    assert label.values.tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 0, 0]
    assert aligned.valid.all() and label.valid.all()
    assert aligned.twin_consistency == pytest.approx(6 / 10)
    assert aligned.num_label_correct == 6  # counts stay those of single samples
    alone = score(LABEL, verdicts, labels, outcomes, **twins)
    assert alone.values.tolist() == score(LABEL, verdicts, labels, outcomes).values.tolist()
    assert alone.twin_consistency == aligned.twin_consistency


# (verdict, outcome) of a sample whose label is A: every case that one sample can be in.
CASES = [("A", outcome) for outcome in (Outcome.CORRECT, Outcome.INCORRECT, Outcome.CALL_FAIL)]
CASES += [("B", SKIP), (None, SKIP)]


@pytest.mark.parametrize("name", ["label", "r_align"])
@pytest.mark.parametrize(("own", "other"), list(itertools.product(CASES, repeat=2)))
def test_a_coupled_reward_of_0_and_1_in_every_case(name, own, other):
    """Against the definition: 1 if both earn 1; unknown if the outcomes could be such that both do, and are unknown."""

    def possible(verdict, outcome):
        if verdict != "A":
            return {0}
        if name == "label":
            return {1}
        return {0, 1} if outcome.failed else {int(outcome is Outcome.CORRECT)}

    verdicts, outcomes = zip(own, other, strict=True)
    rewards = score(REWARDS.load(name), verdicts, ["A", "A"], outcomes, invalid_reward=-1.0, **COUPLED)
    values = {a * b for a in possible(*own) for b in possible(*other)}
    if own[0] is None:
        assert (rewards.values[0], rewards.valid[0]) == (-1, True)
    elif len(values) == 2:
        assert (rewards.values[0], rewards.valid[0]) == (0, False)
    else:
        assert (rewards.values[0], rewards.valid[0]) == (*values, True)


@pytest.mark.parametrize(
    ("own", "other", "value"),
    [
        (0.75, 0.25, 0.1875),
        (0.25, 0.75, 0.1875),
        (0.25, -0.75, 0.0),
        (math.nan, 0.25, None),
        (0.25, math.nan, None),
        (math.nan, math.nan, None),
        (math.nan, 0.0, 0.0),  # nothing was earned, whatever the unknown value is
        (-0.5, math.nan, -0.5),
    ],
)
def test_a_coupled_real_valued_reward(own, other, value):
    reward = Reward(lambda samples: np.array([own, other]))
    rewards = score(reward, ["A", "B"], ["A", "B"], **COUPLED)
    assert rewards.valid[0] == (value is not None) and rewards.values[0] == (value or 0)


def test_a_failed_review_may_count_as_its_groups_share_of_correct_ones():
    outcomes = [Outcome.CORRECT, Outcome.INCORRECT, Outcome.CORRECT, Outcome.CALL_FAIL, SKIP]
    outcomes += [Outcome.PARSE_FAIL, SKIP]  # a group without a review: the batch's share
    verdicts, groups = ["A", "A", "A", "A", "B", "A", "B"], np.array([0] * 5 + [1] * 2)
    masked, imputed = (
        score(R_ALIGN, verdicts, ["A"] * 7, outcomes, groups=groups, impute=impute)
        for impute in (False, True)
    )
    assert masked.valid.tolist() == [True] * 3 + [False, True, False, True]
    assert imputed.valid.all()
    assert imputed.values.tolist() == pytest.approx([1, 0, 1, 2 / 3, 0, 2 / 3, 0])
    assert imputed.num_judge_failed == 2 and imputed.f_score == masked.f_score
    nothing = score(R_ALIGN, ["A"], ["A"], [Outcome.CALL_FAIL], impute=True)
    assert not nothing.valid.any()


def test_imputation_is_unbiased_where_failures_are_independent_of_the_outcome():
    """The mean of 4 right samples of 8, 3 of them Correct, under failures of 30 %: masking pays survivors too much."""
    rng, outcomes = np.random.default_rng(0), [Outcome.CORRECT] * 3 + [Outcome.INCORRECT] + [SKIP] * 4
    verdicts, means = ["A"] * 4 + ["B"] * 4, {True: [], False: []}
    for _ in range(3000):
        failed = rng.random(4) < 0.3
        if failed.all():
            continue
        drawn = [Outcome.CALL_FAIL if n < 4 and failed[n] else outcome for n, outcome in enumerate(outcomes)]
        for impute, found in means.items():
            rewards = score(R_ALIGN, verdicts, ["A"] * 8, drawn, impute=impute)
            found.append(rewards.values[rewards.valid].mean())
    assert np.mean(means[True]) == pytest.approx(3 / 8, abs=0.005)
    assert np.mean(means[False]) < 3 / 8 - 0.02  # the wrong ones cannot fail: the baseline is too low


def test_a_reward_of_parts_is_their_sum():
    rewards = score(LABEL_RATIONALE, VERDICTS, LABELS, OUTCOMES, invalid_reward=-1.0)
    assert rewards.parts.tolist() == [[1, 1], [1, 0], [0, 0], [0, 0], [0, 0], [-0.5, -0.5], [-0.5, -0.5]]
    assert rewards.values.tolist() == [2, 1, 0, 0, 0, -1, -1]
    assert rewards.valid.tolist() == [True, True, False, False, True, True, True]


@pytest.mark.parametrize("value", [7.0, math.nan])
def test_a_missing_verdict_earns_nothing_whatever_the_function_returns(value):
    reward = Reward(lambda samples: np.where(samples.invalid, value, 1.0))
    alone = score(reward, [None, "B"], ["A", "B"], invalid_reward=-1.0)
    assert alone.values.tolist() == [-1, 1] and alone.valid.all()
    both = score(reward, [None, "B"], ["A", "B"], invalid_reward=-1.0, **COUPLED)
    assert both.values.tolist() == [-1, 0] and both.valid.all()


def test_a_failed_metarm_on_too_large_a_share_ends_the_run():
    def rewards(num_failed, num_good):
        outcomes = [Outcome.CALL_FAIL] * num_failed + [Outcome.CORRECT] * num_good
        return score(R_ALIGN, ["A"] * len(outcomes), ["A"] * len(outcomes), outcomes)

    check_failures(rewards(5, 5), 0.5)
    check_failures(rewards(7, 0), 0.5)  # too few to tell
    with pytest.raises(UserError, match=r"6 of 10 reviews .* metarm.max_failed_share=0.5"):
        check_failures(rewards(6, 4), 0.5)


MINE = """
import numpy as np
from ralign.engine.algorithms.rewards import Reward

def half(samples):
    return samples.correct * 0.5

def bold(samples):
    return np.where(samples.failed, np.nan, samples.aligned - 0.5 * samples.spurious)

BOLD = Reward(bold, needs_metarm=True)
NUMBER = 3
"""


def test_a_reward_from_a_file_and_one_that_a_program_registers(tmp_path):
    path = tmp_path / "rewards_of_mine.py"
    path.write_text(MINE)
    half = REWARDS.load(f"{path}:half")
    assert not half.needs_metarm
    assert score(half, VERDICTS, LABELS, invalid_reward=-1.0).values.tolist() == [0.5] * 4 + [0, -1, -1]
    bold = REWARDS.load(f"{path}:BOLD")
    assert bold.needs_metarm
    rewards = score(bold, VERDICTS, LABELS, OUTCOMES)
    assert rewards.values.tolist() == [1, -0.5, 0, 0, 0, 0, 0]
    assert rewards.valid.tolist() == [True, True, False, False, True, True, True]
    with pytest.raises(UserError, match=r"algo.reward=.*NUMBER: expected a Reward or a function, got int"):
        REWARDS.load(f"{path}:NUMBER")
    REWARDS.register("one", lambda samples: np.ones(len(samples.labels)))
    try:
        assert score(REWARDS.load("one"), ["A", "B"], ["A", "A"]).values.tolist() == [1, 1]
    finally:
        REWARDS.unregister("one")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda samples: 1.0, r"returned the shape \(\), expected \(7,\)"),
        (lambda samples: np.full(7, math.inf), "an infinite value"),
    ],
)
def test_a_reward_function_with_a_bad_result_is_the_user_s_mistake(function, message):
    with pytest.raises(UserError, match=message):
        score(Reward(function), VERDICTS, LABELS, OUTCOMES)
