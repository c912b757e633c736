"""A pair with its responses in the other order: label, golden judgment and all that names a side follow.

Golden judgments name the responses in many ways: Response A, Assistant 1, Output (b), the second answer,
``\\boxed{A}``, a bare B. `swap_names` rewrites those, and leaves alone what only looks like them: the article
in "A better answer", vitamin B, Sagittarius A. A bare letter counts as a name where it starts a sentence and
a verb follows, or where it follows a mark of punctuation or one of the small words of `_BEFORE`.
"""

import re
from dataclasses import replace

from ralign.engine.data.pairs import Pair, other_side

_OTHER = {"A": "B", "B": "A", "a": "b", "b": "a", "1": "2", "2": "1"}
_OTHER |= {"first": "second", "second": "first", "First": "Second", "Second": "First"}
_OTHER |= {"FIRST": "SECOND", "SECOND": "FIRST"}

_NOUN = "response|assistant|output|answer|candidate|completion|reply|model"
_NUMBERED = "response|assistant|output|candidate|completion|reply|model"  # "answer 2" may be a result
_JOIN = r"(?:\s*(?:,|/|&|>|<|=)\s*|\s+(?:and|or|vs\.?|versus|over|than)\s+)"
_NAMES = re.compile(
    r"boxed\{(?P<boxed>[AB])\}"
    r"|\[\[(?P<bracketed>[AB])\]\]"
    rf"|\b(?i:{_NOUN})s?[\s_#:*-]{{0,4}}\(?(?P<letter>[AB])(?![\w-])"
    rf"|\b(?i:{_NOUN})s?\s{{0,2}}\((?P<small>[ab])\)(?:{_JOIN}\((?P<small2>[ab])\))?"
    rf"|\b(?:(?i:{_NUMBERED})s?|Answers?)(?:\s|\s?#|_)(?P<digit>[12])(?![\w-]|\.\d)"
    rf"(?:{_JOIN}#?(?P<digit2>[12])(?![\w-]|\.\d))?"
    rf"|\b(?P<ordinal>[Ff]irst|[Ss]econd|FIRST|SECOND)\s+(?i:{_NOUN})\b"
    r"|(?<![\w'’\"“.*-])(?P<bare>[AB])(?![\w-]|\.\w)"
)

_BEFORE = frozenset(
    "and or than that to over of by for with while whereas but because as is between both either neither nor "
    "from if in so since although though unlike like prefer prefers preferred choose chooses chosen pick picks "
    "favor favors favour favours vs versus against on when where why how what which does did makes made "
    "rank ranks rate rates therefore thus hence however overall meanwhile conversely".split()
)
_VERBS = frozenset(
    "is was has had does did can could would should will may might must also only never always just alone "
    "correctly incorrectly fails failed gave made wrote got did said lacks misses because and or but over wins "
    "won not clearly simply actually merely at in on".split()
)
_NO_VERBS = re.compile(r"(?:ss|us|is|series|means|species)$")
_WORD_BEFORE = re.compile(r"(\w+)\s*$")
_WORD_AFTER = re.compile(r"['’]?\)?\s*([A-Za-z]*)")


def swap_sides(pair: Pair) -> Pair:
    """The same pair, same id, with the responses in the other order.

    Follow: ``gt_label``, the names inside ``gt_judgment`` and inside ``meta["reviews"]``, and every string in
    ``meta`` under a key that ends in ``_side``. A golden judgment of JudgeWorld, which lists both sides'
    values in order, is written anew.
    """
    meta = {
        key: other_side(value) if key.endswith("_side") and value in ("A", "B") else value
        for key, value in pair.meta.items()
    }
    if "reviews" in meta:
        meta["reviews"] = [swap_names(review)[0] for review in meta["reviews"]]
    swapped = replace(
        pair,
        response_A=pair.response_B,
        response_B=pair.response_A,
        gt_label=other_side(pair.gt_label),
        gt_judgment=swap_names(pair.gt_judgment)[0],
        meta=meta,
    )
    if pair.source == "judgeworld" and pair.gt_judgment:
        from ralign.engine.data.judgeworld import oracle_judge

        return replace(swapped, gt_judgment=oracle_judge(swapped))
    return swapped


def swap_names(text: str) -> tuple[str, int]:
    """`text` with the names of the two responses exchanged, and the number of names found in it."""
    parts: list[str] = []
    end = num_names = 0
    for found in _NAMES.finditer(text):
        for group, name in found.groupdict().items():
            if name is None or (group == "bare" and not _names_a_side(text, found)):
                continue
            parts += [text[end : found.start(group)], _OTHER[name]]
            end = found.end(group)
            num_names += 1
    return "".join([*parts, text[end:]]), num_names


def _names_a_side(text: str, found: re.Match[str]) -> bool:
    """Whether a letter that stands alone means a response; the answer is the same for A and B."""
    before, after = text[max(0, found.start() - 40) : found.start()], text[found.end() : found.end() + 40]
    following = _WORD_AFTER.match(after)[1]
    previous = _WORD_BEFORE.search(before)
    if previous is not None:
        if following[:1].isupper():  # "in A Tale of Two Cities"
            return False
        return previous[1].lower() in _BEFORE
    if after[:2] in ("'s", "’s") or not following or not after[:1].isspace():
        return True
    return following in _VERBS or (following.endswith("s") and not _NO_VERBS.search(following))
