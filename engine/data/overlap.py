"""Near-duplicates: inside a set of pairs, and between a training and a test set.

The similarity of two texts is the Jaccard index of their sets of word 5-grams (lower-cased words without punctuation; a
text of fewer words is one gram). MinHash finds candidates with 128 permutations in 32 bands of 4, which misses a pair
of similarity 0.8 with probability (1 - 0.8^4)^32 < 1e-7, and one of 0.5 with 0.13. The similarity of every candidate is
then computed exactly, so there are no false matches.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from ralign.engine.data.pairs import Pair, prompt_text

NUM_GRAM_WORDS = 5
_NUM_BANDS, _NUM_ROWS = 32, 4
_PRIME = np.uint64((1 << 31) - 1)  # products of two numbers below it fit in 64 bits
_MAX_BUCKET = 50  # each member of a larger bucket, mostly copies, is compared with one other
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Two similar texts."""

    first: int  # index into the first (or only) list
    second: int  # index into the second list; inside one list, larger than `first`
    similarity: float


def pair_text(pair: Pair, *, whole: bool) -> str:
    """The text of a pair that is compared: the prompt, or the prompt and both responses, sorted."""
    if not whole:
        return prompt_text(pair)
    return "\n".join([prompt_text(pair), *sorted((pair.response_A, pair.response_B))])


def near_duplicates(texts: Sequence[str], *, threshold: float = 0.8) -> list[Match]:
    """Pairs of texts at least as similar as `threshold`, most similar first."""
    grams = [shingles(text) for text in texts]
    buckets = _buckets(grams)
    return _matches(grams, grams, _candidates(buckets), threshold)


def overlap(train: Sequence[str], test: Sequence[str], *, threshold: float = 0.8) -> list[Match]:
    """Texts of `train` (first) and `test` (second) at least as similar as `threshold`, most similar first."""
    train_grams, test_grams = [shingles(text) for text in train], [shingles(text) for text in test]
    of_train, of_test = _buckets(train_grams), _buckets(test_grams)
    found = {
        pair for key, seconds in of_test.items() if key in of_train for pair in _cross(of_train[key], seconds)
    }
    return _matches(train_grams, test_grams, found, threshold)


def shingles(text: str) -> np.ndarray:
    """[num_grams] uint64, sorted and unique: the hashes of the text's word 5-grams."""
    words = _WORD.findall(text.lower())
    if not words:
        return np.zeros(0, dtype=np.uint64)
    last = max(1, len(words) - NUM_GRAM_WORDS + 1)
    grams = (" ".join(words[start : start + NUM_GRAM_WORDS]) for start in range(last))
    digests = b"".join(hashlib.blake2b(gram.encode(), digest_size=8).digest() for gram in grams)
    return np.unique(np.frombuffer(digests, dtype=np.uint64))


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Shared grams over all grams; 0 for texts without words."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / max(len(first) + len(second) - shared, 1)


def _buckets(grams: Sequence[np.ndarray]) -> dict[tuple[int, bytes], list[int]]:
    """(band, its values) -> indices of the texts whose MinHash has these values in this band."""
    rng = np.random.default_rng(0)
    slopes = rng.integers(1, _PRIME, size=(_NUM_BANDS * _NUM_ROWS, 1), dtype=np.uint64)
    offsets = rng.integers(0, _PRIME, size=(_NUM_BANDS * _NUM_ROWS, 1), dtype=np.uint64)
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for index, hashes in enumerate(grams):
        if not len(hashes):
            continue
        minima = ((slopes * (hashes % _PRIME) + offsets) % _PRIME).min(axis=1).reshape(_NUM_BANDS, _NUM_ROWS)
        for band, values in enumerate(minima):
            buckets[band, values.tobytes()].append(index)
    return buckets


def _candidates(buckets: dict[tuple[int, bytes], list[int]]) -> Iterator[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    for members in buckets.values():
        if len(members) > _MAX_BUCKET:
            found.update(zip(members, members[1:], strict=False))
        else:
            found.update((a, b) for place, a in enumerate(members) for b in members[place + 1 :])
    yield from found


def _cross(firsts: list[int], seconds: list[int]) -> Iterator[tuple[int, int]]:
    """All pairs of a bucket's two sides; in a large bucket, each member with one of the other side."""
    if len(firsts) * len(seconds) <= _MAX_BUCKET**2:
        yield from ((first, second) for first in firsts for second in seconds)
        return
    yield from ((first, seconds[0]) for first in firsts)
    yield from ((firsts[0], second) for second in seconds)


def _matches(first_grams, second_grams, candidates, threshold: float) -> list[Match]:
    matches = [
        Match(first=first, second=second, similarity=similarity)
        for first, second in candidates
        if (similarity := jaccard(first_grams[first], second_grams[second])) >= threshold
    ]
    return sorted(matches, key=lambda match: (-match.similarity, match.first, match.second))
