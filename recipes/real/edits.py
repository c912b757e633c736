"""Edits of a passage: one word at a place that changes the meaning, and harmless ones elsewhere.

A passage is a list of sentences, a sentence a list of words with their punctuation. A *place* is where the meaning can
be changed: a number, a word that has an antonym, or an auxiliary verb, with or without "not". Its *span*, which a
judgment quotes, has the word before, the place and the word after. Harmless edits leave spans alone.
"""

import random
import re
from dataclasses import dataclass

from ralign.recipes.real.words import (
    ANTONYMS,
    AUXILIARIES,
    CONTRACTIONS,
    MERGED,
    NUMBERS,
    OPENINGS,
    ORDINALS,
    SYNONYMS,
)

KINDS = ("number", "word", "negation")
_CORE = re.compile(r"([^A-Za-z0-9]*)([A-Za-z0-9'-]*)(.*)", re.DOTALL)
_EDGES = " .,;!?()'"
P_OPENING, P_REORDER, P_SYNONYM, P_CONTRACTION = 0.2, 0.3, 0.5, 0.5

Sentence = list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Words `start` to `stop` of sentence `sentence`, and the words that change the meaning there."""

    sentence: int
    start: int
    stop: int
    kind: str
    altered: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A passage with some places altered.

    Attributes:
        words: of each sentence.
        is_fixed: of each word: it is in a span.
        spans: the text of each place's span, without punctuation at its ends.
    """

    words: list[Sentence]
    is_fixed: list[list[bool]]
    spans: list[str]


def core(word: str) -> str:
    """A word without its punctuation."""
    found = _CORE.match(word)
    assert found is not None, word
    return found[2]


def places_of(passage: list[Sentence], kinds: tuple[str, ...], rng: random.Random) -> list[Place]:
    """Every place of these kinds, in order; the numbers that replace numbers are drawn."""
    found = []
    for number, words in enumerate(passage):
        for start, word in enumerate(words):
            if (form := _other_form(words, start, rng)) is not None and form[0] in kinds:
                kind, length, altered = form
                shaped = (_in_place_of(word, altered[0]), *altered[1:])
                found.append(
                    Place(sentence=number, start=start, stop=start + length, kind=kind, altered=shaped)
                )
    return found


def are_apart(places: list[Place]) -> bool:
    """No word is in two spans."""
    return all(
        a.sentence < b.sentence or a.stop + 1 <= b.start - 1 for a, b in zip(places, places[1:], strict=False)
    )


def _other_form(words: Sentence, at: int, rng: random.Random) -> tuple[str, int, tuple[str, ...]] | None:
    """(kind, number of words, altered words) of the place that starts at a word; None if none does."""
    word = core(words[at])
    lower = word.lower()
    for names in (NUMBERS, ORDINALS):
        if lower in names:
            return "number", 1, (rng.choice([other for other in names if other != lower]),)
    if word.isdigit() and len(word) <= 4 and word == str(int(word)):
        return "number", 1, (_other_number(int(word), rng),)
    if lower in ANTONYMS:
        return "word", 1, (ANTONYMS[lower],)
    if lower in MERGED:
        return "negation", 1, (MERGED[lower == MERGED[0]],)
    if words[at] in AUXILIARIES and at + 1 < len(words):  # in lower case: a question's verb is none
        following = words[at + 1]
        if following == "not":
            return ("negation", 2, (word,)) if at + 2 < len(words) else None
        return None if core(following) == "not" else ("negation", 1, (word, "not"))
    return None


def _other_number(value: int, rng: random.Random) -> str:
    """Another number with as many digits."""
    low, high = (0, 9) if value < 10 else (10 ** (len(str(value)) - 1), 10 ** len(str(value)) - 1)
    near = [other for other in range(max(low, value - 9), min(high, value + 9) + 1) if other != value]
    return str(rng.choice(near))


def _in_place_of(word: str, replacement: str) -> str:
    """The replacement with the punctuation and the capital of the word."""
    found = _CORE.match(word)
    assert found is not None, word
    before, old, after = found.groups()
    return f"{before}{replacement.capitalize() if old[:1].isupper() else replacement}{after}"


def version(passage: list[Sentence], places: list[Place], altered: set[int]) -> Version:
    """The passage with the places of these numbers altered."""
    words: list[Sentence] = []
    is_fixed: list[list[bool]] = []
    spans: list[str] = []
    for number, sentence in enumerate(passage):
        new: Sentence = []
        fixed: list[bool] = []
        ends: list[tuple[int, int]] = []
        done = 0
        for index, place in enumerate(places):
            if place.sentence == number:
                new += sentence[done : place.start]
                start = len(new)
                new += place.altered if index in altered else sentence[place.start : place.stop]
                ends.append((max(0, start - 1), len(new) + 1))
                done = place.stop
        new += sentence[done:]
        fixed = [any(start <= at < stop for start, stop in ends) for at in range(len(new))]
        spans += [quoted(new[start:stop]) for start, stop in ends]
        words.append(new)
        is_fixed.append(fixed)
    return Version(words=words, is_fixed=is_fixed, spans=spans)


def quoted(words: Sentence) -> str:
    """Words as a judgment quotes them."""
    return " ".join(words).strip(_EDGES)


def reworded(text: Version, rng: random.Random) -> list[str]:
    """The sentences of a version after harmless edits."""
    sentences = [
        " ".join(_harmless(words, fixed, rng)) for words, fixed in zip(text.words, text.is_fixed, strict=True)
    ]
    if rng.random() < P_REORDER:
        sentences.reverse()
    if rng.random() < P_OPENING:
        sentences[0] = rng.choice(OPENINGS) + sentences[0]
    return sentences


def _harmless(words: Sentence, is_fixed: list[bool], rng: random.Random) -> Sentence:
    new: Sentence = []
    at = 0
    while at < len(words):
        word, free = words[at], not is_fixed[at]
        short = CONTRACTIONS.get((word, core(words[at + 1]))) if at + 1 < len(words) else None
        if free and short and not is_fixed[at + 1] and rng.random() < P_CONTRACTION:
            new.append(_in_place_of(words[at + 1], short))
            at += 2
            continue
        synonym = SYNONYMS.get(core(word))
        new.append(_in_place_of(word, synonym) if free and synonym and rng.random() < P_SYNONYM else word)
        at += 1
    return new
