"""A chat template, rendered with marks in place of the contents: what it writes, and where each content goes."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from jinja2 import TemplateError
from ralign.engine.runtime.errors import UserError

Messages = tuple[tuple[str, str], ...]  # (role, content), oldest first, as in a `Request`

TEMPLATE = -1  # the source of a token that the chat template wrote
BLANK_LINE = "\n\n"

# Stands for the content of message i in a rendered template: private-use characters, which no template writes.
_MARK, _END = "\ue000", "\ue001"
# Around the mark, to see what a template strips; no template writes that many line breaks itself.
_LINES = "\n" * 5
_MARKED = re.compile(f"((?:{_LINES})? )?{_MARK}([0-9]+){_END}( (?:{_LINES})?)?")

# What an expression of a template may raise; transformers renders it in jinja's sandbox.
_TEMPLATE_ERRORS = (
    TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
)  # fmt: skip


@dataclass(slots=True, frozen=True)
class Piece:
    """A part of a prompt's text; `source`: the index of its message, or `TEMPLATE`."""

    text: str
    source: int


def template_pieces(messages: Messages, tokenizer) -> list[Piece]:
    """The prompt in the tokenizer's chat template with its generation prompt.

    Raises:
        UserError: the template fails for these roles, or leaves one of the messages out.
    """
    pieces: list[Piece] = []
    roles = tuple(role for role, _ in messages)
    frame, is_joined = _frame(ByIdentity(tokenizer), tokenizer.chat_template, roles)
    start = 0
    for found in _MARKED.finditer(frame):
        index = int(found.group(2))
        before, behind = found.group(1) or "", found.group(3) or ""
        pieces.append(Piece(frame[start : found.start()], TEMPLATE))
        pieces += _contents(messages, index, before=before, behind=behind, is_joined=is_joined)
        start = found.end()
    return [*pieces, Piece(frame[start:], TEMPLATE)]


def _contents(messages: Messages, index: int, *, before: str, behind: str, is_joined: bool) -> list[Piece]:
    """Message `index` as the template strips it: `before` and `behind` are what it left around the mark.

    is_joined: the first user message begins with the system's text.
    """
    pieces = [Piece(messages[index][1], index)]
    if is_joined and index == _first_user([role for role, _ in messages]):
        for place in reversed(range(index)):
            if messages[place][0] == "system":
                pieces = [Piece(messages[place][1], place), Piece(BLANK_LINE, TEMPLATE), *pieces]
    if _LINES not in before:
        pieces = _stripped(pieces, lambda text: text.lstrip("\n" if before else None))
    if _LINES not in behind:
        pieces = _stripped(pieces[::-1], lambda text: text.rstrip("\n" if behind else None))[::-1]
    return pieces


def _stripped(pieces: list[Piece], strip: Callable[[str], str]) -> list[Piece]:
    """The pieces as parts of one text that is stripped at the first piece's side."""
    kept = [Piece(strip(pieces[0].text), pieces[0].source)]
    if not kept[0].text and pieces[1:]:
        return kept + _stripped(pieces[1:], strip)
    return kept + pieces[1:]


def _first_user(roles: Sequence[str]) -> int | None:
    return roles.index("user") if "user" in roles else None


class ByIdentity:
    """A tokenizer as a key of a cache."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer

    def __hash__(self) -> int:
        return id(self.tokenizer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and self.tokenizer is other.tokenizer


@lru_cache(maxsize=256)
def _frame(key: ByIdentity, chat_template: str, roles: tuple[str, ...]) -> tuple[str, bool]:
    """The rendered chat template with a mark in place of each content.

    If the template does not take system messages, those before the first user message have no mark, and the second
    value is True. Such a template raises an exception, or writes the other messages alone.
    """
    places = tuple(enumerate(roles))
    user = _first_user(roles)
    others = tuple(place for place in places if place[1] != "system" or user is None or place[0] > user)
    try:
        return _rendered(key, chat_template, places), False
    except UserError as error:
        if len(others) == len(places):
            raise
        refused = error
    try:
        return _rendered(key, chat_template, others), True
    except UserError:
        raise refused from refused.__cause__


def _rendered(key: ByIdentity, chat_template: str, places: tuple[tuple[int, str], ...]) -> str:
    """The template, rendered for messages of these (index, role). UserError if it fails or omits one."""
    turns = [{"role": role, "content": f"{_LINES} {_MARK}{index}{_END} {_LINES}"} for index, role in places]
    roles = ", ".join(role for _, role in places)
    name = f"the chat template in {key.tokenizer.name_or_path!r}"
    try:
        frame = key.tokenizer.apply_chat_template(
            turns, chat_template=chat_template, add_generation_prompt=True, tokenize=False
        )
    except _TEMPLATE_ERRORS as error:
        said = " ".join(str(error).split())
        raise UserError(f"{name} fails for the roles {roles}: {type(error).__name__}: {said}") from error
    for index, role in places:
        if f"{_MARK}{index}{_END}" not in frame:
            raise UserError(f"{name} leaves out the {role} message of the roles {roles}")
    return frame
