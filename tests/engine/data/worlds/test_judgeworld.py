import re
from collections import Counter

import pytest
from ralign.engine.algorithms.rewards import R_ALIGN, score
from ralign.engine.data.pairs import SIDES, other_side, prompt_text, read_pairs, write_pairs
from ralign.engine.data.verdicts import verdict_of
from ralign.engine.data.worlds.judgeworld import (
    TESTS,
    JudgeWorldConfig,
    build_judgeworld,
    cue_judge,
    oracle_judge,
    warm_start_judgments,
)
from ralign.engine.data.worlds.words import VALUES
from ralign.engine.judging.metarm import Outcome, RuleMetaRM, decisive_factors
from ralign.engine.runtime.errors import UserError

CONFIG = JudgeWorldConfig(
    num_train=3000, num_warm_start=1000, num_dev=200, num_test=400, cue_agreement=0.95, seed=5
)
WORLD = build_judgeworld(CONFIG)
PAIRS = [pair for split in WORLD.values() for pair in split]


def judge_split(judge, split):
    judgments = [judge(pair) for pair in WORLD[split]]
    verdicts = [verdict_of(text) for text in judgments]
    labels = [pair.gt_label for pair in WORLD[split]]
    reviews = [
        RuleMetaRM().outcome(pair.gt_judgment, text)
        for pair, text in zip(WORLD[split], judgments, strict=True)
    ]
    outcomes = [
        outcome if verdict == label else Outcome.SKIPPED
        for outcome, verdict, label in zip(reviews, verdicts, labels, strict=True)
    ]
    return score(R_ALIGN, verdicts, labels, outcomes)


@pytest.mark.parametrize("split", TESTS)
def test_the_oracle_is_right_for_the_right_reason(split):
    rewards = judge_split(oracle_judge, split)
    assert (rewards.l_acc, rewards.s_corr, rewards.f_score) == (1, 0, 1)


@pytest.mark.parametrize(
    ("split", "l_acc"), [("in_distribution", 0.95), ("unbiased", 0.5), ("adversarial", 0.05)]
)
def test_the_cue_judge_is_right_as_often_as_the_cue_and_never_for_the_right_reason(split, l_acc):
    rewards = judge_split(cue_judge, split)
    assert rewards.l_acc == pytest.approx(l_acc, abs=1e-9)
    assert rewards.s_corr == 1


def test_the_golden_judgment_is_what_reading_the_texts_gives():
    assert all(oracle_judge(pair) == pair.gt_judgment for pair in PAIRS)


def test_exactly_one_response_differs_from_the_note_in_exactly_the_planted_item():
    for pair in PAIRS:
        facts = {
            side: dict(re.findall(r"The (\w+) is (\w+)", text))
            for side, text in (("note", prompt_text(pair)), ("A", pair.response_A), ("B", pair.response_B))
        }
        assert list(facts["note"]) == list(facts["A"]) == list(facts["B"])
        side, item = pair.meta["defect_side"], pair.meta["item"]
        assert facts[pair.gt_label] == facts["note"]
        assert facts[side] == facts["note"] | {item: facts[side][item]} != facts["note"]
        assert facts["note"][item] == pair.meta["should_be"] and side != pair.gt_label


@pytest.mark.parametrize("max_faults", [2, 3])
def test_with_several_faults_the_golden_judgment_tells_each_one_that_decides(max_faults):
    config = JudgeWorldConfig(num_train=3000, num_warm_start=1, num_dev=1, num_test=1, max_faults=max_faults)
    pairs = build_judgeworld(config)["train"]
    nums = Counter()
    for pair in pairs:
        note, a, b = (
            dict(re.findall(r"The (\w+) is (\w+)", text))
            for text in (prompt_text(pair), pair.response_A, pair.response_B)
        )
        wrong = {
            side: {item for item in note if told[item] != note[item]} for side, told in (("A", a), ("B", b))
        }
        worse, better = wrong[pair.meta["defect_side"]], wrong[pair.gt_label]
        nums[len(worse), len(better)] += 1
        assert decisive_factors(pair.gt_judgment) == {
            (side, item, note[item]) for side in SIDES for item in wrong[side] - wrong[other_side(side)]
        }
        marks = pair.gt_judgment.partition(".")[0].split(" ")[5::5]
        assert marks == [
            "both"
            if item in wrong["A"] & wrong["B"]
            else next((s for s in SIDES if item in wrong[s]), "same")
            for item in note
        ]
        assert oracle_judge(pair) == pair.gt_judgment and verdict_of(pair.gt_judgment) == pair.gt_label
    kinds = [(m, n) for m in range(1, max_faults + 1) for n in range(m)]
    assert set(nums) == set(kinds)
    assert all(num == pytest.approx(3000 / len(kinds), rel=0.2) for num in nums.values())
    assert sum(pair.meta["cue_side"] == pair.gt_label for pair in pairs) == 2850


def test_cue_and_label_say_nothing_of_the_defect_but_for_the_agreement():
    train = WORLD["train"]
    assert sum(pair.gt_label == "A" for pair in train) == pytest.approx(1500, abs=120)
    assert sum(pair.meta["cue_side"] == "A" for pair in train) == pytest.approx(1500, abs=120)
    assert sum(pair.meta["cue_side"] == pair.gt_label for pair in train) == 2850
    assert sum(pair.meta["cue_side"] == pair.gt_label for pair in WORLD["warm_start"]) == 500
    for item in VALUES:
        assert sum(pair.meta["item"] == item for pair in train) == pytest.approx(3000 / len(VALUES), rel=0.25)
    first = sum(prompt_text(pair).split()[5] == pair.meta["item"] for pair in train)
    assert first == pytest.approx(3000 / CONFIG.num_facts, rel=0.15)


def test_no_prompt_occurs_twice_and_ids_are_unique():
    assert len({prompt_text(pair) for pair in PAIRS}) == len({pair.id for pair in PAIRS}) == len(PAIRS)


def test_the_same_seed_gives_the_same_world_and_tests_do_not_depend_on_the_size_of_training():
    larger = JudgeWorldConfig(
        num_train=3100, num_warm_start=900, num_dev=200, num_test=400, cue_agreement=0.95, seed=5
    )
    again = build_judgeworld(CONFIG)
    other = build_judgeworld(JudgeWorldConfig(num_train=100, num_warm_start=100, seed=6))
    assert again == WORLD
    assert all(build_judgeworld(larger)[split] == WORLD[split] for split in TESTS)
    assert other["unbiased"][:400] != WORLD["unbiased"]


def test_pairs_fit_the_released_schema(tmp_path):
    write_pairs(tmp_path / "dev.jsonl", WORLD["dev"])
    assert read_pairs(tmp_path / "dev.jsonl") == WORLD["dev"]


def test_the_warm_start_mixes_in_the_share_asked_for():
    train = WORLD["train"]
    judgments = warm_start_judgments(train, golden_share=0.3, seed=1)
    golden = [text == pair.gt_judgment for text, pair in zip(judgments, train, strict=True)]
    assert sum(golden) == pytest.approx(900, abs=100)
    cue = [text == cue_judge(pair) for text, pair in zip(judgments, train, strict=True)]
    assert all(g != c for g, c in zip(golden, cue, strict=True))
    assert judgments == warm_start_judgments(train, golden_share=0.3, seed=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_train": 0},
        {"num_warm_start": 0},
        {"num_test": -1},
        {"cue_agreement": 0.4},
        {"cue_agreement": 1.1},
        {"num_facts": 0},
        {"num_facts": 9},
        {"num_values": 1},
        {"num_values": 7},
        {"num_facts": 1},
        {"max_faults": 0},
        {"max_faults": 4},
    ],
)
def test_an_impossible_world_is_refused(wrong):
    with pytest.raises(UserError):
        JudgeWorldConfig(**wrong)
