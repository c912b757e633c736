"""The rules among the MetaRMs."""

from dataclasses import replace

import pytest
from ralign.engine.data.worlds.judgeworld import (
    JudgeWorldConfig,
    build_judgeworld,
    decisive_factor,
    oracle_judge,
)
from ralign.engine.judging.metarm import KeywordMetaRM, Outcome, RuleMetaRM, decisive_factors
from ralign.engine.runtime.errors import UserError

GOLDEN = r"Facts: pet fox A dog B fox differs. A is wrong: pet should be fox. \boxed{B}"


@pytest.mark.parametrize(
    ("judgment", "outcome"),
    [
        (GOLDEN, Outcome.CORRECT),
        ("A is wrong: pet should be fox. \\boxed{B}", Outcome.CORRECT),
        ("Yes: A is wrong: pet should be fox. Again, A is wrong: pet should be fox.", Outcome.CORRECT),
        ("B is wrong: pet should be fox. \\boxed{B}", Outcome.INCORRECT),
        ("A is wrong: town should be fox. \\boxed{B}", Outcome.INCORRECT),
        ("A is wrong: pet should be hen. \\boxed{B}", Outcome.INCORRECT),
        ("A is wrong: pet should be foxes. \\boxed{B}", Outcome.INCORRECT),
        ("A is wrong: pet should be fox. A is wrong: day should be May.", Outcome.INCORRECT),
        ("A is wrong: pet should be fox. </think> B is neat. \\boxed{B}", Outcome.INCORRECT),
        ("B is neat and clear. \\boxed{B}", Outcome.INCORRECT),
        ("A is wrong. \\boxed{B}", Outcome.INCORRECT),
        ("", Outcome.INCORRECT),
    ],
)
def test_correct_only_if_the_decisive_factor_and_no_other_is_named(judgment, outcome):
    assert RuleMetaRM().outcome(GOLDEN, judgment) is outcome


def test_thinking_in_the_golden_judgment_is_not_its_reason():
    golden = "B is wrong: day should be May. </think> " + GOLDEN
    assert RuleMetaRM().outcome(golden, GOLDEN) is Outcome.CORRECT


def test_of_several_decisive_factors_all_are_to_be_named():
    both = f"{decisive_factor('B', 'day', 'May')} {decisive_factor('A', 'pet', 'dog')}"
    reordered = f"{decisive_factor('A', 'pet', 'dog')} {decisive_factor('B', 'day', 'May')}"
    rule = RuleMetaRM()
    assert rule.outcome(both, reordered) is Outcome.CORRECT
    assert rule.outcome(both, decisive_factor("B", "day", "May")) is Outcome.INCORRECT
    assert rule.outcome(both, f"{both} {decisive_factor('B', 'tool', 'saw')}") is Outcome.INCORRECT


def test_a_golden_judgment_without_a_decisive_factor_is_refused():
    with pytest.raises(UserError, match="a decisive factor"):
        RuleMetaRM().outcome("A is better: it is true.", GOLDEN)


def test_a_review_holds_the_outcome_or_the_error():
    pairs = build_judgeworld(JudgeWorldConfig(num_train=3, num_dev=1, num_test=1))["train"][:2]
    rule = RuleMetaRM()
    reviews = [rule.review(pairs[0], text).result() for text in (oracle_judge(pairs[0]), "nothing")]
    assert [review.outcome for review in reviews] == [Outcome.CORRECT, Outcome.INCORRECT]
    failed = rule.review(replace(pairs[1], gt_judgment="A is better."), "nothing")
    with pytest.raises(UserError, match="a decisive factor"):
        failed.result()


def test_a_rule_has_no_judge_behind_it():
    rule = RuleMetaRM()
    assert rule.judge is None and rule.stop_reason is None and rule.state_dict() is None
    with rule.awake():
        rule.load_state_dict(None)
    rule.close()


def test_the_keyword_baseline_looks_for_the_words_in_quotes():
    metarm = KeywordMetaRM()
    golden = 'B has an incorrect claim about "Sunflower  seeds". Correct fact: sesame.'
    for text, outcome in (
        ("B is wrong on sunflower-seeds", Outcome.CORRECT),
        ("<think>sunflower seeds</think> B is vague", Outcome.INCORRECT),
        ("seeds of the sunflower", Outcome.INCORRECT),
        ("sunflower seedset", Outcome.INCORRECT),
    ):
        assert metarm.outcome(golden, text) is outcome, text
    with pytest.raises(UserError, match="quotes the error's words"):
        metarm.outcome("B is wrong", "x")


def test_the_written_factor_is_the_one_read():
    assert decisive_factors(decisive_factor("B", "day", "May")) == {("B", "day", "May")}
