"""The verdict of a judgment: by the rule and form of training, and by the released evaluator's rule."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from ralign.engine.data.pairs import Side
from ralign.engine.runtime.errors import UserError

_BOXED = re.compile(r"\\boxed\{([AB])\}")
_BARE = re.compile(r"boxed\{([AB])\}")
THINKING, END_OF_THINKING = "<think>", "</think>"
# Turns of gpt-oss: only the final channel is the answer.
_CHANNEL, _FINAL_CHANNEL = "<|channel|>", "<|channel|>final<|message|>"
_END_OF_CHANNEL = re.compile(r"<\|(?:end|return|call|start)\|>")


@dataclass(frozen=True, kw_only=True)
class VerdictForm:
    """How a judgment states its verdict.

    Attributes:
        name: of the preset, or the user's pattern.
        find: every verdict in a text, in order.
    """

    name: str
    find: Callable[[str], list[Side]]


def verdict_of(text: str, form: "VerdictForm | None" = None) -> Side | None:
    r"""The one verdict of the visible text, stated any number of times; None without one, and with two different ones.

    A judge may think of one verdict and give the other, and may quote a verdict of a response: neither is its verdict.

    Args:
        form: ``\boxed{A}`` by default.
    """
    found = set((form or BOXED).find(visible(text)))
    return found.pop() if len(found) == 1 else None


def released_verdict(text: str) -> Side | None:
    r"""The first ``\boxed{A}`` or ``\boxed{B}``, thinking included; else the first without a backslash; else None."""
    found = _BOXED.search(text) or _BARE.search(text)
    return cast(Side, found.group(1)) if found else None


def all_verdicts(text: str) -> list[Side]:
    """Every boxed letter, in order, with or without the backslash."""
    return _BARE.findall(text)


def visible(text: str) -> str:
    """The part of a judgment that the MetaRM reads: the text after the last ``</think>`` (or all of it), stripped.

    A ``<think>`` in that text that is never closed (a truncated answer) ends the visible part. Of a text in channels,
    as gpt-oss writes it, the last final channel is visible.
    """
    if text.lstrip().startswith(_CHANNEL):
        text = text.rpartition(_FINAL_CHANNEL)[2] if _FINAL_CHANNEL in text else ""
        text = _END_OF_CHANNEL.split(text)[0]
    return text.rpartition(END_OF_THINKING)[2].partition(THINKING)[0].strip()


def read_form(setting: str, value: str) -> VerdictForm:
    """The form of this name, or the one that a regular expression describes.

    Args:
        setting: the setting's name, for messages.
        value: a name of `FORMS`, or a pattern whose one group is A, B, 1 or 2.

    Raises:
        UserError: neither.
    """
    if value in FORMS:
        return FORMS[value]
    names = ", ".join(FORMS)
    try:
        pattern = re.compile(value)
    except re.error as error:
        raise UserError(
            f"{setting}={value}: neither one of {names} nor a regular expression ({error})"
        ) from error
    if pattern.groups != 1:
        raise UserError(
            f"{setting}={value}: expected one of {names}, or a pattern with one group, for A, B, 1 or 2"
        )
    return VerdictForm(name=value, find=lambda text: _sides(pattern.findall(text)))


def other_forms(texts: Sequence[str], form: VerdictForm) -> str | None:
    """A warning where over half of the texts have no verdict in this form, with the forms that read more; else None."""
    num_read = sum(verdict_of(text, form) is not None for text in texts)
    if not texts or 2 * num_read >= len(texts):
        return None
    counts = {
        name: sum(verdict_of(text, other) is not None for text in texts) for name, other in FORMS.items()
    }
    better = [f"{name} reads {count}" for name, count in counts.items() if count > num_read]
    advice = f"; {', '.join(better)}" if better else "; no other form reads more"
    return (
        f"{len(texts) - num_read} of {len(texts)} judgments have no verdict in the form {form.name}{advice}"
    )


_SIDES: dict[str, Side] = {"A": "A", "B": "B", "1": "A", "2": "B"}


def _sides(letters: list[str]) -> list[Side]:
    return [_SIDES[letter.strip().upper()] for letter in letters if letter.strip().upper() in _SIDES]


def _by(pattern: str) -> Callable[[str], list[Side]]:
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda text: _sides(compiled.findall(text))


def _in_box(letter: str) -> Callable[[str], list[Side]]:
    r"""A letter in ``\boxed{}``, alone or with spaces, ``\text{}``, a noun and punctuation around it."""
    before = (
        r"\s{0,9}(?:\\(?:text|mathrm|mathbf|textbf)\{\s{0,9})?(?:(?i:response|answer|assistant)\s{1,9})?\(?"
    )
    after = r"[).:!]{0,3}\s{0,9}\}?\s{0,9}\}?"
    compiled = re.compile(rf"boxed\{{{before}({letter}){after}")

    def find(text: str) -> list[Side]:
        found = [
            match for match in compiled.finditer(text) if match.group().count("{") == match.group().count("}")
        ]
        return _sides([match.group(1) for match in found])

    return find


# "Response A: 7/10", "A's score is 7.5", "**A** = 8"
_NUMBER = r"[\s*]{{0,9}}(\d{{1,4}}(?:\.\d{{1,4}})?)"
_SCORE = r"\b{side}\b\**\s{{0,9}}(?:'s\s{{1,9}}score|score)?\**\s{{0,9}}(?:[:=]|is)" + _NUMBER
_SCORES = {side: re.compile(_SCORE.format(side=side)) for side in ("A", "B")}


def _by_scores(text: str) -> list[Side]:
    """The side with the higher score. Equal ones are no verdict; of repeated scores of a side the last counts."""
    scores = {side: pattern.findall(text)[-1:] for side, pattern in _SCORES.items()}
    if not (scores["A"] and scores["B"]):
        return []
    a, b = float(scores["A"][0]), float(scores["B"][0])
    return [] if a == b else ["A" if a > b else "B"]


FORMS = {
    form.name: form
    for form in (
        VerdictForm(name="boxed", find=_in_box("[AB]")),
        VerdictForm(name="boxed_index", find=_in_box("[12]")),
        VerdictForm(name="brackets", find=_by(r"\[\[\s{0,9}([AB])\s{0,9}\]\]")),
        VerdictForm(name="verdict_tag", find=_by(r"<verdict>\s{0,9}([AB])\s{0,9}</verdict>")),
        VerdictForm(name="answer_tag", find=_by(r"<answer>\s{0,9}([AB12])\s{0,9}</answer>")),
        VerdictForm(name="scores", find=_by_scores),
    )
}
BOXED = FORMS["boxed"]
