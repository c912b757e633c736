"""The arms of an experiment with judges: one warm start, and what each arm changes in its training.

An arm has the budget of every other: the same number of steps, prompts and samples.
"""

import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from ralign.engine.data.examples import Example
from ralign.engine.data.pairs import Pair
from ralign.engine.judging.metarm import MetaRM, Outcome, Review
from ralign.engine.runtime.errors import UserError
from ralign.engine.training.demonstrations import warm_start_on_pairs
from ralign.engine.training.genrm import GenRM
from ralign.engine.training.loop import reinforce, warm_start


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """What an arm changes; the defaults are R-Align.

    Attributes:
        method: RL; or SFT on the golden judgments of the training pairs; or SFT on the model's own good judgments.
        shuffled: golden judgments are exchanged between training pairs of one label: they must not help.
        flipped: share of the MetaRM's outcomes in training that are the opposite.
    """

    method: Literal["rl", "golden", "rejection"] = "rl"
    reward: str = "r_align"
    twins: bool = False
    couple: bool = False
    advantages: str = "grpo"
    shuffled: bool = False
    flipped: float = 0.0


ARMS: dict[str, Arm] = {
    "rlvr": Arm(reward="label"),
    "rlvr_twins": Arm(reward="label", twins=True),
    "r_align": Arm(),
    "r_align_twins": Arm(twins=True),
    "rlvr_dr_grpo": Arm(reward="label", advantages="dr_grpo"),
    "r_align_dr_grpo": Arm(advantages="dr_grpo"),
    "r_align_twins_dr_grpo": Arm(twins=True, advantages="dr_grpo"),
    "rlvr_coupled": Arm(reward="label", twins=True, couple=True, advantages="dr_grpo"),
    "r_align_coupled": Arm(twins=True, couple=True, advantages="dr_grpo"),
    "sft_golden": Arm(method="golden"),
    "rejection": Arm(method="rejection"),
    "shuffled": Arm(shuffled=True),
    "flipped_05": Arm(flipped=0.05),
    "flipped_10": Arm(flipped=0.1),
    "flipped_20": Arm(flipped=0.2),
}


def read_arms(text: str) -> list[str]:
    """The names in a list with commas.

    Raises:
        UserError: one is unknown or there twice, or there is none.
    """
    names = [name for name in text.replace(" ", "").split(",") if name]
    for name in names:
        if name not in ARMS:
            raise UserError(f"arms={text}: no arm {name}; there are {', '.join(ARMS)}")
    if not names or len(set(names)) < len(names):
        raise UserError(f"arms={text}: name each arm once")
    return names


def train_arm(
    genrm: GenRM,
    name: str,
    start: Path,
    train: Sequence[Example],
    dev: Sequence[Example],
    partner: str,
) -> Path:
    """Train one arm from `start`; returns the exported folder. Collective.

    Args:
        train, dev: the training pairs, and held-out ones for `eval.every`.
        partner: the kind of twins, for arms with twins.
    """
    arm, run = ARMS[name], genrm.run
    if arm.method != "rl":
        return _supervise(genrm, name, arm, start, train)
    algo = replace(
        run.algo,
        reward=arm.reward,
        partner=partner if arm.twins else "none",
        couple=arm.couple,
        advantages=arm.advantages,
    )
    metarm = genrm.metarm
    if arm.flipped:
        assert metarm is not None, "an arm with flipped outcomes has a MetaRM"
        metarm = Flipped(metarm, arm.flipped, run.seed)
    mine = GenRM(genrm.session, replace(run, algo=algo), metarm)
    mine.eval_metarm = genrm.eval_metarm  # flipped outcomes are for training only
    task = mine.task(_shuffled(train, run.seed) if arm.shuffled else train)
    return reinforce(genrm.session, mine.run, name, start, task, after_step=mine.watch(dev))


def _supervise(genrm: GenRM, name: str, arm: Arm, start: Path, train: Sequence[Example]) -> Path:
    """SFT with the number of judgments that RL prompts see: on golden ones, or on the model's own good ones."""
    run, session = genrm.run, genrm.session
    num_pairs = min(run.num_steps * run.algo.num_prompts, len(train))
    sft = replace(
        run.sft,
        num_steps=run.num_steps,
        num_samples=run.algo.num_prompts,
        num_pairs=num_pairs,
        competence=0.0,
        source="rejection" if arm.method == "rejection" else "golden",
        optim=run.optim,
    )
    mine = GenRM(session, replace(run, sft=sft), genrm.metarm, genrm.eval_metarm)
    session.load(start)
    if arm.method == "rejection":
        return warm_start_on_pairs(mine, train, name)
    chosen = train[:num_pairs]
    return warm_start(session, mine.run, name, chosen, [example.pair.gt_judgment for example in chosen])


def _shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    """The examples with the golden judgments exchanged between pairs of the same label."""
    shuffled = list(examples)
    rng = np.random.default_rng([seed, 17])
    for side in ("A", "B"):
        places = [i for i, example in enumerate(examples) if example.pair.gt_label == side]
        for place, other in zip(places, rng.permutation(places), strict=True):
            pair = replace(examples[place].pair, gt_judgment=examples[other].pair.gt_judgment)
            shuffled[place] = replace(examples[place], pair=pair)
    return shuffled


class Flipped(MetaRM):
    """A MetaRM whose outcome is the opposite in a share of the reviews, always the same one for the same text."""

    def __init__(self, metarm: MetaRM, share: float, seed: int):
        self.metarm, self.share, self.seed = metarm, share, seed

    def review(self, pair: Pair, judgment: str) -> Future[Review]:
        review = self.metarm.review(pair, judgment)
        digest = hash_of(f"{self.seed} {pair.id} {judgment}")
        if digest >= self.share:
            return review
        flipped: Future[Review] = Future()
        found = review.result()  # of a rule: at once
        flipped.set_result(replace(found, outcome=_OPPOSITE[found.outcome]))
        return flipped


_OPPOSITE: Mapping[Outcome, Outcome] = {
    Outcome.CORRECT: Outcome.INCORRECT,
    Outcome.INCORRECT: Outcome.CORRECT,
}


def hash_of(text: str) -> float:
    """A number from 0 to 1 that depends on the text alone."""
    return zlib.crc32(text.encode()) / 2**32
