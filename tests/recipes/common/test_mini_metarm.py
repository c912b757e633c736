"""JudgeWorld for MetaRMs: audits agree with the rule, and every kind of judgment occurs."""

from collections import Counter

import pytest
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld
from ralign.engine.judging.judge import Reply
from ralign.engine.judging.lm_metarm import parse_review
from ralign.engine.judging.metarm import Outcome, RuleMetaRM, factor_sentences
from ralign.engine.runtime.errors import UserError
from ralign.recipes.common.mini_metarm import MAX_FACTORS, make_cases

PAIRS = build_judgeworld(JudgeWorldConfig(num_train=400, num_warm_start=10, num_dev=1, num_test=1))["train"]
CASES = make_cases(PAIRS, num_per_pair=2, seed=0)


def test_outcome_and_answer_of_every_case_are_the_rule_s():
    for case in CASES:
        assert RuleMetaRM().outcome(case.pair.gt_judgment, case.judgment) is case.outcome
        assert parse_review(Reply(text=case.answer)).outcome is case.outcome


def test_an_audit_of_one_factor_agrees_with_its_own_marks():
    for case in CASES:
        factors = factor_sentences(case.judgment)
        marks = case.answer.count(" same"), case.answer.count(" other")
        assert sum(marks) == 3 * min(len(factors), MAX_FACTORS)
        assert (case.outcome is Outcome.CORRECT) == (bool(factors) and marks[1] == 0)


def test_cases_are_of_all_kinds_and_balanced():
    outcomes = Counter(case.outcome for case in CASES)
    assert 0.4 < outcomes[Outcome.CORRECT] / len(CASES) < 0.6
    num_factors = Counter(len(factor_sentences(case.judgment)) for case in CASES)
    assert set(num_factors) == {0, 1, 2}
    wrong = [case for case in CASES if case.outcome is Outcome.INCORRECT and factor_sentences(case.judgment)]
    for place in range(3):  # each of side, item and value is the only thing wrong somewhere
        assert any(
            [
                a == b
                for a, b in zip(
                    *factor_sentences(case.pair.gt_judgment), *factor_sentences(case.judgment), strict=True
                )
            ]
            == [n != place for n in range(3)]
            for case in wrong
            if len(factor_sentences(case.judgment)) == 1
        )


def test_the_same_seed_gives_the_same_cases():
    assert make_cases(PAIRS, seed=3) == make_cases(PAIRS, seed=3) != make_cases(PAIRS, seed=4)


def test_pairs_with_several_decisive_factors_are_refused():
    world = build_judgeworld(
        JudgeWorldConfig(num_train=20, num_warm_start=1, num_dev=1, num_test=1, max_faults=3)
    )
    with pytest.raises(UserError, match="max_faults must be 1"):
        make_cases(world["train"], seed=0)
