"""Kinds of twins of any pairs: the same content with another Markdown, another length, or another order.

    markdown   the response with more Markdown loses it, and one without gets bullets or bold
    padding    neutral closings of the longer response go to the shorter one, which gets more until it is the longer
    reorder    the items of a list, or sentences, in the reverse order

Words stay, but for a padding's neutral sentences, and so do code, tables, maths, links, the label and the golden
judgment. A pair has no twin where the surface may decide: its prompt asks for a form, a length or an order, or its
golden judgment gives that as a reason. The same pair always has the same twin.
"""

import re
from collections.abc import Callable
from dataclasses import replace

from ralign.engine.data.markup import (
    Masked,
    num_marks,
    rewritten,
    split_sentences,
    with_bullets,
    without_marks,
    words,
)
from ralign.engine.data.pairs import Pair
from ralign.engine.data.twins import TwinKind
from ralign.engine.data.verdicts import visible

Responses = tuple[str, str]


def _any_of(alternatives: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{alternatives})\b", re.IGNORECASE)


_STRUCTURE = r"structur\w*|organi[sz]\w*|readab\w*|layout|outline\w*"
_FORM = _any_of(
    r"markdown|bullet\w*|bold\w*|italic\w*|lists?|tables?|head(?:ing|er)s?|format\w*|plain text|latex|html|json|"
    rf"yaml|xml|csv|readme|{_STRUCTURE}"
)
_LENGTH = _any_of(
    r"words?|characters?|letters?|sentences?|paragraphs?|lines?|tokens?|only|just|exactly|at (?:most|least)|"
    r"(?:more|less|fewer) than|limit\w*|brief\w*|brevity|short\w*|long\w*|lengthy?|concise\w*|verbos\w*|wordy|"
    r"detail\w*|summar\w*|poem|haiku|story|json|yaml|xml|csv|polite\w*|filler|padding|closings?|pleasantr\w*"
)
_ORDER = _any_of(
    r"order\w*|rank\w*|sort\w*|steps?|sequen\w*|first\w*|then|next|last|chronolog\w*|timelines?|histor\w*|stor(?:y|ies)|"
    r"poems?|narrat\w*|essays?|recipes?|prov(?:e|es)|proofs?|solv\w*|deriv\w*|translat\w*|rewrit\w*|top|"
    rf"instructions?|flow\w*|{_STRUCTURE}"
)


def _kind(
    change: Callable[[str, str], Responses | None], decides: re.Pattern[str], why_none: str
) -> TwinKind:
    """A kind whose twins have the responses of `change`, without pairs in which `decides` is asked for or a reason."""

    def make(pair: Pair) -> Pair | None:
        texts = [*(turn["content"] for turn in pair.conversations), visible(pair.gt_judgment)]
        if any(map(decides.search, texts)):
            return None
        changed = change(pair.response_A, pair.response_B)
        return None if changed is None else replace(pair, response_A=changed[0], response_B=changed[1])

    return TwinKind(make=make, why_none=why_none)


def _other_markdown(a: str, b: str) -> Responses | None:
    marks = num_marks(a), num_marks(b)
    if marks[0] == marks[1]:
        return None
    has_a_more = marks[0] > marks[1]
    more, less = (a, b) if has_a_more else (b, a)
    plain = without_marks(more)
    marked = less if min(marks) else with_bullets(less)
    if plain is None or marked is None:
        return None
    return (plain, marked) if has_a_more else (marked, plain)


_CLOSINGS = (
    "I hope this helps.",
    "Please let me know if anything is unclear.",
    "Feel free to ask if you have any further questions.",
    "Thank you for your question.",
    "I am happy to explain any part of this again.",
    "I hope this answers your question.",
)
_CLOSING = re.compile(
    r"(?:^|\s+)((?:I )?hope (?:this|that|it) (?:helps|answers your question)[.!]"
    r"|(?:Please )?(?:let me know|feel free to ask) if (?:anything is unclear"
    r"|you have (?:any )?(?:more |other |further |additional )?questions)[.!]"
    r"|Thank you for your question[.!]|I am happy to explain any part of this again[.!])\s*$",
    re.IGNORECASE,
)
_MIN_WORDS = 4  # of a response that is text, not a bare value


def _other_length(a: str, b: str) -> Responses | None:
    is_a_longer = len(a) > len(b)
    longer, shorter = (a, b) if is_a_longer else (b, a)
    if not (_takes_padding(a) and _takes_padding(b)):
        return None
    moved: list[str] = []
    core = longer
    while found := _CLOSING.search(core):
        if not core[: found.start()].strip():
            return None  # nothing but closings
        moved.insert(0, found.group(1))
        core = core[: found.start()]
    padded = shorter
    for closing in [*moved, *(closing for closing in _CLOSINGS if closing not in (*moved, shorter))]:
        if closing in shorter or (closing not in moved and len(padded) > len(core)):
            continue
        padded = f"{padded.rstrip()}{_gap(shorter)}{closing}"
    is_text = all(Masked(new).parts == Masked(old).parts for new, old in ((core, longer), (padded, shorter)))
    if not is_text or padded == shorter:  # the end of a response is in code, or it has all closings
        return None
    return (core, padded) if is_a_longer else (padded, core)


def _takes_padding(text: str) -> bool:
    return len(words(text)) >= _MIN_WORDS and Masked(text).is_clear and text.lstrip()[:1] not in "{["


def _gap(text: str) -> str:
    """What separates a closing: a text of several lines may end in a list or in code."""
    return "\n\n" if "\n" in text.strip() else " "


_BULLET = re.compile(r"[-*•] +(?=\S)")
_NUMBERED = re.compile(r"^\s*(?:[-*•] +)?\W*\d+[.)]", re.MULTILINE)
_REFERS = _any_of(  # to what stands before or after
    r"first\w*|second\w*|third\w*|then|next|after\w*|before|last\w*|final\w*|previous\w*|above|below|following|former|"
    r"latter|steps?|also|another|other|others|however|therefore|thus|hence|so|but|and then|because|since|instead|"
    r"moreover|furthermore|additionally|he|she|it|its|they|them|their|his|her|this|that|these|those|such|both|same|"
    r"again|still|more|too|example|similarly|likewise|consequently|overall|conclusion|summary|yes|no|sure"
)
_INTRODUCED = re.compile(r"\b(?:a|an) (\w+)", re.IGNORECASE)
_KNOWN = re.compile(r"\bthe (\w+)", re.IGNORECASE)


def _other_order(a: str, b: str) -> Responses | None:
    changed = tuple(text if _has_steps(text) else rewritten(text, _reversed) or text for text in (a, b))
    return None if changed == (a, b) else (changed[0], changed[1])


def _has_steps(text: str) -> bool:
    """Whether it has code or maths on several lines, or numbers, to which other text may refer."""
    return any("\n" in part for part in Masked(text).parts) or _NUMBERED.search(text) is not None


def _reversed(text: str) -> str | None:
    """The items of a list, or the sentences of a text of one line, reversed; None where one may refer to another."""
    lines = text.split("\n")
    items = [number for number, line in enumerate(lines) if _BULLET.match(line)]
    if items:
        start, end = items[0], items[-1] + 1
        chosen = lines[start:end]
        is_one_list = items == list(range(start, end)) and not _goes_on(lines, end)
        if len(chosen) < 2 or not is_one_list or not _are_free([line[2:] for line in chosen]):
            return None
        return "\n".join([*lines[:start], *reversed(chosen), *lines[end:]])
    if len(lines) > 1:
        return None
    sentences, spaces = split_sentences(text)
    if (
        len(sentences) < 2
        or not _are_free(sentences)
        or set(_INTRODUCED.findall(text)) & set(_KNOWN.findall(text))
    ):
        return None
    parts = [part for pair in zip(reversed(sentences), [*reversed(spaces), ""], strict=True) for part in pair]
    return "".join(parts)


def _goes_on(lines: list[str], end: int) -> bool:
    """Whether the last item of a list has further lines."""
    return end < len(lines) and bool(lines[end].strip())


def _are_free(items: list[str]) -> bool:
    """Whether no item refers to another, and all end alike."""
    ends = {item[-1:] if item[-1:] in ".!?" else "" for item in items}
    closed = not any(item.rstrip()[-1:] in (":", ",", ";") or item != item.strip() for item in items)
    return len(ends) == 1 and closed and not any(map(_REFERS.search, items))


MARKDOWN = _kind(
    _other_markdown,
    _FORM,
    "both responses have as many Markdown marks, code cannot be told from text, or the form may decide",
)
PADDING = _kind(_other_length, _LENGTH, "a response is a bare value or code, or the length may decide")
REORDER = _kind(
    _other_order, _ORDER, "no response has list items or sentences that may stand in another order"
)
