"""A held-out test drawn from the pairs of a file.

All pairs of a prompt go to one side: a judge that was trained on a prompt is not tested on it. The draw is stratified
by source, so that a file of several sets, one after the other, gives a test of all of them. It depends on the seed and
on the prompts, not on the order of the lines. Training prompts that are nearly those of the test (`data.overlap`) are
left out of training.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ralign.engine.data.overlap import overlap
from ralign.engine.data.pairs import Pair, prompt_text
from ralign.engine.evaluation.records import subset_of
from ralign.engine.judging.metrics import prompt_key
from ralign.engine.runtime.errors import UserError

MAX_SIMILARITY = 0.8  # of a training prompt with one of the test: Jaccard index of their word 5-grams


class HeldOut(NamedTuple):
    """Both sides, each in the order of the given pairs."""

    train: list[Pair]
    test: list[Pair]
    similar: list[Pair]  # left out of both: their prompts are nearly those of the test


def hold_out(pairs: Sequence[Pair], num: int, seed: int) -> HeldOut:
    """Draw a test of at most `num` pairs, and of nearly as many where prompts have several.

    Raises:
        UserError: no prompt has few enough pairs to be held out, or no pair is left to train on.
    """
    prompts: dict[str, list[Pair]] = {}
    for pair in pairs:
        prompts.setdefault(prompt_key(pair.id, pair.conversations, pair.meta), []).append(pair)
    drawn = _draw(prompts, num, seed) if num < len(pairs) else set()
    test = [pair for pair in pairs if pair.id in drawn]
    rest = [pair for pair in pairs if pair.id not in drawn]
    close = _near(rest, test) if test else set()
    train = [pair for pair in rest if pair.id not in close]
    if not test or not train:
        raise UserError(
            f"cannot hold out {num} of {len(pairs)} pairs of {len(prompts)} prompts: all pairs of a prompt go to one"
            f" side, and of the others {len(close)} have nearly the prompts that are held out"
        )
    return HeldOut(train, test, [pair for pair in rest if pair.id in close])


def _draw(prompts: Mapping[str, Sequence[Pair]], num: int, seed: int) -> set[str]:
    """The ids of the pairs held out."""

    def order(text: str) -> bytes:
        return hashlib.blake2b(f"{seed} {text}".encode("utf-8", "backslashreplace"), digest_size=16).digest()

    strata: dict[str, list[str]] = {}
    for key in sorted(prompts, key=order):
        strata.setdefault(subset_of({"source": prompts[key][0].source}), []).append(key)
    sizes = {name: sum(len(prompts[key]) for key in keys) for name, keys in strata.items()}
    drawn: set[str] = set()
    # Each source has its share; then what single prompts left over, in which no source comes first.
    for name, quota in _quotas(sizes, num, order).items():
        _take(strata[name], prompts, quota, drawn)
    _take(sorted(set(prompts) - drawn, key=order), prompts, num - _count(drawn, prompts), drawn)
    return {pair.id for key in drawn for pair in prompts[key]}


def _quotas(sizes: Mapping[str, int], num: int, order) -> dict[str, int]:
    """`num` divided among the sources by the largest remainder; equal remainders in the drawn order."""
    total = sum(sizes.values())
    quotas = {name: num * size // total for name, size in sizes.items()}
    names = sorted(sizes, key=lambda name: (-(num * sizes[name] % total), order(name)))
    for name in names[: num - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def _take(keys: Sequence[str], prompts: Mapping[str, Sequence[Pair]], num: int, drawn: set[str]) -> None:
    """Add prompts in the given order while they fit into `num` pairs; one that does not is passed over."""
    for key in keys:
        if len(prompts[key]) <= num:
            drawn.add(key)
            num -= len(prompts[key])


def _count(keys: set[str], prompts: Mapping[str, Sequence[Pair]]) -> int:
    return sum(len(prompts[key]) for key in keys)


def _near(train: Sequence[Pair], test: Sequence[Pair]) -> set[str]:
    """The ids of the training pairs whose prompt is nearly one of the test's."""
    matches = overlap(
        [prompt_text(pair) for pair in train], [prompt_text(pair) for pair in test], threshold=MAX_SIMILARITY
    )
    return {train[match.first].id for match in matches}
