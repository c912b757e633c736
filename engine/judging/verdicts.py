"""What a judgment decides, by the released evaluator's protocol."""

import re

from ralign.engine.data.pairs import Side

_VERDICT = re.compile(r"\\?boxed\{([AB])\}")
END_OF_THINKING = "</think>"


def parse_verdict(text: str) -> Side | None:
    r"""The first ``\boxed{A}`` or ``\boxed{B}`` (a missing backslash is tolerated), or None."""
    found = _VERDICT.search(text)
    return found.group(1) if found else None


def visible(text: str) -> str:
    """What the MetaRM is shown: what follows the last ``</think>`` (or all, if there is none), stripped."""
    return text.rpartition(END_OF_THINKING)[2].strip()
