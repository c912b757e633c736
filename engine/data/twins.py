"""Twins of a pair: the same content under another surface.

What decides between the two responses is the same in both twins, so a judge that reads gives both the same verdict. A
judge whose verdict changes follows the surface. Twins need no labels. A kind of twin is a `TwinKind` in
`config.registry.TWINS`, or a user's own as FILE.py:NAME.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ralign.engine.data.pairs import Pair
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


def as_kind(implementation: Any, setting: str) -> TwinKind:
    """`implementation`, checked. UserError if it is no `TwinKind`."""
    if not isinstance(implementation, TwinKind):
        raise UserError(f"{setting}: expected a TwinKind, got {implementation!r}")
    return implementation
