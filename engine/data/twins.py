"""Twins of a pair: the same content under another surface.

What decides between the two responses is the same in both twins, so a judge that reads gives both the same verdict. A
judge whose verdict changes follows the surface. Twins need no labels. A kind of twin is a `TwinKind` in
`config.registry.TWINS`, or a user's own as FILE.py:NAME.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ralign.engine.data.pairs import Pair, other_side
from ralign.engine.data.swap import swap_sides, why_not_swapped
from ralign.engine.runtime.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class TwinKind:
    """How a twin is made.

    Attributes:
        make: the twin of a pair, with the same id; None if the pair has none.
        why_none: a clause that says which pairs have none, for the message that counts them.
        swaps_sides: the twin's responses are in the other order, so its label and its verdicts name the other side.
    """

    make: Callable[[Pair], Pair | None]
    why_none: str
    swaps_sides: bool = False


def _other_order(pair: Pair) -> Pair | None:
    return None if why_not_swapped(pair) else swap_sides(pair)


ORDER = TwinKind(
    make=_other_order,
    why_none="names in their golden judgments cannot be swapped reliably (ralign-data validate lists them)",
    swaps_sides=True,
)


def twin_of(kind: TwinKind, pair: Pair, setting: str, *, reads_golden: bool) -> Pair | None:
    """The twin of a pair, checked; None if it has none, or one that looks the same.

    Args:
        setting: what chose the kind, for messages.
        reads_golden: whether anything reads the twin's golden judgment. If not, and it cannot be rewritten for the
            other order, the twin is made without.

    Raises:
        UserError: a twin with another id, or a label that names another response.
    """
    twin = kind.make(pair)
    if twin is None and kind.swaps_sides and not reads_golden:
        twin = kind.make(replace(pair, gt_judgment=""))
    if twin is None:
        return None
    label = other_side(pair.gt_label) if kind.swaps_sides else pair.gt_label
    if (twin.id, twin.gt_label) != (pair.id, label):
        raise UserError(
            f"{setting}: the twin of {pair.id!r} has the id {twin.id!r} and the label {twin.gt_label},"
            f" expected the same id and {label}"
        )
    shown, of_twin = ((x.conversations, x.response_A, x.response_B) for x in (pair, twin))
    return None if shown == of_twin else twin


def own_side(kind: TwinKind, verdict: str | None) -> str | None:
    """The response that a verdict on a twin names, by its side in the pair itself."""
    return {"A": "B", "B": "A", None: None}[verdict] if kind.swaps_sides else verdict


def as_kind(implementation: Any, setting: str) -> TwinKind:
    """`implementation`, checked. UserError if it is no `TwinKind`."""
    if not isinstance(implementation, TwinKind):
        raise UserError(f"{setting}: expected a TwinKind, got {implementation!r}")
    return implementation
