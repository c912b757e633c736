"""Texts and turns of published rows: plain text, OpenAI's content parts, dialogues.

What a pair cannot hold leaves its row out, for a reason that a conversion counts: images and other media, tool calls,
tool results. Nothing is turned into text by Python's `str` but numbers.
"""

from collections.abc import Mapping
from typing import Any

_TOOL_ROLES = ("tool", "function", "ipython", "observation")
_TEXT_PARTS = ("text", "input_text", "output_text")
_MAX_SHOWN = 40  # characters of a row's own text in a reason


class LeftOut(Exception):
    """The reason why a row has no pair."""


def text_of(value: Any) -> str:
    """The text of a value: "" for null, a number's digits, the joined texts of a list of content parts.

    Raises:
        LeftOut: a part is no text, or the value is something else.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
        return "".join(map(_part_text, value))
    raise LeftOut(f"{type(value).__name__} in place of a text")


def _part_text(part: Mapping[str, Any]) -> str:
    kind, text = part.get("type"), part.get("text")
    if kind is None:  # without a type: {"text": "…"} alone is text
        kind = next((name for name, found in part.items() if found is not None and name != "text"), "text")
    if kind not in _TEXT_PARTS or not isinstance(text, str):
        raise LeftOut(f"content part that is no text ({str(kind)[:_MAX_SHOWN]})")
    return text


def turns_of(value: Any) -> list[dict[str, str]]:
    """Turns of a dialogue, from a prompt or a list of turns; a system turn without text is dropped.

    Raises:
        LeftOut: a turn calls a tool or is its result, or its content is no text.
        AttributeError, KeyError, TypeError: the value has another shape.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    turns = []
    for turn in value:
        role = turn["role"]
        if not isinstance(role, str) or not role:
            raise LeftOut("turn without a role")
        if turn.get("tool_calls") or turn.get("function_call"):
            raise LeftOut("tool call")
        if role in _TOOL_ROLES:
            raise LeftOut("tool result")
        content = text_of(turn.get("content"))
        if content.strip() or role != "system":
            turns.append({"role": role, "content": content})
    return turns


def is_dialogue(value: Any) -> bool:
    """Whether a value is a list of turns, and not a text or a list of content parts."""
    return isinstance(value, list) and any(isinstance(turn, Mapping) and "role" in turn for turn in value)
