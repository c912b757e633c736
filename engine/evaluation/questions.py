"""What a judge is shown of a pair: itself, the other order, and, greedily, itself and its twins."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ralign.engine.data.pairs import Pair
from ralign.engine.evaluation.journal import journal_key

OWN, SWAPPED, GREEDY = "own", "swapped", "greedy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One request to the judge."""

    pair: Pair
    shown: Pair
    key: str  # in the journal of answers
    role: str  # OWN, SWAPPED, GREEDY, or `twin_role` of a kind

    @property
    def is_own(self) -> bool:
        """Its verdict is the pair's, and is reviewed if it is right."""
        return self.role == OWN

    @property
    def is_greedy(self) -> bool:
        return self.role not in (OWN, SWAPPED)


def questions_of(pair: Pair, twins: Mapping[str, Pair], *, both_orders: bool, greedy: bool) -> list[Question]:
    """The questions about a pair; `twins` by kind; `greedy`: the pair itself is asked greedily, too."""
    shown = {OWN: (pair, answer_key(pair.id, False))}
    if both_orders:
        swapped = replace(pair, response_A=pair.response_B, response_B=pair.response_A)
        shown[SWAPPED] = swapped, answer_key(pair.id, True)
    if greedy:
        shown[GREEDY] = pair, journal_key(pair.id, GREEDY)
    shown |= {twin_role(kind): (twin, _twin_key(kind, twin)) for kind, twin in twins.items()}
    return [Question(pair=pair, shown=seen, key=key, role=role) for role, (seen, key) in shown.items()]


def answer_key(id: str, swapped: bool) -> str:
    """The key of an answer in its journal."""
    return journal_key(id, "swapped") if swapped else journal_key(id)


def twin_role(kind: str) -> str:
    """The role of a question about a twin."""
    return f"twin {kind}"


def _twin_key(kind: str, twin: Pair) -> str:
    """A key with the twin's hash: an answer does not hold for a twin that the kind makes otherwise later."""
    shown = json.dumps([twin.conversations, twin.response_A, twin.response_B])
    return journal_key(twin.id, "twin", kind, hashlib.sha256(shown.encode()).hexdigest()[:16])


def error_fields(errors: Mapping[str, str]) -> dict[str, Any]:
    """Fields of a record's meta for the calls that failed, role -> reason."""
    names = {OWN: "model_error", SWAPPED: "model_error_swapped"}
    fields: dict[str, Any] = {names[role]: error for role, error in errors.items() if role in names}
    of_twins = {role.removeprefix("twin "): error for role, error in errors.items() if role not in names}
    return fields | ({"model_error_twins": of_twins} if of_twins else {})
