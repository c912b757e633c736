"""The audit of a rationale in JudgeWorld's second edition: Correct, or the kind of its error."""

import re
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from ralign.engine.data.verdicts import all_verdicts, visible


class ErrorKind(Enum):
    """What is wrong with a rationale; of several errors, the first in this order is told."""

    NO_REASON = "no reason"  # no decisive factor
    HEDGE = "hedge"  # a factor against each response, or two verdicts, where the golden judgment has one side
    KITCHEN_SINK = "kitchen sink"  # all decisive factors and further ones
    WRONG_SIDE = "wrong side"  # a decisive fault of the other response
    INVENTED_FACT = "invented fact"  # an item that is not in the note, or a quotation that stands nowhere
    WRONG_FACT = "wrong fact"  # a fact that does not decide
    MISSING_FACT = "missing fact"  # only some of the decisive factors
    WRONG_EVIDENCE = "wrong evidence"  # the right factors, from evidence that is missing or false


class Factor(NamedTuple):
    """A decisive factor of the second edition."""

    side: str
    item: str
    stated: str  # the response's word
    should_be: str  # the note's


_FACTOR = re.compile(r"\b([AB]) is wrong: (\w+) is (\w+), should be (\w+)")
_EVIDENCE = re.compile(r"Facts:((?: \w+)*)\.")
_WORDS_OF_AN_ITEM = 5  # item, the note's word, A's, B's, mark


def factors_of(text: str) -> list[Factor]:
    """The decisive factors of a judgment, in order, with repetitions."""
    return [Factor(*found) for found in _FACTOR.findall(visible(text))]


def evidence_of(text: str) -> dict[str, tuple[str, ...]]:
    """Item -> (note's word, A's, B's, mark); empty if a judgment has no evidence of that form, or an item twice."""
    found = _EVIDENCE.search(visible(text))
    words = found.group(1).split() if found else []
    if len(words) % _WORDS_OF_AN_ITEM:
        return {}
    rows = [tuple(words[i : i + _WORDS_OF_AN_ITEM]) for i in range(0, len(words), _WORDS_OF_AN_ITEM)]
    evidence = {row[0]: row[1:] for row in rows}
    return evidence if len(evidence) == len(rows) else {}


def audit(golden: str, judgment: str) -> ErrorKind | None:
    """The error of a rationale, or None if its factors and its evidence are those of `golden`."""
    expected, named = set(factors_of(golden)), set(factors_of(judgment))
    facts = evidence_of(golden)
    if not named:
        return ErrorKind.NO_REASON
    if named == expected:
        if len(set(all_verdicts(visible(judgment)))) > 1:
            return ErrorKind.HEDGE
        return None if evidence_of(judgment) == facts else ErrorKind.WRONG_EVIDENCE
    if {factor.side for factor in named} > {factor.side for factor in expected}:
        return ErrorKind.HEDGE
    if named > expected:
        return ErrorKind.KITCHEN_SINK
    return _kind_of(named - expected, expected, facts)


def _kind_of(wrong: set[Factor], expected: set[Factor], facts: Mapping[str, tuple[str, ...]]) -> ErrorKind:
    """The kind of the worst of the factors that are not in the golden judgment."""
    decisive = {(factor.item, factor.side) for factor in expected}
    if any(f.item in facts and (f.item, "A" if f.side == "B" else "B") in decisive for f in wrong):
        return ErrorKind.WRONG_SIDE
    if any(f.item not in facts or not {f.stated, f.should_be} <= set(facts[f.item][:3]) for f in wrong):
        return ErrorKind.INVENTED_FACT
    return ErrorKind.WRONG_FACT if wrong else ErrorKind.MISSING_FACT
