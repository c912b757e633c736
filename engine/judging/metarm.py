"""MetaRMs: does a rationale rest on the reasons that the golden judgment names?

A MetaRM answers one `Outcome` a judgment. `RuleMetaRM` answers for JudgeWorld by reading the sentence that
names the decisive factor, in the golden judgment and in the judgment under review.
"""

import re
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import NamedTuple, Protocol

from ralign.engine.data.pairs import Pair
from ralign.engine.data.verdicts import visible
from ralign.engine.runtime.errors import UserError


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
    """Compares judgments with golden judgments, one at a time without waiting or a batch at a time."""

    @property
    def stop_reason(self) -> str | None:
        """Why nothing more will be judged (a budget is spent, a key refused), or None."""
        ...

    def awake(self) -> AbstractContextManager[None]:
        """To be held open while judgments are submitted and awaited; collective over all ranks."""
        ...

    def submit(self, pair: Pair, judgment: str) -> Future[Outcome]:
        """The outcome of one judgment of `pair`, later; never `SKIPPED`. Texts come whole, thinking included."""
        ...

    def judge_batch(self, pairs: Sequence[Pair], judgments: Sequence[str]) -> list[Outcome]:
        """One outcome a judgment, in order, when all are there."""
        ...

    def close(self) -> None: ...


class DecisiveFactor(NamedTuple):
    """What decides a JudgeWorld pair: this side gets this item wrong, and it should be this."""

    side: str
    item: str
    should_be: str


_FACTOR = re.compile(r"\b([AB]) is wrong: (\w+) should be (\w+)")


def decisive_factors(text: str) -> set[DecisiveFactor]:
    """The decisive factors that a text names, each in the words of `judgeworld.decisive_factor`."""
    return set(factor_sentences(text))


def factor_sentences(text: str) -> list[DecisiveFactor]:
    """The same in the order of the text, repetitions included."""
    return [DecisiveFactor(*found) for found in _FACTOR.findall(text)]


class RuleMetaRM:
    """JudgeWorld's MetaRM: Correct if the rationale names the golden decisive factors, all of them, and no other one.

    It reads visible text alone: a factor named before ``</think>`` counts for nothing. Naming one
    that is not among the golden ones makes the judgment Incorrect, so listing all that could be earns nothing.
    """

    stop_reason = None

    def awake(self) -> AbstractContextManager[None]:
        return nullcontext()

    def submit(self, pair: Pair, judgment: str) -> Future[Outcome]:
        outcome: Future[Outcome] = Future()
        outcome.set_result(self.judge(pair.gt_judgment, judgment))
        return outcome

    def close(self) -> None:
        pass

    def judge(self, golden: str, judgment: str) -> Outcome:
        """`Outcome.CORRECT` or `Outcome.INCORRECT`; `UserError` if `golden` names no factor."""
        expected = decisive_factors(visible(golden))
        if not expected:
            raise UserError(
                "the rule MetaRM needs a golden judgment that names a decisive factor"
                f" ('A is wrong: ITEM should be VALUE'), got {_excerpt(golden)!r};"
                " pairs from elsewhere can be trained with the label reward only"
            )
        return Outcome.CORRECT if decisive_factors(visible(judgment)) == expected else Outcome.INCORRECT

    def judge_batch(self, pairs: Sequence[Pair], judgments: Sequence[str]) -> list[Outcome]:
        return [self.judge(pair.gt_judgment, text) for pair, text in zip(pairs, judgments, strict=True)]


def _excerpt(text: str, max_chars: int = 80) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."
