"""Reviews of a batch, by a MetaRM of a user's own."""

from types import SimpleNamespace

import pytest
from ralign.engine.config.judge import MetaRMConfig
from ralign.engine.config.registry import METARMS
from ralign.engine.data.pairs import Pair
from ralign.engine.judging.judge import ClientContext, Judge, JudgeStopped, Reply, Usage
from ralign.engine.judging.lm_metarm import LanguageMetaRM
from ralign.engine.judging.metarm import Outcome
from ralign.engine.judging.reviews import Reviews
from ralign.engine.runtime.errors import UserError

ONE_RANK = SimpleNamespace(makes_requests=True, ask_once=lambda ask: ask())
TEXTS = [r"It names the sum. \boxed{A}", r"It is neat. \boxed{A}", r"The sum! \boxed{B}", "no verdict"]

MINE = r"""
from ralign.engine.judging.metarm import Outcome, RuleBased
from ralign.engine.judging.metarms import MetaRMKind

class NamesTheSum(RuleBased):
    def outcome(self, golden, judgment):
        return Outcome.CORRECT if "sum" in judgment else Outcome.INCORRECT

SUM = MetaRMKind(open=lambda config, context: NamesTheSum())
NOT_A_KIND = NamesTheSum
"""


def make_pair() -> Pair:
    turns = [{"role": "user", "content": "1 + 1?"}]
    return Pair(
        id="p",
        source="s",
        conversations=turns,
        response_A="2",
        response_B="3",
        gt_label="A",
        gt_judgment=r"The sum is 2. \boxed{A}",
    )


@pytest.fixture
def my_file(tmp_path):
    path = tmp_path / "metarm_of_mine.py"
    path.write_text(MINE)
    return path


def test_a_metarm_from_a_file_reviews_the_right_verdicts(my_file):
    config = MetaRMConfig(kind=f"{my_file}:SUM")
    kind = METARMS.load(config.kind)
    kind.check(config)
    reviews = Reviews(kind.open(config, ClientContext()), ONE_RANK)
    for index, text in enumerate(TEXTS):
        reviews.add(index, make_pair(), text)
    assert reviews.outcomes(4) == [Outcome.CORRECT, Outcome.INCORRECT, Outcome.SKIPPED, Outcome.SKIPPED]


def test_what_is_not_a_kind_is_refused_by_name(my_file):
    with pytest.raises(UserError, match=r"metarm.kind=.*:NOT_A_KIND: expected a MetaRMKind"):
        METARMS.load(f"{my_file}:NOT_A_KIND")
    with pytest.raises(UserError, match=r"metarm.kind=rules: expected one of .*rule.*, or FILE.py:NAME"):
        METARMS.load("rules")


def test_without_a_metarm_every_outcome_is_skipped():
    assert METARMS.load("none").open(MetaRMConfig(kind="none"), ClientContext()) is None
    reviews = Reviews(None, SimpleNamespace())  # nothing is exchanged either
    reviews.add(0, make_pair(), TEXTS[0])
    assert reviews.outcomes(1) == [Outcome.SKIPPED]


class Silent(Judge):
    """A judge that fails the test when it gets a request."""

    stop_reason = None

    def __init__(self):
        self.usage = Usage()

    def submit(self, request) -> Reply:
        raise AssertionError(request)


def test_only_the_rank_that_makes_requests_makes_some():
    reviews = Reviews(
        LanguageMetaRM(Silent(), "{golden} {judgment}"),
        SimpleNamespace(makes_requests=False, ask_once=lambda ask: {0: Outcome.CORRECT}),
    )
    reviews.add(0, make_pair(), TEXTS[0])
    assert reviews.outcomes(2) == [Outcome.CORRECT, Outcome.SKIPPED]


def test_a_stopped_judge_ends_the_step():
    judge = Silent()
    judge.stop_reason = "the budget of 5 tokens is spent"
    reviews = Reviews(LanguageMetaRM(judge, "{golden} {judgment}"), ONE_RANK)
    with pytest.raises(JudgeStopped, match="budget of 5"):
        reviews.outcomes(1)
