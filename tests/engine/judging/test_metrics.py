import json

import numpy as np
import pytest
from ralign.engine.judging.metarm import Outcome
from ralign.engine.judging.metrics import measure
from ralign.engine.runtime.errors import UserError

# (verdict, label, outcome) -> how many
_MIX = {
    ("A", "A", "Correct"): 40,
    ("B", "B", "Incorrect"): 20,
    ("A", "B", "SkippedLabelMismatch"): 25,
    (None, "A", "SkippedLabelMismatch"): 5,
    ("B", "B", "CallFail"): 4,
    ("A", "A", "ParseFail"): 6,
}


def _columns(mix):
    rows = [row for row, count in mix.items() for _ in range(count)]
    return tuple(map(list, zip(*rows, strict=True)))


def test_the_three_metrics_and_the_counts():
    result = measure(*_columns(_MIX))
    assert result["num_pairs"] == 100
    assert result["l_acc"]["value"] == pytest.approx(
        0.70
    )  # failures of the judge do not unmake a right verdict
    assert result["s_corr"]["value"] == pytest.approx(20 / 60)
    assert result["f_score"]["value"] == pytest.approx(40 / 90)
    assert (result["num_parse_fail"], result["num_judge_fail"]) == (5, 10)
    assert result["swap_consistency"] is None
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_without_failures_f_score_is_l_acc_times_one_minus_s_corr():
    mix = {row: count for row, count in _MIX.items() if "Fail" not in row[2]}
    result = measure(*_columns(mix))
    l_acc, s_corr, f_score = (result[name]["value"] for name in ("l_acc", "s_corr", "f_score"))
    assert f_score == pytest.approx(l_acc * (1 - s_corr))


def test_intervals_are_those_of_resampled_pairs():
    verdicts, labels, outcomes = _columns(_MIX)
    result = measure(verdicts, labels, outcomes, num_bootstrap=4000)
    outcomes = np.array(outcomes)
    draws = np.random.default_rng(1).integers(len(labels), size=(4000, len(labels)))
    drawn = outcomes[draws]
    correct, incorrect = (drawn == "Correct").sum(1), (drawn == "Incorrect").sum(1)
    failed = np.isin(drawn, ["CallFail", "ParseFail"]).sum(1)
    expected = {
        "l_acc": (correct + incorrect + failed) / 100,
        "s_corr": incorrect / (correct + incorrect),
        "f_score": correct / (100 - failed),
    }
    for name, values in expected.items():
        low, high = np.percentile(values, [2.5, 97.5])
        assert result[name]["low"] == pytest.approx(low, abs=0.015)
        assert result[name]["high"] == pytest.approx(high, abs=0.015)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        correct = rng.random(200) < 0.6
        columns = _columns({("A", "A", "Correct"): 1, ("B", "A", "SkippedLabelMismatch"): 1})
        verdicts, labels, outcomes = ([column[0 if right else 1] for right in correct] for column in columns)
        l_acc = measure(verdicts, labels, outcomes, num_bootstrap=500, seed=seed)["l_acc"]
        hits += l_acc["low"] <= 0.6 <= l_acc["high"]
    assert 0.90 <= hits / 200 <= 0.99


def test_outcomes_may_be_members_or_names_and_the_seed_fixes_the_result():
    verdicts, labels, names = _columns(_MIX)
    members = [Outcome(name) for name in names]
    assert measure(verdicts, labels, names, seed=3) == measure(verdicts, labels, members, seed=3)
    assert measure(verdicts, labels, names, seed=3) != measure(verdicts, labels, names, seed=4)


def test_a_metric_without_a_denominator_is_null():
    result = measure(["B", None], ["A", "A"], [Outcome.SKIPPED] * 2)
    assert result["l_acc"]["value"] == result["f_score"]["value"] == 0
    assert result["s_corr"] == {"value": None, "low": None, "high": None}
    assert measure(["A"], ["A"], [Outcome.CALL_FAIL])["f_score"]["value"] is None


def test_swap_consistency_counts_the_same_response_chosen_twice():
    outcomes = [Outcome.CORRECT, Outcome.CORRECT, Outcome.CORRECT, Outcome.SKIPPED]
    verdicts, labels = ["A", "B", "A", None], ["A", "B", "A", "A"]
    result = measure(verdicts, labels, outcomes, swapped_verdicts=["B", "A", "A", None])
    assert result["swap_consistency"]["value"] == pytest.approx(0.5)
    always_first = measure(verdicts[:3], ["A", "B", "A"], outcomes[:3], swapped_verdicts=["A", "B", "A"])
    assert always_first["swap_consistency"]["value"] == 0


def test_both_order_l_acc_counts_what_is_right_twice():
    verdicts, labels = ["A", "A", "B", "B", None], ["A", "A", "B", "A", "A"]
    outcomes = ["Correct", "Correct", "Incorrect", "SkippedLabelMismatch", "SkippedLabelMismatch"]
    swapped = ["B", "A", "A", "A", "B"]  # right again, held to the place, right again, wrong again, right
    result = measure(verdicts, labels, outcomes, swapped_verdicts=swapped)
    assert result["l_acc"]["value"] == 3 / 5
    assert result["both_order_l_acc"]["value"] == 2 / 5
    assert result["swap_consistency"]["value"] == 3 / 5
    assert result["both_order_l_acc"]["low"] <= 2 / 5 <= result["both_order_l_acc"]["high"]
    assert "both_order_l_acc" not in measure(verdicts, labels, outcomes)


@pytest.mark.parametrize(
    ("verdicts", "labels", "outcomes", "said"),
    [
        (["A"], ["A"], ["Perfect"], "Perfect"),
        (["A"], ["B"], ["Correct"], "pair 0: outcome Correct"),
        (["A"], ["A"], ["SkippedLabelMismatch"], "SkippedLabelMismatch"),
        (["C"], ["A"], ["SkippedLabelMismatch"], "'C'"),
        (["A", "A"], ["A"], ["Correct"], "2 verdicts"),
        ([], [], [], "no pairs"),
    ],
)
def test_what_contradicts_itself_is_refused(verdicts, labels, outcomes, said):
    with pytest.raises(UserError, match=said):
        measure(verdicts, labels, outcomes)


def test_swapped_verdicts_of_another_length_are_refused():
    with pytest.raises(UserError, match="1 swapped verdicts for 2 pairs"):
        measure(["A", "A"], ["A", "A"], ["Correct"] * 2, swapped_verdicts=["A"])
