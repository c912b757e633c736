"""Judges that know parts of a pair score on the second edition what theory says."""

import random
import re
from collections import Counter

import pytest
from ralign.engine.algorithms.rewards import R_ALIGN, score
from ralign.engine.config.registry import TWINS
from ralign.engine.data.pairs import other_side, prompt_text
from ralign.engine.data.swap import swap_sides
from ralign.engine.data.verdicts import verdict_of
from ralign.engine.data.worlds.config import TESTS, JudgeWorldConfig
from ralign.engine.data.worlds.judgeworld import build_judgeworld, cue_judge, oracle_judge
from ralign.engine.data.worlds.second_edition import _MEANING
from ralign.engine.data.worlds.surface import Surface, facts_of, surface_of, write
from ralign.engine.data.worlds.words import PARAPHRASES
from ralign.engine.judging.metarm import Outcome, RuleMetaRM
from ralign.engine.judging.second_edition_rule import evidence_of, factors_of
from ralign.engine.runtime.errors import UserError

CONFIG = JudgeWorldConfig(edition=2, num_train=3000, num_warm_start=1000, num_dev=200, num_test=400, seed=5)
WORLD = build_judgeworld(CONFIG)
PAIRS = [pair for split in WORLD.values() for pair in split]


def judge_split(judge, split):
    judgments = [judge(pair) for pair in WORLD[split]]
    verdicts = [verdict_of(text) for text in judgments]
    labels = [pair.gt_label for pair in WORLD[split]]
    outcomes = [
        RuleMetaRM().outcome(pair.gt_judgment, text) if verdict == pair.gt_label else Outcome.SKIPPED
        for pair, text, verdict in zip(WORLD[split], judgments, verdicts, strict=True)
    ]
    return score(R_ALIGN, verdicts, labels, outcomes)


@pytest.mark.parametrize("split", TESTS)
def test_the_oracle_is_right_for_the_right_reason(split):
    assert all(oracle_judge(pair) == pair.gt_judgment for pair in WORLD[split])
    rewards = judge_split(oracle_judge, split)
    assert (rewards.l_acc, rewards.s_corr, rewards.f_score) == (1, 0, 1)


@pytest.mark.parametrize(
    ("split", "l_acc"), [("in_distribution", 0.95), ("unbiased", 0.5), ("adversarial", 0.05)]
)
def test_who_follows_the_main_cue_is_right_as_often_as_it_and_never_for_the_right_reason(split, l_acc):
    rewards = judge_split(cue_judge, split)
    assert rewards.l_acc == pytest.approx(l_acc, abs=1e-9) and rewards.s_corr == 1


@pytest.mark.parametrize(
    ("cue", "shares"),
    [
        ("cue_side", {"train": 0.95, "unbiased": 0.5, "adversarial": 0.05, "warm_start": 0.5}),
        ("closing_side", {"train": 0.85, "unbiased": 0.5, "adversarial": 0.15, "warm_start": 0.5}),
        ("opening_side", {"train": 0.75, "unbiased": 0.5, "adversarial": 0.25, "warm_start": 0.5}),
    ],
)
def test_each_cue_agrees_with_the_label_in_its_share_and_is_on_the_side_that_meta_names(cue, shares):
    feature = {"cue_side": "bullets", "closing_side": "closing", "opening_side": "opening"}[cue]
    for split, share in shares.items():
        agree = [pair.meta[cue] == pair.gt_label for pair in WORLD[split]]
        assert sum(agree) / len(agree) == pytest.approx(share, abs=1e-9)
    for pair in PAIRS:
        side = {True: "A", False: "B"}[getattr(surface_of(pair.response_A), feature)]
        other = pair.response_B if side == "A" else pair.response_A
        assert side == pair.meta[cue] and not getattr(surface_of(other), feature)


def differing(pair, *, in_meaning: bool):
    a, b = facts_of(pair.response_A), facts_of(pair.response_B)
    assert list(a) == list(dict.fromkeys(a)) and set(a) == set(b) == set(facts_of(prompt_text(pair)))
    word = _MEANING.__getitem__ if in_meaning else str
    return [item for item in a if word(a[item]) != word(b[item])]


@pytest.mark.parametrize("in_meaning", [False, True])
def test_who_knows_the_label_and_the_differences_alone_names_the_reason_at_most_in_half_of_the_pairs(
    in_meaning,
):
    """The best that such a judge can do: the evidence of a reader, and one of the differing items as the reason."""
    rng = random.Random(0)

    def judge(pair, side):
        item = rng.choice(differing(pair, in_meaning=in_meaning))
        stated = facts_of(pair.response_A if side == "A" else pair.response_B)
        note = facts_of(prompt_text(pair))
        evidence = re.match(r"Facts:[^.]*\.", pair.gt_judgment).group()
        reason = f"{side} is wrong: {item} is {stated[item]}, should be {note[item]}."
        return f"{evidence} {reason} \\boxed{{{other_side(side)}}}"

    with_label = judge_split(lambda pair: judge(pair, other_side(pair.gt_label)), "train")
    assert with_label.l_acc == 1 and with_label.f_score <= 0.5 + 0.03  # three standard errors
    without = judge_split(lambda pair: judge(pair, rng.choice("AB")), "train")
    assert without.l_acc == pytest.approx(0.5, abs=0.04) and without.f_score <= 0.27


def test_every_pair_has_a_fact_that_is_wrong_in_both_responses_in_different_ways():
    for pair in PAIRS:
        note, a, b = (facts_of(text) for text in (prompt_text(pair), pair.response_A, pair.response_B))
        meant = {item: (_MEANING[a[item]], _MEANING[b[item]]) for item in note}
        assert any(len({note[item], *meant[item]}) == 3 for item in note)


def test_another_word_for_a_value_is_as_frequent_in_right_as_in_wrong_facts():
    num = Counter()
    for pair in PAIRS:
        note = facts_of(prompt_text(pair))
        for text in (pair.response_A, pair.response_B):
            for item, word in facts_of(text).items():
                num[_MEANING[word] == note[item], word == _MEANING[word]] += 1
    for right in (True, False):
        share = num[right, False] / (num[right, False] + num[right, True])
        assert share == pytest.approx(CONFIG.paraphrase_share, abs=0.02)


def test_words_are_distinct():
    words = [word for values in PARAPHRASES.values() for pair in values.items() for word in pair]
    assert len(set(words) | set(PARAPHRASES)) == len(words) + len(PARAPHRASES)
    assert all(re.fullmatch(r"\w+", word) for word in words)


@pytest.mark.parametrize("bullets", [True, False])
@pytest.mark.parametrize("opening", [True, False])
@pytest.mark.parametrize("closing", [True, False])
def test_a_surface_is_read_as_it_was_written(bullets, opening, closing):
    facts = {"pet": "cat", "day": "Fri"}
    surface = Surface(bullets=bullets, opening=opening, closing=closing)
    assert surface_of(write(facts, surface)) == surface and facts_of(write(facts, surface)) == facts


def test_the_twin_has_the_cues_exchanged_and_nothing_else():
    for pair in PAIRS:
        twin = TWINS.load("cues").make(pair)
        assert twin.meta["cue_side"] != pair.meta["cue_side"] and twin.gt_label == pair.gt_label
        assert oracle_judge(twin) == pair.gt_judgment == twin.gt_judgment
        assert verdict_of(cue_judge(twin)) != verdict_of(cue_judge(pair))
        assert TWINS.load("cues").make(twin) == pair
    assert not TWINS.load("cues").swaps_sides


def test_a_pair_of_another_source_has_no_twin_by_cues():
    pair = PAIRS[0]
    assert (
        TWINS.load("cues").make(
            type(pair)(**{**{f: getattr(pair, f) for f in pair.__slots__}, "source": "x"})
        )
        is None
    )


def test_the_first_edition_has_twins_by_cues_too():
    pair = build_judgeworld(JudgeWorldConfig(num_train=9, num_warm_start=1, num_dev=1, num_test=1))["train"][
        0
    ]
    twin = TWINS.load("cues").make(pair)
    assert (
        surface_of(twin.response_A) == surface_of(pair.response_B) and oracle_judge(twin) == pair.gt_judgment
    )


def test_a_swapped_pair_has_its_own_golden_judgment():
    for pair in PAIRS[:50]:
        swapped = swap_sides(pair)
        assert swapped.gt_judgment == oracle_judge(swapped) != pair.gt_judgment
        assert swapped.meta["closing_side"] == other_side(pair.meta["closing_side"])


@pytest.mark.parametrize("max_faults", [2, 3])
def test_with_several_faults_each_decisive_one_is_told(max_faults):
    config = JudgeWorldConfig(
        edition=2, num_facts=4, max_faults=max_faults, num_train=2000, num_warm_start=1, num_dev=1, num_test=1
    )
    nums = Counter()
    for pair in build_judgeworld(config)["train"]:
        factors = factors_of(pair.gt_judgment)
        worse = sum(factor.side != pair.gt_label for factor in factors)
        nums[worse, len(factors) - worse] += 1
        marks = [row[3] for row in evidence_of(pair.gt_judgment).values()]
        assert "both" in marks and len(factors) == sum(mark in "AB" for mark in marks)
    expected = {(w, b) for w in range(1, max_faults + 1) for b in range(w) if w + b <= 3}
    assert set(nums) == expected


def test_the_same_settings_give_the_same_pairs_and_another_seed_gives_others():
    small = {"edition": 2, "num_train": 20, "num_warm_start": 2, "num_dev": 2, "num_test": 2}
    first = build_judgeworld(JudgeWorldConfig(**small))
    assert first == build_judgeworld(JudgeWorldConfig(**small))
    assert first["train"] != build_judgeworld(JudgeWorldConfig(**small, seed=1))["train"]
    assert len({prompt_text(pair) for pair in PAIRS}) == len(PAIRS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"edition": 3}, "edition must be 1 or 2, got 3"),
        ({"edition": 2, "num_values": 2}, "num_values must be from 3 to 5, got 2"),
        ({"edition": 2, "num_facts": 1}, "num_facts must be from 2 to 8, got 1"),
        ({"edition": 2, "max_faults": 3}, "at most 2, got 3"),
        ({"closing_agreement": 0.4}, "closing_agreement must be from 0.5 to 1, got 0.4"),
        ({"paraphrase_share": 1.5}, "paraphrase_share must be from 0 to 1, got 1.5"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        JudgeWorldConfig(**settings)
