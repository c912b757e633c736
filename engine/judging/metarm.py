"""MetaRMs: does a rationale rest on the reasons of the golden judgment?

A MetaRM gives one `Review` for each judgment. Two rules are here: `RuleMetaRM`, exact for JudgeWorld, and
`KeywordMetaRM`, a baseline. `lm_metarm` has language models. To add a MetaRM, subclass `MetaRM` (or `RuleBased`) and
make a `metarms.MetaRMKind` of it.
"""

import re
from abc import ABC, abstractmethod
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from ralign.engine.data.pairs import Pair, Side
from ralign.engine.data.verdicts import visible
from ralign.engine.judging.judge import Judge
from ralign.engine.judging.second_edition_rule import audit, factors_of
from ralign.engine.runtime.errors import UserError


class Outcome(Enum):
    """The result of one review; the values are the `metarm_verdict` names of the released evaluator."""

    CORRECT = "Correct"  # the rationale names the golden judgment's decisive factors
    INCORRECT = "Incorrect"  # it names other factors, or none
    PARSE_FAIL = "ParseFail"  # the MetaRM's answer does not have the required form
    CALL_FAIL = "CallFail"  # the call to the MetaRM failed
    SKIPPED = "SkippedLabelMismatch"  # the verdict is wrong or missing, so there was no review

    @property
    def failed(self) -> bool:
        """The MetaRM gave no usable answer."""
        return self in (Outcome.PARSE_FAIL, Outcome.CALL_FAIL)


@dataclass(kw_only=True, slots=True, frozen=True)
class Review:
    """A MetaRM's result for one judgment.

    Attributes:
        outcome: never `SKIPPED`.
        raw: the whole answer of a language model. analysis: its part between the analysis tags.
        coverage: share of golden points that the rationale covers (graded mode only).
        error: why there is no verdict, for failed outcomes.
    """

    outcome: Outcome
    raw: str = ""
    analysis: str = ""
    coverage: float | None = None
    error: str = ""


class MetaRM(ABC):
    """Compares rationales with golden judgments."""

    judge: Judge | None = None
    """The language model behind the MetaRM; None for a rule."""

    @abstractmethod
    def review(self, pair: Pair, judgment: str) -> Future[Review]:
        """Review one judgment of `pair` without waiting for the result.

        `judgment` and `pair.gt_judgment` are whole texts, thinking included. The future raises UserError for a pair
        that this MetaRM cannot review.
        """

    @property
    def stop_reason(self) -> str | None:
        """Why all further reviews fail, or None."""
        return None if self.judge is None else self.judge.stop_reason

    def awake(self) -> AbstractContextManager[None]:
        """A context to hold open while reviews are under way; see `Judge.awake`."""
        return nullcontext() if self.judge is None else self.judge.awake()

    def close(self) -> None:
        """Free all resources. Collective where opening was."""
        if self.judge is not None:
            self.judge.close()

    def state_dict(self) -> dict[str, Any] | None:
        """Plain values for a checkpoint, from a MetaRM whose reviews depend on earlier ones; None for any other."""
        return None

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continue from `state_dict`'s values."""
        assert state is None, "a MetaRM with a state must be able to load it"


class RuleBased(MetaRM):
    """A MetaRM that decides from the two texts alone, at once."""

    @abstractmethod
    def outcome(self, golden: str, judgment: str) -> Outcome:
        """`CORRECT` or `INCORRECT`. UserError for a golden judgment that the rule cannot read."""

    def review(self, pair: Pair, judgment: str) -> Future[Review]:
        future: Future[Review] = Future()
        try:
            future.set_result(Review(outcome=self.outcome(pair.gt_judgment, judgment)))
        except UserError as error:
            future.set_exception(error)
        return future


class DecisiveFactor(NamedTuple):
    """The fault that decides a JudgeWorld pair."""

    side: Side  # the response with the fault
    item: str
    should_be: str  # the item's true value


_FACTOR = re.compile(r"\b([AB]) is wrong: (\w+) should be (\w+)")


def decisive_factors(text: str) -> set[DecisiveFactor]:
    """The decisive factors in a text, each in the words of `judgeworld.decisive_factor`."""
    return set(factor_sentences(text))


def factor_sentences(text: str) -> list[DecisiveFactor]:
    """The same in the order of the text, with repetitions."""
    return [DecisiveFactor(*found) for found in _FACTOR.findall(text)]


class RuleMetaRM(RuleBased):
    """JudgeWorld's MetaRM: Correct if the rationale names exactly the decisive factors of the golden judgment.

    It reads visible text only: a factor before ``</think>`` does not count. Any other factor makes the judgment
    Incorrect, so that a list of all possible factors earns nothing. In the second edition it audits the evidence, too.
    """

    def outcome(self, golden: str, judgment: str) -> Outcome:
        """`CORRECT` or `INCORRECT`; UserError if `golden` names no factor."""
        if factors_of(golden):
            return Outcome.CORRECT if audit(golden, judgment) is None else Outcome.INCORRECT
        expected = decisive_factors(visible(golden))
        if not expected:
            raise UserError(
                "the rule MetaRM needs a golden judgment that names a decisive factor"
                f" ('A is wrong: ITEM should be VALUE'), got {_excerpt(golden)!r};"
                " other pairs need metarm.kind=endpoint or managed, or algo.reward=label"
            )
        return Outcome.CORRECT if decisive_factors(visible(judgment)) == expected else Outcome.INCORRECT


def _excerpt(text: str, max_chars: int = 80) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."


_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')
_WORD = re.compile(r"\w+")


class KeywordMetaRM(RuleBased):
    """A baseline: Correct if the rationale contains, word for word, a phrase that the golden judgment quotes.

    One quoted phrase is enough. The rule does not check who made the error, which error it is, or what is true.
    """

    def outcome(self, golden: str, judgment: str) -> Outcome:
        """`CORRECT` or `INCORRECT`; UserError if `golden` quotes nothing."""
        phrases = [_words(a or b) for a, b in _QUOTED.findall(visible(golden))]
        phrases = [phrase for phrase in phrases if phrase]
        if not phrases:
            raise UserError(
                "the keyword MetaRM needs a golden judgment that quotes the error's words,"
                f" got {_excerpt(golden)!r}"
            )
        words = f" {' '.join(_words(visible(judgment)))} "
        found = any(f" {' '.join(phrase)} " in words for phrase in phrases)
        return Outcome.CORRECT if found else Outcome.INCORRECT


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
