"""What each arm changes, and what it may not."""

import pytest
from ralign.engine.config.registry import ADVANTAGES, REWARDS
from ralign.engine.config.validation import validate
from ralign.engine.data.examples import Example
from ralign.engine.data.worlds.config import JudgeWorldConfig
from ralign.engine.data.worlds.judgeworld import build_judgeworld
from ralign.engine.judging.metarm import Outcome, RuleMetaRM
from ralign.engine.runtime.errors import UserError
from ralign.recipes.common import arms
from ralign.recipes.common.arms import ARMS, Flipped, read_arms
from ralign.recipes.r_align_mini import judgeworld_run

PAIRS = build_judgeworld(JudgeWorldConfig(edition=2, num_train=400, num_warm_start=1, num_dev=1, num_test=1))[
    "train"
]


def test_arms_are_named_once_with_commas():
    assert read_arms(" rlvr, r_align,") == ["rlvr", "r_align"]
    with pytest.raises(UserError, match="arms=rlvr,typo: no arm typo; there are rlvr, rlvr_twins"):
        read_arms("rlvr,typo")
    for text in ("", ",", "rlvr,rlvr"):
        with pytest.raises(UserError, match=f"arms={text}: name each arm once"):
            read_arms(text)


@pytest.mark.parametrize("name", list(ARMS))
def test_every_arm_has_settings_that_can_run(name):
    arm, run = ARMS[name], judgeworld_run()
    assert arm.reward in REWARDS.names and arm.advantages in ADVANTAGES.names
    run.algo.reward, run.algo.advantages, run.algo.couple = arm.reward, arm.advantages, arm.couple
    run.algo.partner = "cues" if arm.twins else "none"
    validate(run, 2)


def test_shuffled_goldens_are_other_pairs_of_the_same_label():
    examples = [Example(pair=pair, prompt_ids=None) for pair in PAIRS]
    shuffled = arms._shuffled(examples, seed=0)
    assert sorted(e.pair.gt_judgment for e in shuffled) == sorted(pair.gt_judgment for pair in PAIRS)
    moved = 0
    for example, pair in zip(shuffled, PAIRS, strict=True):
        assert example.pair.id == pair.id and example.pair.gt_judgment[-2] == pair.gt_label
        moved += example.pair.gt_judgment != pair.gt_judgment
    assert moved > 0.98 * len(PAIRS)


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_the_share_of_flipped_outcomes_is_the_given_one_and_a_text_has_one_outcome(share):
    noisy = Flipped(RuleMetaRM(), share, seed=3)
    judgments = [
        (pair, text) for pair in PAIRS for text in (pair.gt_judgment, "A is neat. \\boxed{A}", "\\boxed{B}")
    ]
    outcomes = [noisy.review(*case).result().outcome for case in judgments]
    assert outcomes == [noisy.review(*case).result().outcome for case in judgments]
    true = [RuleMetaRM().outcome(pair.gt_judgment, text) for pair, text in judgments]
    for outcome in (Outcome.CORRECT, Outcome.INCORRECT):
        flips = [got is not right for got, right in zip(outcomes, true, strict=True) if right is outcome]
        assert sum(flips) / len(flips) == pytest.approx(
            share, abs=4 * (share * (1 - share) / len(flips)) ** 0.5
        )
    others = [Flipped(RuleMetaRM(), share, seed=4).review(*case).result().outcome for case in judgments]
    assert others != outcomes
