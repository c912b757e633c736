"""Pairs on real text: an oracle that reads the texts, judges that do not, twins, and splits."""

import random
import re
from dataclasses import replace
from difflib import SequenceMatcher

import pytest
from ralign.engine.data.pairs import SIDES, Pair, other_side
from ralign.engine.data.verdicts import verdict_of
from ralign.engine.judging.metarm import Outcome
from ralign.engine.runtime.errors import UserError
from ralign.recipes.real.corpus import ngrams, sentences
from ralign.recipes.real.edits import KINDS, places_of
from ralign.recipes.real.metarm import SpanMetaRM
from ralign.recipes.real.pairs import (
    TESTS,
    TWIN,
    RealTextConfig,
    build_pairs,
    decisive_start,
    passage_of,
    split_cue,
)
from ralign.recipes.real.words import CLOSINGS, CONTRACTIONS, OPENINGS, SYNONYMS

SIZES = {"num_warm_start": 200, "num_train": 400, "num_dev": 20, "num_test": 60}


@pytest.fixture(scope="module")
def splits(corpus) -> dict[str, list[Pair]]:
    return build_pairs(corpus, RealTextConfig(**SIZES))


def canonical(text: str) -> list[str]:
    """Words in lower case, with one word for each pair of synonyms and without contractions."""
    long_form = {short: " ".join(pair) for pair, short in CONTRACTIONS.items()}
    words = re.findall(r"[A-Za-z0-9'-]+", text)
    words = " ".join(long_form.get(word, word) for word in words).lower().split()
    return [min(word, SYNONYMS.get(word, word)) for word in words]


def faithful(source: str, response: str) -> bool:
    """Whether a response says what the source says."""
    parts, _ = split_cue(response)
    for opening in OPENINGS:
        parts[0] = parts[0].removeprefix(opening)
    return sorted(map(canonical, parts)) == sorted(map(canonical, sentences(source)))


def num_faults(source: str, response: str) -> int:
    """Number of words in which a response differs from the source, sentence by sentence, in any order."""
    parts, _ = split_cue(response)
    for opening in OPENINGS:
        parts[0] = parts[0].removeprefix(opening)

    def edits(a: str, b: str) -> int:
        matcher = SequenceMatcher(None, canonical(a), canonical(b), autojunk=False)
        return sum(max(a1 - a0, b1 - b0) for tag, a0, a1, b0, b1 in matcher.get_opcodes() if tag != "equal")

    return sum(min(edits(one, part) for part in parts) for one in sentences(source))


def test_an_oracle_that_reads_the_texts_is_right(splits):
    num_faithful = 0
    for pair in (pair for split in splits.values() for pair in split):
        source = passage_of(pair)
        far = {side: num_faults(source, getattr(pair, f"response_{side}")) for side in SIDES}
        assert far[pair.gt_label] < far[other_side(pair.gt_label)], pair
        assert verdict_of(pair.gt_judgment) == pair.gt_label
        num_faithful += faithful(source, getattr(pair, f"response_{pair.gt_label}"))
        assert not faithful(source, getattr(pair, f"response_{other_side(pair.gt_label)}"))
        assert faithful(source, getattr(pair, f"response_{pair.gt_label}")) != (
            "both differ" in pair.gt_judgment
        )
    assert num_faithful > 400  # the others have a second place that is wrong in both


def test_every_quotation_is_in_its_text(splits):
    for pair in (pair for split in splits.values() for pair in split):
        texts = [" ".join(part.split()) for part in (passage_of(pair), pair.response_A, pair.response_B)]
        lines = re.findall(r'Source "([^"]+)", A "([^"]+)", B "([^"]+)": ([^.]+)\.', pair.gt_judgment)
        assert 1 <= len(lines) <= 3
        for *spans, mark in lines:
            assert all(span in text for span, text in zip(spans, texts, strict=True)), pair
            same = {"A": spans[0] == spans[1], "B": spans[0] == spans[2]}
            assert mark == {(True, True): "same", (False, False): "both differ"}.get(
                (same["A"], same["B"]), f"{'B' if same['A'] else 'A'} differs"
            )
        assert pair.gt_judgment[decisive_start(pair.gt_judgment)] == other_side(pair.gt_label)


def test_no_judgment_mentions_a_cue(splits):
    for pair in (pair for split in splits.values() for pair in split):
        assert "- " not in pair.gt_judgment
        assert not any(closing in pair.gt_judgment for closing in CLOSINGS)


def test_a_judge_that_follows_the_cue_scores_the_agreement(splits):
    agreement = {"warm_start": 0.5, "train": 0.9, "dev": 0.9, "unbiased": 0.5, "adversarial": 0.1}
    for split, pairs in splits.items():
        right = 0
        for pair in pairs:
            (cued,) = [side for side in SIDES if split_cue(getattr(pair, f"response_{side}"))[1]]
            assert cued == pair.meta["cue_side"]
            right += cued == pair.gt_label
        assert right == round(agreement[split] * len(pairs)), split


def test_a_judge_that_does_not_read_the_source_is_at_chance(splits):
    """Rules that see both responses: the longer one, the one with more "not", the greater first word that differs."""
    pairs = [pair for split in ("warm_start", "unbiased") for pair in splits[split]]

    def words(pair: Pair, side: str) -> list[str]:
        return canonical(" ".join(split_cue(getattr(pair, f"response_{side}"))[0]))

    rules = {
        "longer": lambda a, b: len(a) - len(b),
        "more not": lambda a, b: a.count("not") - b.count("not"),
        "more all": lambda a, b: (sorted(a) > sorted(b)) - 0.5,
    }
    for name, rule in rules.items():
        scores = [rule(words(pair, "A"), words(pair, "B")) for pair in pairs]
        hits = [
            0.5 if not s else float((s > 0) == (pair.gt_label == "A"))
            for s, pair in zip(scores, pairs, strict=True)
        ]
        # Four standard deviations of a fair coin.
        assert abs(sum(hits) / len(hits) - 0.5) < 4 * 0.5 / len(hits) ** 0.5, name
    assert 0.38 < sum(pair.gt_label == "A" for pair in pairs) / len(pairs) < 0.62


def test_nothing_of_training_is_in_a_test(splits):
    passages = {name: [passage_of(pair) for pair in pairs] for name, pairs in splits.items()}
    every = [passage for part in passages.values() for passage in part]
    assert len(set(every)) == len(every)
    seen = {
        gram
        for name in ("train", "warm_start", "dev")
        for passage in passages[name]
        for gram in ngrams(passage)
    }
    for passage in (passage for name in TESTS for passage in passages[name]):
        assert len(ngrams(passage) & seen) < 0.7 * len(ngrams(passage)), passage


def test_the_same_corpus_and_seed_give_the_same_pairs(corpus, splits):
    assert build_pairs(corpus, RealTextConfig(**SIZES)) == splits
    assert build_pairs(corpus, RealTextConfig(**SIZES, seed=1)) != splits


def test_every_kind_of_alteration_is_there(splits):
    assert {pair.meta["kind"] for pair in splits["train"]} == {"number", "word", "negation"}
    assert {pair.meta["cue"] for pair in splits["train"]} == {"bullets", "polite"}
    assert {pair.gt_label for pair in splits["train"]} == {"A", "B"}


def test_one_kind_alone(corpus):
    pairs = build_pairs(
        corpus, RealTextConfig(num_warm_start=20, num_train=20, num_dev=5, num_test=5, kinds="number")
    )
    assert {pair.meta["kind"] for split in pairs.values() for pair in split} == {"number"}


def test_twins_have_the_cues_exchanged(splits):
    rule = SpanMetaRM()
    for pair in splits["train"]:
        twin = TWIN.make(pair)
        assert twin is not None and twin != pair
        assert TWIN.make(twin) == pair
        assert (twin.gt_label, twin.gt_judgment, twin.id) == (pair.gt_label, pair.gt_judgment, pair.id)
        assert twin.meta["cue_side"] == other_side(pair.meta["cue_side"])
        for side in SIDES:
            parts, cue = split_cue(getattr(pair, f"response_{side}"))
            assert split_cue(getattr(twin, f"response_{side}"))[0] == parts
            assert split_cue(getattr(twin, f"response_{other_side(side)}"))[1] == cue
        assert rule.outcome(twin.gt_judgment, pair.gt_judgment) is Outcome.CORRECT
    assert TWIN.make(replace(splits["train"][0], source="judgeworld")) is None


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_test": 0}, "num_test must be at least 1"),
        ({"cue_agreement": 0.4}, "cue_agreement must be from 0.5 to 1, got 0.4"),
        ({"kinds": "number,colour"}, "no kind 'colour'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, named):
    with pytest.raises(UserError, match=named):
        RealTextConfig(**settings)


def test_a_corpus_that_is_too_small_is_one_line(corpus):
    with pytest.raises(UserError, match="unbiased: the corpus has passages for .* of 100000 pairs"):
        build_pairs(corpus, RealTextConfig(num_test=100_000))


def test_openings_closings_and_synonyms_are_no_places():
    words = [*SYNONYMS, *" ".join([*OPENINGS, *CLOSINGS]).split()]
    rng = random.Random(0)
    for word in words:
        assert places_of([["they", word, "it"]], KINDS, rng) == [], word
