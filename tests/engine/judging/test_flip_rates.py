"""Flip rates and the worst group: who follows the cue, who reads, and who tosses a coin."""

import random

import pytest
from ralign.engine.config.registry import TWINS
from ralign.engine.data.pairs import other_side
from ralign.engine.data.twins import own_side
from ralign.engine.data.worlds.config import JudgeWorldConfig
from ralign.engine.data.worlds.judgeworld import build_judgeworld
from ralign.engine.judging.intervals import wilson
from ralign.engine.judging.metrics import flip_rates, measure
from ralign.engine.runtime.errors import UserError

NUM_PAIRS = 400
WORLD = build_judgeworld(JudgeWorldConfig(num_train=1, num_warm_start=1, num_dev=1, num_test=NUM_PAIRS))
COIN = random.Random(0)

JUDGES = {
    "cue": lambda pair: pair.meta["cue_side"],
    "oracle": lambda pair: pair.gt_label,
    "first": lambda pair: "A",
    "coin": lambda pair: COIN.choice("AB"),
}


def _flips(judge, kind_name):
    kind, pairs = TWINS.load(kind_name), WORLD["unbiased"]
    twins = [{kind_name: own_side(kind, judge(kind.make(pair)))} for pair in pairs]
    return flip_rates([judge(pair) for pair in pairs], twins)[kind_name]


@pytest.mark.parametrize(
    ("judge", "kind", "share"),
    [("cue", "cues", 1), ("oracle", "cues", 0), ("first", "cues", 0), ("coin", "cues", 0.5)]
    + [("cue", "order", 0), ("oracle", "order", 0), ("first", "order", 1), ("coin", "order", 0.5)],
)
def test_a_verdict_flips_with_what_it_follows(judge, kind, share):
    found = _flips(JUDGES[judge], kind)
    assert found["num_pairs"] == NUM_PAIRS and found["num_without_verdict"] == found["num_without_twin"] == 0
    if share in (0, 1):
        assert found["value"] == share
        assert (found["low"], found["high"]) == wilson(share, NUM_PAIRS)
    else:
        assert found["value"] == pytest.approx(share, abs=4 * 0.5 / NUM_PAIRS**0.5)  # four standard errors


def test_pairs_without_a_verdict_or_a_twin_are_counted_and_do_not_flip():
    verdicts = ["A", "A", "B", None, None, "A", "B"]
    twins = [{"x": "A"}, {"x": "B"}, {"x": None}, {"x": "A"}, {"x": None}, {}, {"y": "B"}]
    found = flip_rates(verdicts, twins)
    assert list(found) == ["x", "y"] and found["x"]["value"] == 1 / 2 and found["y"]["value"] == 0
    counts = [
        [found[kind][f"num_{name}"] for kind in "xy"] for name in ("pairs", "without_verdict", "without_twin")
    ]
    assert counts == [[2, 1], [3, 0], [2, 6]]


def test_without_a_verdict_on_both_twins_there_is_no_rate():
    found = flip_rates([None, "A"], [{"x": "A"}, {"x": None}])["x"]
    assert found["value"] is found["low"] is found["high"] is None and found["num_without_verdict"] == 2
    assert flip_rates(["A"], [{}]) == {}


def test_pairs_of_a_prompt_widen_the_interval():
    verdicts, twins = ["A"] * 60, [{"x": "B"}] * 30 + [{"x": "A"}] * 30
    alone = flip_rates(verdicts, twins)["x"]
    shared = flip_rates(verdicts, twins, clusters=[f"p{n // 3}" for n in range(60)])["x"]
    assert shared["value"] == alone["value"] == 0.5
    assert shared["high"] - shared["low"] > 1.5 * (alone["high"] - alone["low"])  # of 20 prompts: 1.7 times


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(UserError, match="2 verdicts and 1 pairs with twins"):
        flip_rates(["A", "B"], [{}])


@pytest.mark.parametrize(("judge", "worst"), [("cue", 0), ("oracle", 1)])
def test_the_worst_group_is_the_pairs_whose_cue_misleads(judge, worst):
    pairs = WORLD["in_distribution"]
    labels, sides = [pair.gt_label for pair in pairs], [pair.meta["cue_side"] for pair in pairs]
    verdicts = [JUDGES[judge](pair) for pair in pairs]
    outcomes = [
        "Correct" if v == label else "SkippedLabelMismatch" for v, label in zip(verdicts, labels, strict=True)
    ]
    result = measure(verdicts, labels, outcomes, cue_sides=sides)
    assert (
        result["num_worst_group"] == sum(side != label for side, label in zip(sides, labels, strict=True)) > 0
    )
    assert result["worst_group_l_acc"]["value"] == worst
    assert judge == "oracle" or result["l_acc"]["value"] == pytest.approx(0.95)  # which hides it


def test_without_a_cue_there_is_no_worst_group_and_without_a_misleading_one_no_figure():
    verdicts = labels = ["A", "B"]
    assert "worst_group_l_acc" not in measure(verdicts, labels, ["Correct"] * 2, cue_sides=[None, None])
    found = measure(verdicts, labels, ["Correct"] * 2, cue_sides=["A", None])
    assert found["num_worst_group"] == 0 and found["worst_group_l_acc"]["value"] is None
    with pytest.raises(UserError, match="1 cues for 2 pairs"):
        measure(verdicts, labels, ["Correct"] * 2, cue_sides=["A"])


def test_wrong_sides_count_against_the_worst_group():
    """No verdict is no right verdict; a pair whose cue points to the label is not in the group."""
    labels, sides = ["A"] * 4, ["B", "B", "A", None]
    verdicts = ["A", None, other_side("A"), "A"]
    outcomes = ["Correct", "SkippedLabelMismatch", "SkippedLabelMismatch", "Correct"]
    found = measure(verdicts, labels, outcomes, cue_sides=sides)
    assert found["worst_group_l_acc"]["value"] == 1 / 2 and found["num_worst_group"] == 2
