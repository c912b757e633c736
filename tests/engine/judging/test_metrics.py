import json

import numpy as np
import pytest
from ralign.engine.judging.intervals import wilson
from ralign.engine.judging.metarm import Outcome
from ralign.engine.judging.metrics import measure, prompt_key
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


def test_outcomes_may_be_members_or_names():
    verdicts, labels, names = _columns(_MIX)
    assert measure(verdicts, labels, names) == measure(verdicts, labels, [Outcome(name) for name in names])


def test_without_prompts_each_metric_has_wilson_s_interval_for_its_own_denominator():
    result = measure(*_columns(_MIX))
    for name, share, num in (("l_acc", 0.7, 100), ("s_corr", 20 / 60, 60), ("f_score", 40 / 90, 90)):
        expected = dict(zip(("low", "high"), wilson(share, num), strict=True))
        assert result[name] == pytest.approx({"value": share, **expected})


def test_pairs_of_one_prompt_count_as_one_where_their_results_are_the_same():
    rows = [(row, f"prompt {n}") for n, row in enumerate(zip(*_columns(_MIX), strict=True))]
    columns = zip(*(row for row, _ in rows for _ in range(3)), strict=True)
    prompts = [prompt for _, prompt in rows for _ in range(3)]
    verdicts, labels, outcomes = map(list, columns)
    single, tripled = measure(*_columns(_MIX)), measure(verdicts, labels, outcomes, clusters=prompts)
    naive = measure(verdicts, labels, outcomes)
    for name in ("l_acc", "s_corr", "f_score"):
        width, once, thrice = (found[name]["high"] - found[name]["low"] for found in (naive, single, tripled))
        assert thrice == pytest.approx(once, rel=0.01)
        assert thrice / width == pytest.approx(3**0.5, rel=0.02)


def test_the_order_of_the_pairs_does_not_matter():
    rows = list(zip(*_columns(_MIX), strict=True))
    prompts = [f"prompt {n // 4}" for n in range(len(rows))]
    order = np.random.default_rng(0).permutation(len(rows))
    mixed = map(list, zip(*(rows[n] for n in order), strict=True))
    again = measure(*mixed, clusters=[prompts[n] for n in order])
    expected = measure(*_columns(_MIX), clusters=prompts)
    for name in ("l_acc", "s_corr", "f_score"):
        assert again[name] == pytest.approx(expected[name])


def test_a_prompt_s_key_is_its_id_or_its_turns():
    turns = [{"role": "user", "content": "Why?"}]
    key = prompt_key("p1", turns, {})
    assert key == prompt_key("p2", [{"content": "Why?", "role": "user", "weight": 1}], None)
    earlier = [{"role": "user", "content": "Hello."}, *turns]
    assert (
        len(
            {
                key,
                prompt_key("p1", earlier, {}),
                prompt_key("p1", [{"role": "system", "content": "Why?"}], {}),
            }
        )
        == 3
    )
    of_id = prompt_key("p1", turns, {"prompt_id": 0})
    assert of_id == prompt_key("p2", earlier, {"prompt_id": 0}) != key
    assert prompt_key("p1", None, None) != prompt_key("p2", [], {"other": 1})
    surrogate = [{"role": "user", "content": "\ud800"}]
    assert prompt_key("p1", surrogate, {}) != key


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


def test_prompts_of_another_number_are_refused():
    with pytest.raises(UserError, match="1 prompts for 2 pairs"):
        measure(["A", "A"], ["A", "A"], ["Correct"] * 2, clusters=["x"])
