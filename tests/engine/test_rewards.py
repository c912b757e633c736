import math

import numpy as np
import pytest
from ralign.engine.errors import UserError
from ralign.engine.judging.metarm import Outcome
from ralign.engine.rewards import ask_metarm, score

VERDICTS = ["A", "A", "A", "A", "B", None, None]
LABELS = ["A", "A", "A", "A", "A", "A", "B"]
SKIP = Outcome.SKIPPED
OUTCOMES = [Outcome.CORRECT, Outcome.INCORRECT, Outcome.CALL_FAIL, Outcome.PARSE_FAIL, SKIP, SKIP, SKIP]


class CountingMetaRM:
    """Calls everything Correct and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def judge_batch(self, goldens, judgments):
        self.asked += list(zip(goldens, judgments, strict=True))
        return [Outcome.CORRECT] * len(goldens)


def test_label_pays_for_the_verdict_alone():
    rewards = score("label", VERDICTS, LABELS, OUTCOMES)
    np.testing.assert_array_equal(rewards.values, np.float32([1, 1, 1, 1, 0, 0, 0]))
    assert rewards.values.dtype == np.float32 and rewards.valid.all()
    without = score("label", VERDICTS, LABELS)
    np.testing.assert_array_equal(without.values, rewards.values)
    assert math.isnan(without.s_corr)


def test_r_align_pays_for_a_right_verdict_with_the_right_reason_and_masks_failures():
    rewards = score("r_align", VERDICTS, LABELS, OUTCOMES)
    np.testing.assert_array_equal(rewards.values, np.float32([1, 0, 0, 0, 0, 0, 0]))
    np.testing.assert_array_equal(rewards.valid, [True, True, False, False, True, True, True])


@pytest.mark.parametrize("kind", ["label", "r_align"])
def test_an_unreadable_verdict_has_a_reward_of_its_own(kind):
    rewards = score(kind, VERDICTS, LABELS, OUTCOMES, invalid_reward=-0.5)
    np.testing.assert_array_equal(rewards.values[5:], np.float32([-0.5, -0.5]))
    assert rewards.valid[5:].all()


@pytest.mark.parametrize("kind", ["label", "r_align"])
def test_counts_and_metrics_follow_the_released_definitions(kind):
    rewards = score(kind, VERDICTS, LABELS, OUTCOMES)
    assert (rewards.num_samples, rewards.num_invalid, rewards.num_judge_failed) == (7, 2, 2)
    assert (rewards.num_label_correct, rewards.num_aligned, rewards.num_spurious) == (4, 1, 1)
    assert rewards.l_acc == 4 / 7 and rewards.s_corr == 1 / 2 and rewards.f_score == 1 / 5


def test_the_metarm_is_asked_about_label_correct_samples_only():
    metarm = CountingMetaRM()
    judgments, goldens = [f"j{n}" for n in range(7)], [f"g{n}" for n in range(7)]
    outcomes = ask_metarm(metarm, judgments, goldens, VERDICTS, LABELS)
    assert metarm.asked == [(f"g{n}", f"j{n}") for n in range(4)]
    assert outcomes == [Outcome.CORRECT] * 4 + [Outcome.SKIPPED] * 3


def test_r_align_needs_outcomes_and_the_kind_must_be_known():
    with pytest.raises(UserError, match="MetaRM"):
        score("r_align", VERDICTS, LABELS)
    with pytest.raises(UserError, match="'accuracy'"):
        score("accuracy", VERDICTS, LABELS)
