"""Exchanges the responses of a pair, and with them the label and the names in the golden judgment.

`find_names` (`side_names.py`) finds the words of a golden judgment that name a response. Not every judgment can be
renamed reliably: `why_not_swapped` gives the reason why it may name the wrong response after a swap, and `swap_all`
drops such pairs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ralign.engine.data.pairs import Pair, other_side
from ralign.engine.data.side_names import find_names, speaks_of
from ralign.engine.data.verdicts import visible
from ralign.engine.data.worlds.judgeworld import has_oracle_judgment, oracle_judge

_OTHER = {"A": "B", "a": "b", "1": "2", "One": "Two", "1st": "2nd"}
_OTHER |= {"first": "second", "First": "Second", "FIRST": "SECOND"}
_OTHER |= {other: name for name, other in _OTHER.items()}
_CONTEXT = 25  # characters on each side of a doubt


@dataclass(frozen=True, slots=True)
class Renaming:
    """A text with the names of the responses exchanged, and its doubts."""

    text: str
    num_names: int  # including verdicts in boxes and double brackets
    kinds: frozenset[str]  # of the names other than verdicts: "bare", "response", ...
    doubts: tuple[str, ...]  # unchanged words that may name a response, with some context


def rename(text: str) -> Renaming:
    """`text` with the names of the two responses exchanged."""
    names, doubts = find_names(text)
    parts: list[str] = []
    end = 0
    for name in names:
        parts += [text[end : name.start], _OTHER[text[name.start : name.end]]]
        end = name.end
    return Renaming(
        text="".join([*parts, text[end:]]),
        num_names=len(names),
        kinds=frozenset(name.kind for name in names if name.kind != "verdict"),
        doubts=tuple(
            " ".join(text[max(0, doubt.start - _CONTEXT) : doubt.end + _CONTEXT].split()) for doubt in doubts
        ),
    )


def swap_names(text: str) -> tuple[str, int]:
    """`text` with the names of the two responses exchanged, and the number of names found in it."""
    renaming = rename(text)
    return renaming.text, renaming.num_names


def swap_sides(pair: Pair) -> Pair:
    """The pair with its responses in the other order and the same id.

    Also swapped are ``gt_label``, the names in ``gt_judgment`` and in ``meta["reviews"]``, and every side in ``meta``
    under a key that ends in ``_side``. A golden judgment of JudgeWorld, which lists both sides' values in order, is
    generated again. For other golden judgments, `why_not_swapped` reports the unreliable ones.
    """
    meta = {
        key: other_side(value) if key.endswith("_side") and value in ("A", "B") else value
        for key, value in pair.meta.items()
    }
    if isinstance(reviews := meta.get("reviews"), list):
        meta["reviews"] = [rename(review).text if isinstance(review, str) else review for review in reviews]
    swapped = replace(
        pair,
        response_A=pair.response_B,
        response_B=pair.response_A,
        gt_label=other_side(pair.gt_label),
        gt_judgment=rename(pair.gt_judgment).text,
        meta=meta,
    )
    if has_oracle_judgment(pair):
        return replace(swapped, gt_judgment=oracle_judge(swapped))
    return swapped


def why_not_swapped(pair: Pair) -> str | None:
    """Why the swapped pair's golden judgment may name the wrong response, or None if the swap is reliable.

    Only the part that the MetaRM reads is checked. The swap of a pair without a golden judgment is reliable.
    """
    golden = visible(pair.gt_judgment)
    if not golden or has_oracle_judgment(pair):
        return None
    renaming = rename(golden)
    if not renaming.kinds:
        return "names no response outside its verdict"
    if renaming.doubts:
        return f"may name a response in: {renaming.doubts[0]}"
    texts = [*(turn["content"] for turn in pair.conversations), pair.response_A, pair.response_B]
    for kind in sorted(renaming.kinds):
        if any(speaks_of(text, kind) for text in texts):
            thing = "a lone letter" if kind == "bare" else f"a {kind}"
            return f"names {thing}, which the prompt or a response uses with another meaning"
    return None


def swap_all(pairs: Iterable[Pair]) -> tuple[list[Pair], dict[str, str]]:
    """The swapped pairs in order, and id -> reason for the pairs that cannot be swapped reliably."""
    swapped: list[Pair] = []
    left_out: dict[str, str] = {}
    for pair in pairs:
        if reason := why_not_swapped(pair):
            left_out[pair.id] = reason
        else:
            swapped.append(swap_sides(pair))
    return swapped, left_out
