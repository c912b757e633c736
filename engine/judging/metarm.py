"""MetaRMs: does a rationale rest on the reasons that the golden judgment names?

A MetaRM answers one `Outcome` a judgment. `RuleMetaRM` answers for JudgeWorld by reading the sentence that
names the decisive factor, in the golden judgment and in the judgment under review.
"""

import re
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from ralign.engine.errors import UserError
from ralign.engine.judging.verdicts import visible


class Outcome(Enum):
    """What became of one judgment; the values are the released evaluator's `metarm_verdict` names."""

    CORRECT = "Correct"  # the rationale names the golden judgment's decisive factors
    INCORRECT = "Incorrect"  # it names other ones, or none
    PARSE_FAIL = "ParseFail"  # the MetaRM answered, but not in the agreed form
    CALL_FAIL = "CallFail"  # the MetaRM could not be reached
    SKIPPED = "SkippedLabelMismatch"  # the verdict is wrong or missing: the MetaRM was not asked

    @property
    def failed(self) -> bool:
        """The MetaRM gave no usable answer."""
        return self in (Outcome.PARSE_FAIL, Outcome.CALL_FAIL)


class MetaRM(Protocol):
    """Compares judgments with golden judgments, a batch at a time."""

    def judge_batch(self, goldens: Sequence[str], judgments: Sequence[str]) -> list[Outcome]:
        """One outcome a judgment, in order; never `SKIPPED`. Both texts come whole, thinking included."""
        ...


class DecisiveFactor(NamedTuple):
    """What decides a JudgeWorld pair: this side gets this item wrong, and it should be this."""

    side: str
    item: str
    should_be: str


_FACTOR = re.compile(r"\b([AB]) is wrong: (\w+) should be (\w+)")


def decisive_factors(text: str) -> set[DecisiveFactor]:
    """The decisive factors that a text names, each in the words of `judgeworld.decisive_factor`."""
    return {DecisiveFactor(*found) for found in _FACTOR.findall(text)}


class RuleMetaRM:
    """JudgeWorld's MetaRM: Correct if the rationale names the golden decisive factor and no other one.

    It reads visible text alone: a factor named before ``</think>`` counts for nothing. Naming a second,
    different factor makes the judgment Incorrect, so listing them all earns nothing.
    """

    def judge(self, golden: str, judgment: str) -> Outcome:
        """`Outcome.CORRECT` or `Outcome.INCORRECT`; `UserError` if `golden` names no single factor."""
        expected = decisive_factors(visible(golden))
        if len(expected) != 1:
            raise UserError(
                "the rule MetaRM needs a golden judgment that names one decisive factor"
                f" ('A is wrong: ITEM should be VALUE'), got {_excerpt(golden)!r};"
                " pairs from elsewhere can be trained with the label reward only"
            )
        return Outcome.CORRECT if decisive_factors(visible(judgment)) == expected else Outcome.INCORRECT

    def judge_batch(self, goldens: Sequence[str], judgments: Sequence[str]) -> list[Outcome]:
        return [self.judge(golden, judgment) for golden, judgment in zip(goldens, judgments, strict=True)]


def _excerpt(text: str, max_chars: int = 80) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."
