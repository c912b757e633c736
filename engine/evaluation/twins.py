"""Twins in an evaluation: the kinds that a setting names, and the twins of the pairs of a test."""

from collections.abc import Mapping, Sequence

from ralign.engine.config.registry import TWINS
from ralign.engine.data.pairs import Pair
from ralign.engine.data.twins import TwinKind, twin_of

Kinds = Mapping[str, TwinKind]
Twins = dict[str, dict[str, Pair]]  # kind -> id of the pair -> twin


def read_kinds(setting: str, names: str) -> dict[str, TwinKind]:
    """The kinds of a list with commas, by name; none for "".

    Raises:
        UserError: no such kind; `setting` names the list in the message.
    """
    return {name: TWINS.under(setting).load(name) for name in names.split(",") if name}


def make_twins(kinds: Kinds, pairs: Sequence[Pair], setting: str) -> Twins:
    """The twins of these pairs; nothing reads their golden judgments.

    Raises:
        UserError: a kind changed an id or a label.
    """
    return {
        name: {
            pair.id: twin
            for pair in pairs
            if (twin := twin_of(kind, pair, f"{setting}={name}", reads_golden=False)) is not None
        }
        for name, kind in kinds.items()
    }


def lacking(kinds: Kinds, twins: Twins, pairs: Sequence[Pair]) -> list[str]:
    """A line for each kind of which some pairs have no twin, with their number and the reason."""
    numbers = {name: len(pairs) - len(twins[name]) for name in kinds}
    return [
        f"{number} of {len(pairs)} pairs have no {name} twin: {kinds[name].why_none}"
        for name, number in numbers.items()
        if number
    ]
