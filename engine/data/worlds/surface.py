"""What a response of JudgeWorld looks like beside the facts that it states: its surface carries the cues."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ralign.engine.data.pairs import Pair

OPENING, CLOSING = "Sure!", "Hope this helps!"
_FACT = re.compile(r"\b(\w+) is (\w+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Surface:
    """The layout of a response, and whether it has an opening and a closing."""

    bullets: bool = False
    opening: bool = False
    closing: bool = False


def write(facts: Mapping[str, str], surface: Surface) -> str:
    """A text that states the facts, item -> value, in their order."""
    if surface.bullets:
        body = "\n".join(f"- The {item} is {value}" for item, value in facts.items())
    else:
        body = " ".join(f"The {item} is {value}." for item, value in facts.items())
    parts = [OPENING] * surface.opening + [body] + [CLOSING] * surface.closing
    return ("\n" if surface.bullets else " ").join(parts)


def facts_of(text: str) -> dict[str, str]:
    """Item -> value of a response or a note."""
    return dict(_FACT.findall(text))


def surface_of(text: str) -> Surface:
    """The surface that `write` gave a response."""
    return Surface(bullets="- The " in text, opening=text.startswith(OPENING), closing=text.endswith(CLOSING))


def exchange_surfaces(pair: Pair) -> Pair:
    """The pair with the surfaces of its responses exchanged; facts, label and golden judgment stay."""
    facts = (facts_of(pair.response_A), facts_of(pair.response_B))
    surfaces = (surface_of(pair.response_A), surface_of(pair.response_B))
    meta = {
        key: {"A": "B", "B": "A"}[value] if key in ("cue_side", "closing_side", "opening_side") else value
        for key, value in pair.meta.items()
    }
    return replace(
        pair, response_A=write(facts[0], surfaces[1]), response_B=write(facts[1], surfaces[0]), meta=meta
    )
