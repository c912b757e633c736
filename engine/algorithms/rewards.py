"""From verdicts and MetaRM outcomes to rewards.

A sample's reward is a value; or it is *invalid* (no verdict could be read), which has a reward of its own; or
the *judge failed* (the MetaRM gave no usable answer), and the sample is masked out everywhere and counted.

- ``label`` (RLVR): 1 if the verdict equals the label, else 0.
- ``r_align``: 1 if the verdict equals the label and the MetaRM finds the rationale Correct, else 0.

With `partners` (both orders of a pair were judged, and sample k of one order goes with sample k of the other) a
sample is paid only if its partner earns the same: a judge that looks at the order earns nothing.

The MetaRM is asked about label-correct samples only. Under ``label`` its outcomes change no reward; they are
counted, so that the share of spurious judgments can be watched.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from ralign.engine.judging.judge import JudgeStopped
from ralign.engine.judging.metarm import Outcome
from ralign.engine.runtime.errors import UserError

RewardKind = Literal["label", "r_align"]
MIN_ASKED = 8  # of fewer samples no share is taken
REWARD_KINDS: tuple[RewardKind, ...] = ("label", "r_align")


@dataclass(kw_only=True, slots=True)
class Rewards:
    """Rewards of a batch and what they were made of."""

    values: np.ndarray  # [num_samples] float32; 0 where not valid
    valid: np.ndarray  # [num_samples] bool; False where the judge failed
    num_samples: int
    num_label_correct: int
    num_invalid: int  # no verdict could be read
    num_judge_failed: int  # label right, MetaRM asked, no usable answer
    num_aligned: int  # label right, rationale Correct
    num_spurious: int  # label right, rationale Incorrect
    swap_consistency: float = math.nan  # share of couples that name the same response in both orders

    @property
    def num_asked(self) -> int:
        """Samples that the MetaRM was asked about."""
        return self.num_aligned + self.num_spurious + self.num_judge_failed

    @property
    def l_acc(self) -> float:
        """Label accuracy: right verdicts over all samples; an unreadable verdict is wrong."""
        return _ratio(self.num_label_correct, self.num_samples)

    @property
    def s_corr(self) -> float:
        """Spurious correctness: Incorrect over (Correct + Incorrect); NaN if the MetaRM judged none."""
        return _ratio(self.num_spurious, self.num_spurious + self.num_aligned)

    @property
    def f_score(self) -> float:
        """Correct over all samples but those where the judge failed."""
        return _ratio(self.num_aligned, self.num_samples - self.num_judge_failed)


def score(
    kind: RewardKind,
    verdicts: Sequence[str | None],
    labels: Sequence[str],
    outcomes: Sequence[Outcome] | None = None,
    *,
    invalid_reward: float = 0.0,
    partners: Sequence[int] | None = None,
) -> Rewards:
    """The rewards of a batch; all sequences have one entry a sample.

    `outcomes` are the MetaRM's, `SKIPPED` where it was not asked; ``label`` does without them. `partners` gives
    for each sample the index of the one that it must agree with. Raises `UserError` for an unknown kind, and for
    ``r_align`` without outcomes.
    """
    if kind not in REWARD_KINDS:
        raise UserError(f"the reward must be one of {', '.join(REWARD_KINDS)}, got {kind!r}")
    if outcomes is None:
        if kind == "r_align":
            raise UserError("the reward r_align needs a MetaRM")
        outcomes = [Outcome.SKIPPED] * len(verdicts)
    assert len(verdicts) == len(labels) == len(outcomes), (len(verdicts), len(labels), len(outcomes))
    invalid = np.array([verdict is None for verdict in verdicts], dtype=bool)
    correct = np.array([v == label for v, label in zip(verdicts, labels, strict=True)], dtype=bool)
    aligned = correct & np.array([outcome is Outcome.CORRECT for outcome in outcomes], dtype=bool)
    spurious = correct & np.array([outcome is Outcome.INCORRECT for outcome in outcomes], dtype=bool)
    failed = correct & np.array([outcome.failed for outcome in outcomes], dtype=bool)
    earned, unknown = (correct, np.zeros_like(correct)) if kind == "label" else (aligned, failed)
    swap_consistency = math.nan
    if partners is not None:
        # Unknown only if it hangs on the judge: with a partner that earned nothing, there is nothing to earn.
        maybe, others = earned | unknown, np.asarray(partners)
        unknown = maybe & maybe[others] & (unknown | unknown[others])
        earned = earned & earned[others]
        same = correct == correct[others]  # right in both orders, or wrong in both: the same response
        swap_consistency = float((same & ~invalid & ~invalid[others]).mean())
    values = (earned & ~unknown).astype(np.float32)
    values[invalid] = invalid_reward
    valid = ~unknown
    return Rewards(
        values=values,
        valid=valid,
        num_samples=len(verdicts),
        num_label_correct=int(correct.sum()),
        num_invalid=int(invalid.sum()),
        num_judge_failed=int(failed.sum()),
        num_aligned=int(aligned.sum()),
        num_spurious=int(spurious.sum()),
        swap_consistency=swap_consistency,
    )


def check_failures(rewards: Rewards, max_failed_share: float) -> None:
    """Raises JudgeStopped when the MetaRM failed on too many of a step's samples to learn from the rest."""
    failed, asked = rewards.num_judge_failed, rewards.num_asked
    if asked >= MIN_ASKED and failed > max_failed_share * asked:
        raise JudgeStopped(
            f"the MetaRM gave no usable answer on {failed} of the {asked} samples that it was asked about,"
            f" more than judge.max_failed_share={max_failed_share:g}"
        )


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else float("nan")
