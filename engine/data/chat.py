"""A pair as chat messages, and messages as the token ids of a prompt.

Training and evaluation share this file, so a judge is evaluated with the prompts of its training. The text of a message
comes from outside and is never control: a special token's string in it is encoded as plain text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
from ralign.engine.data.chat_template import (
    BLANK_LINE,
    TEMPLATE,
    ByIdentity,
    Messages,
    Piece,
    template_pieces,
)
from ralign.engine.data.pairs import Pair
from ralign.engine.data.prompts import NEEDED, fill, safe_texts
from ralign.engine.data.verdicts import END_OF_THINKING, THINKING
from ralign.engine.runtime.errors import UserError

_PLACEHOLDERS = tuple(f"{{{name}}}" for name in ("context", *NEEDED))

# `encode_messages` with chat=False as a chat template, for servers of models that were trained on plain text.
PLAIN_CHAT = (
    "{% for message in messages %}{{ '' if loop.first else '\\n\\n' }}{{ message['content'] }}{% endfor %}"
)

# Control strings of published models: <|im_end|>, <｜User｜>, <s>, [INST], <start_of_turn>, <think>, ...
_CONTROL = re.compile(
    r"<(?=\s*+[|｜]|/?(?:s|bos|eos|pad|unk|think|tool_call|tool_response|start_of_turn|end_of_turn)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|THINK|IMG)\])",
    re.IGNORECASE,
)
_BREAK = "\u200b"  # zero width space
_NUM_AT_ONCE = 256  # prompts: offsets of one chunk at a time are in memory


@dataclass(kw_only=True, slots=True, frozen=True)
class Prompt:
    """A prompt of L tokens.

    Attributes:
        ids: token ids, [L] int64.
        sources: the index of the message that a token's first character comes from, or `TEMPLATE`; [L] int64.
        opens_thinking: the chat template ends the prompt inside a thinking block, so the answer starts in it.
    """

    ids: np.ndarray
    sources: np.ndarray
    opens_thinking: bool


def pair_messages(template: str, pair: Pair) -> Messages:
    """A system message with the paragraphs before the first placeholder, and a user message with the others.

    A template that starts with a placeholder's paragraph (compact) is one user message. The contents, joined by a
    blank line, equal `render(template, pair)`.
    """
    paragraphs = template.split(BLANK_LINE)
    first = [any(name in paragraph for name in _PLACEHOLDERS) for paragraph in paragraphs].index(True)
    user = ("user", fill(BLANK_LINE.join(paragraphs[first:]), safe_texts(template, pair)))
    return (("system", BLANK_LINE.join(paragraphs[:first])), user) if first else (user,)


def encode_messages(
    prompts: Sequence[Messages],
    tokenizer,
    *,
    chat: bool,
    after: str = "",
    ids: Sequence[str] | None = None,
) -> list[Prompt]:
    """Prompts in the tokenizer's chat template with its generation prompt, or joined by blank lines (plain).

    Contents without control strings have the ids of `tokenizer.apply_chat_template`. The template is rendered with
    marks in place of the contents, so a content cannot change what the template writes. The template's default decides
    whether the model thinks first. If the template refuses or omits the system message, its text comes before the
    first user message's, and a blank line between them.

    Args:
        after: text after the last message of a plain prompt.
        ids: of the prompts, for messages.

    Raises:
        UserError: chat, and the tokenizer has no chat template, or one that fails for these roles or leaves one out,
            which roles that do not alternate bring about (the message has the id of the first such prompt); the
            tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer in {tokenizer.name_or_path!r} has no tokenizer.json, which ralign reads"
        )
    if chat and not tokenizer.chat_template:
        raise UserError(
            f"data.chat=True: the tokenizer in {tokenizer.name_or_path!r} has no chat template"
            " (use data.chat=False for plain text)"
        )
    found: list[Prompt] = []
    for start in range(0, len(prompts), _NUM_AT_ONCE):
        chunk = prompts[start : start + _NUM_AT_ONCE]
        pieces = []
        for number, messages in enumerate(chunk, start):
            try:
                pieces.append(
                    template_pieces(messages, tokenizer) if chat else _plain_pieces(messages, after)
                )
            except UserError as error:
                raise UserError(f"pair {ids[number]}: {error}" if ids else str(error)) from error
        found += _encode(pieces, tokenizer)
    return found


def encode_text(text: str, tokenizer) -> np.ndarray:
    """Token ids of a text from outside: [L] int64."""
    return encode_messages([(("user", text),)], tokenizer, chat=False)[0].ids


def without_control(messages: Messages) -> Messages:
    """The messages for a server, which encodes them itself: a zero width space breaks each control string of a content.

    The tokens of a server's model are not known: these are the forms of published models.
    """
    return tuple(
        (role, _CONTROL.sub(lambda found: found.group() + _BREAK, content)) for role, content in messages
    )


def check_plain_template(template: str, tokenizer) -> None:
    """Raises UserError for a judge's template with control strings, which a plain prompt shows as text."""
    control = control_ids(tokenizer)
    found = [
        token for token, id in tokenizer.get_added_vocab().items() if id in control and token in template
    ]
    if found:
        raise UserError(
            f"data.template: {found[0]} is a special token, which data.chat=False encodes as plain text; use"
            " data.chat=True and leave turns to the chat template"
        )


def control_ids(tokenizer) -> frozenset[int]:
    """Ids that only a template may write: special tokens, and others in the form of one, such as Qwen3's <think>."""
    return _control_ids(ByIdentity(tokenizer), len(tokenizer))


def _plain_pieces(messages: Messages, after: str) -> list[Piece]:
    pieces: list[Piece] = []
    for index, (_, content) in enumerate(messages):
        pieces += [Piece(BLANK_LINE, TEMPLATE)] * bool(index) + [Piece(content, index)]
    return [*pieces, Piece(after, TEMPLATE)]


@lru_cache(maxsize=8)
def _control_ids(key: ByIdentity, num_tokens: int) -> frozenset[int]:
    added = key.tokenizer.added_tokens_decoder.items()
    control = {id for id, token in added if token.special or _CONTROL.search(token.content)}
    return frozenset(control - {key.tokenizer.unk_token_id})  # which any unknown word of a text may give


def _encode(prompts: list[list[Piece]], tokenizer) -> list[Prompt]:
    texts = ["".join(piece.text for piece in pieces) for pieces in prompts]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    control, found = list(control_ids(tokenizer)), []
    for pieces, ids, offsets in zip(prompts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        ends = list(accumulate(len(piece.text) for piece in pieces))
        starts = np.asarray([start for start, _ in offsets], dtype=np.int64)
        index = np.minimum(np.searchsorted(ends, starts, side="right"), len(pieces) - 1)
        sources = np.asarray([piece.source for piece in pieces], dtype=np.int64)[index]
        ids = np.asarray(ids, dtype=np.int64)
        is_planted = (np.isin(ids, control) & (sources != TEMPLATE)).any()
        if is_planted:
            ids, sources = _encode_apart(pieces, tokenizer)
        tail = pieces[-1].text.rpartition(END_OF_THINKING)[2] if pieces[-1].source == TEMPLATE else ""
        found.append(Prompt(ids=ids, sources=sources, opens_thinking=THINKING in tail))
    return found


def _encode_apart(pieces: list[Piece], tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """(ids, sources) of each piece by itself, contents without control ids."""
    ids: list[int] = []
    sources: list[int] = []
    for piece in pieces:
        if piece.source == TEMPLATE:
            new = tokenizer(piece.text, add_special_tokens=False)["input_ids"]
        else:
            new = _without_control_ids(piece.text, tokenizer)
        ids += new
        sources += [piece.source] * len(new)
    return np.asarray(ids, dtype=np.int64), np.asarray(sources, dtype=np.int64)


def _without_control_ids(text: str, tokenizer) -> list[int]:
    """Token ids of a text that is split after the first character of each control string."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    control = control_ids(tokenizer)
    cuts = [
        start + 1
        for id, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        if id in control and stop - start > 1
    ]
    if not cuts:
        return encoded["input_ids"]
    bounds = zip([0, *cuts], [*cuts, len(text)], strict=True)
    return [id for start, stop in bounds for id in _without_control_ids(text[start:stop], tokenizer)]
