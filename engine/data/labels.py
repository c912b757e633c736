"""Labels as people write them, as the side of the better response."""

import re
from collections.abc import Mapping
from typing import Any, cast

from ralign.engine.data.pairs import SIDES, Side
from ralign.engine.data.turns import LeftOut
from ralign.engine.runtime.errors import UserError

TIE = "tie"
_TIES = ("tie", "tied", "draw", "equal", "same", "both", "neither")
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?|true|false")
_MAX_SHOWN = 40


def parse_labels(option: str) -> dict[str, str]:
    """`0=A,1=B,2=tie` as the meaning of each label, by its `_key`.

    Raises:
        UserError: another form, or two meanings of one label.
    """
    meanings: dict[str, str] = {}
    for each in option.split(","):
        label, is_given, meaning = each.partition("=")
        meaning = meaning.strip().upper() if meaning.strip().upper() in SIDES else meaning.strip().casefold()
        if not is_given or not label.strip() or meaning not in (*SIDES, TIE):
            raise UserError(f"--labels {option}: expected LABEL=A,LABEL=B, and LABEL=tie for ties")
        if meanings.setdefault(_key(label), meaning) != meaning:
            raise UserError(f"--labels {option}: {label.strip()} has two meanings")
    return meanings


def side_of_label(value: Any, meanings: Mapping[str, str]) -> Side:
    """The better side: by `meanings`, else of A and B in either case.

    Raises:
        LeftOut: a tie, or no label.
        UserError: a number or a truth value without a meaning. 0 is the place of the first response in some sets, and
            says that the first response lost in others: no reader can tell which.
    """
    key = _key(value)
    meaning = meanings.get(key, key.upper())
    if meaning in SIDES:
        return cast(Side, meaning)
    if meaning == TIE or key in _TIES or key.startswith("tie "):  # PPE's "tie (bothbad)"
        raise LeftOut("tie")
    if value is None or not key:
        raise LeftOut("no gt_label")
    if _NUMBER.fullmatch(key):
        raise UserError(
            f"gt_label {key} can mean either response: say which is better with --labels 0=A,1=B (a label for each"
            " side; LABEL=tie for ties)"
        )
    raise LeftOut(f"gt_label must be A or B, got {str(value)[:_MAX_SHOWN]!r}")


def _key(value: Any) -> str:
    """A label's text without blanks and case; 1.0 (a column with gaps is read as floats) is 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip().casefold()
