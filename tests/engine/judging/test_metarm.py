import pytest
from ralign.engine.data.worlds.judgeworld import (
    JudgeWorldConfig,
    build_judgeworld,
    decisive_factor,
    oracle_judge,
)
from ralign.engine.judging.metarm import Outcome, RuleMetaRM, decisive_factors
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
    assert RuleMetaRM().judge(GOLDEN, judgment) is outcome


def test_thinking_in_the_golden_judgment_is_not_its_reason():
    golden = "B is wrong: day should be May. </think> " + GOLDEN
    assert RuleMetaRM().judge(golden, GOLDEN) is Outcome.CORRECT


def test_of_several_decisive_factors_all_are_to_be_named():
    both = f"{decisive_factor('B', 'day', 'May')} {decisive_factor('A', 'pet', 'dog')}"
    reordered = f"{decisive_factor('A', 'pet', 'dog')} {decisive_factor('B', 'day', 'May')}"
    rule = RuleMetaRM()
    assert rule.judge(both, reordered) is Outcome.CORRECT
    assert rule.judge(both, decisive_factor("B", "day", "May")) is Outcome.INCORRECT
    assert rule.judge(both, f"{both} {decisive_factor('B', 'tool', 'saw')}") is Outcome.INCORRECT


def test_a_golden_judgment_without_a_decisive_factor_is_refused():
    with pytest.raises(UserError, match="a decisive factor"):
        RuleMetaRM().judge("A is better: it is true.", GOLDEN)


def test_a_batch_is_judged_in_order():
    pairs = build_judgeworld(JudgeWorldConfig(num_train=3, num_dev=1, num_test=1))["train"][:3]
    judgments = [oracle_judge(pairs[0]), "nothing", oracle_judge(pairs[2])]
    expected = [Outcome.CORRECT, Outcome.INCORRECT, Outcome.CORRECT]
    rule = RuleMetaRM()
    assert rule.judge_batch(pairs, judgments) == expected
    assert [rule.submit(*asked).result() for asked in zip(pairs, judgments, strict=True)] == expected


def test_the_written_factor_is_the_one_read():
    assert decisive_factors(decisive_factor("B", "day", "May")) == {("B", "day", "May")}
