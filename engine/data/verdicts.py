"""The verdict of a judgment: by the rule of training, and by the released evaluator's."""

import re
from typing import cast

from ralign.engine.data.pairs import Side

_BOXED = re.compile(r"\\boxed\{([AB])\}")
_BARE = re.compile(r"boxed\{([AB])\}")
THINKING, END_OF_THINKING = "<think>", "</think>"


def verdict_of(text: str) -> Side | None:
    r"""The one verdict of the visible text, in any number of boxes; None without one, and with two different ones.

    A judge may think of one verdict and give the other, and may quote a box of a response: neither is its verdict.
    """
    found = set(all_verdicts(visible(text)))
    return found.pop() if len(found) == 1 else None


def released_verdict(text: str) -> Side | None:
    r"""The first ``\boxed{A}`` or ``\boxed{B}``, thinking included; else the first without a backslash; else None."""
    found = _BOXED.search(text) or _BARE.search(text)
    return cast(Side, found.group(1)) if found else None


def all_verdicts(text: str) -> list[Side]:
    """Every boxed letter, in order, with or without the backslash."""
    return _BARE.findall(text)


def visible(text: str) -> str:
    """The part of a judgment that the MetaRM reads: the text after the last ``</think>`` (or all of it), stripped.

    A ``<think>`` in that text that is never closed (a truncated answer) ends the visible part.
    """
    return text.rpartition(END_OF_THINKING)[2].partition(THINKING)[0].strip()
