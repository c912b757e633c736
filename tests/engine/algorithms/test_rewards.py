import math

import numpy as np
import pytest
from ralign.engine.algorithms.rewards import check_failures, score
from ralign.engine.judging.metarm import Outcome
from ralign.engine.runtime.errors import UserError

VERDICTS = ["A", "A", "A", "A", "B", None, None]
LABELS = ["A", "A", "A", "A", "A", "A", "B"]
SKIP = Outcome.SKIPPED
OUTCOMES = [Outcome.CORRECT, Outcome.INCORRECT, Outcome.CALL_FAIL, Outcome.PARSE_FAIL, SKIP, SKIP, SKIP]


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


def test_r_align_needs_outcomes_and_the_kind_must_be_known():
    with pytest.raises(UserError, match="MetaRM"):
        score("r_align", VERDICTS, LABELS)
    with pytest.raises(UserError, match="'accuracy'"):
        score("accuracy", VERDICTS, LABELS)


def test_with_both_orders_a_sample_is_paid_only_if_its_partner_earns_the_same():
    # Couples (0, 1), (2, 3), ...: right twice, right once, right but spurious once, unread once, wrong twice.
    verdicts = ["A", "B", "A", "A", "A", "B", "A", None, "B", "A"]
    labels = ["A", "B"] * 5
    outcomes = [Outcome.CORRECT, Outcome.CORRECT, Outcome.CORRECT, SKIP, Outcome.CORRECT, Outcome.INCORRECT]
    outcomes += [Outcome.CORRECT, SKIP, SKIP, SKIP]
    partners = [n ^ 1 for n in range(10)]
    aligned = score("r_align", verdicts, labels, outcomes, partners=partners, invalid_reward=-1.0)
    assert aligned.values.tolist() == [1, 1, 0, 0, 0, 0, 0, -1, 0, 0]
    label = score("label", verdicts, labels, outcomes, partners=partners)
    assert label.values.tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 0, 0]
    assert aligned.valid.all() and label.valid.all()
    assert aligned.swap_consistency == pytest.approx(6 / 10)
    assert aligned.num_label_correct == 6  # counts stay those of single samples


@pytest.mark.parametrize(
    ("own", "other", "value", "valid"),
    [
        (Outcome.CALL_FAIL, Outcome.CORRECT, 0, False),
        (Outcome.CORRECT, Outcome.CALL_FAIL, 0, False),
        (Outcome.CALL_FAIL, Outcome.PARSE_FAIL, 0, False),
        (
            Outcome.CALL_FAIL,
            Outcome.INCORRECT,
            0,
            True,
        ),  # nothing to earn, whatever the judge would have said
        (Outcome.INCORRECT, Outcome.CALL_FAIL, 0, True),
    ],
)
def test_with_both_orders_a_failed_judge_masks_what_hangs_on_it(own, other, value, valid):
    rewards = score("r_align", ["A", "B"], ["A", "B"], [own, other], partners=[1, 0])
    assert rewards.values[0] == value and rewards.valid[0] == valid


def test_a_judge_that_fails_too_often_ends_the_run():
    def rewards(num_failed, num_good):
        outcomes = [Outcome.CALL_FAIL] * num_failed + [Outcome.CORRECT] * num_good
        return score("r_align", ["A"] * len(outcomes), ["A"] * len(outcomes), outcomes)

    check_failures(rewards(5, 5), 0.5)
    check_failures(rewards(7, 0), 0.5)  # too few to tell
    with pytest.raises(UserError, match="6 of the 10 samples .* judge.max_failed_share=0.5"):
        check_failures(rewards(6, 4), 0.5)
