"""What a judgment decides, by the released evaluator's protocol."""

import re

from ralign.engine.data.pairs import Side

_BOXED = re.compile(r"\\boxed\{([AB])\}")
_BARE = re.compile(r"boxed\{([AB])\}")
THINKING, END_OF_THINKING = "<think>", "</think>"


def parse_verdict(text: str) -> Side | None:
    r"""The first ``\boxed{A}`` or ``\boxed{B}``; if there is none, the first without its backslash; or None."""
    found = _BOXED.search(text) or _BARE.search(text)
    return found.group(1) if found else None


def all_verdicts(text: str) -> list[Side]:
    """Every boxed letter, in order, with or without the backslash."""
    return _BARE.findall(text)


def visible(text: str) -> str:
    """What the MetaRM is shown: what follows the last ``</think>`` (or all, if there is none), stripped.

    Thinking that was begun there and not ended (an answer cut off) is not visible either.
    """
    return text.rpartition(END_OF_THINKING)[2].partition(THINKING)[0].strip()
