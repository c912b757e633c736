"""Rewards of a GenRM's judgments, from verdicts and the outcomes of their reviews.

- ``label`` (RLVR): 1 if the verdict equals the label, else 0.
- ``r_align``: 1 if the verdict equals the label and the MetaRM finds the rationale Correct, else 0.
- ``label_rationale``: the two as parts of one reward, for algo.advantages=gdpo: the label's 1 and the rationale's 1.

A reward of your own is a function from `Samples` to one value for each sample, given as algo.reward=FILE.py:NAME:

    def brief(samples):  # [num_samples] float, or [num_samples, num_parts]: parts, whose sum is the reward
        return samples.correct * 0.5

A sample with a value of NaN is *unknown* (the MetaRM gave no usable answer). It is left out of groups, losses and
denominators, and counted; with `impute` a failed review counts as the mean value of the group's reviewed samples. A
sample without a verdict is *invalid* and earns ``algo.invalid_reward`` in place of the function's value. A function
that reads outcomes must say so: ``NAME = Reward(brief, needs_metarm=True)``.

If twins are coupled, a sample earns its value times the mean value of the samples of its pair's twin (`coupling.py`): a
judge that follows what the twins differ in earns nothing.

The MetaRM reviews label-correct samples only. Under ``label`` its outcomes change no reward; they are counted, to
monitor the share of spurious judgments.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ralign.engine.algorithms.coupling import coupled, twin_consistency
from ralign.engine.judging.judge import JudgeStopped
from ralign.engine.judging.metarm import Outcome
from ralign.engine.runtime.errors import UserError

MIN_REQUESTS = 8  # with fewer requests a failed share means nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """A batch of judgments, as a reward sees it; every field has one entry for each sample.

    Attributes:
        verdicts: "A", "B", or None where the text has no verdict. labels: "A" or "B".
        outcomes: of the reviews; `SKIPPED` where there was none.
        correct: [num_samples] bool, the verdict equals the label. invalid: bool, no verdict.
        aligned, spurious, failed: [num_samples] bool, correct with a review that is Correct, Incorrect, or failed.
    """

    verdicts: Sequence[str | None]
    labels: Sequence[str]
    outcomes: Sequence[Outcome]
    correct: np.ndarray
    invalid: np.ndarray
    aligned: np.ndarray
    spurious: np.ndarray
    failed: np.ndarray

    @classmethod
    def of(
        cls, verdicts: Sequence[str | None], labels: Sequence[str], outcomes: Sequence[Outcome]
    ) -> "Samples":
        """From sequences of equal length."""
        assert len(verdicts) == len(labels) == len(outcomes), (len(verdicts), len(labels), len(outcomes))
        correct = np.array([v == label for v, label in zip(verdicts, labels, strict=True)], dtype=bool)
        return cls(
            verdicts=verdicts,
            labels=labels,
            outcomes=outcomes,
            correct=correct,
            invalid=np.array([verdict is None for verdict in verdicts], dtype=bool),
            aligned=correct & np.array([outcome is Outcome.CORRECT for outcome in outcomes], dtype=bool),
            spurious=correct & np.array([outcome is Outcome.INCORRECT for outcome in outcomes], dtype=bool),
            failed=correct & np.array([outcome.failed for outcome in outcomes], dtype=bool),
        )


@dataclass(frozen=True, slots=True)
class Reward:
    """The value of each sample of a batch.

    Attributes:
        function: samples -> [num_samples] or [num_samples, num_parts] float; NaN where the value is unknown.
        needs_metarm: the function reads outcomes, so a run without a MetaRM cannot use it.
    """

    function: Callable[[Samples], Any]
    needs_metarm: bool = False

    def __call__(self, samples: Samples) -> np.ndarray:
        """[num_samples, num_parts] float64, rows of NaN where unknown.

        Raises:
            UserError: the result has another shape, or an infinite value.
        """
        values = np.asarray(self.function(samples), dtype=np.float64)
        expected = samples.correct.shape
        if values.shape[:1] != expected or values.ndim > 2 or values.size == 0:
            raise UserError(f"the reward function returned the shape {values.shape}, expected {expected}")
        if np.isinf(values).any():
            raise UserError("the reward function returned an infinite value")
        parts = values.reshape(len(values), -1)
        return np.where(np.isnan(parts).any(1, keepdims=True), math.nan, parts)


def as_reward(implementation: Any, setting: str) -> Reward:
    """A `Reward` as it is, or a plain function as one that needs no MetaRM; `setting` names it in the UserError."""
    if isinstance(implementation, Reward):
        return implementation
    if not callable(implementation):
        raise UserError(f"{setting}: expected a Reward or a function, got {type(implementation).__name__}")
    return Reward(implementation)


LABEL = Reward(lambda samples: samples.correct.astype(np.float64))
R_ALIGN = Reward(lambda samples: np.where(samples.failed, math.nan, samples.aligned), needs_metarm=True)
LABEL_RATIONALE = Reward(
    lambda samples: np.stack([samples.correct, np.where(samples.failed, math.nan, samples.aligned)], axis=1),
    needs_metarm=True,
)


@dataclass(kw_only=True, slots=True)
class GenRMRewards:
    """Rewards of a batch, and the counts behind its metrics."""

    values: np.ndarray  # [num_samples] float32; 0 where not valid
    valid: np.ndarray  # [num_samples] bool; False where the value is unknown
    parts: np.ndarray  # [num_samples, num_parts] float32: the values' summands
    num_samples: int  # without masked ones
    num_label_correct: int
    num_invalid: int  # no verdict
    num_judge_failed: int  # label-correct, reviewed, without a usable answer
    num_aligned: int  # label-correct, rationale Correct
    num_spurious: int  # label-correct, rationale Incorrect
    twin_consistency: float = (
        math.nan
    )  # share of couples, one sample in each twin, that name the same response
    failures: dict[str, float] = field(default_factory=dict)  # metrics of failed reviews
    bonus: np.ndarray | None = None

    @property
    def num_asked(self) -> int:
        """Reviewed samples."""
        return self.num_aligned + self.num_spurious + self.num_judge_failed

    @property
    def l_acc(self) -> float:
        """Label accuracy: correct verdicts over all samples; a missing verdict is wrong."""
        return _ratio(self.num_label_correct, self.num_samples)

    @property
    def s_corr(self) -> float:
        """Spurious correctness: Incorrect over (Correct + Incorrect); NaN without reviews."""
        return _ratio(self.num_spurious, self.num_spurious + self.num_aligned)

    @property
    def f_score(self) -> float:
        """Correct over all samples, without those whose review failed."""
        return _ratio(self.num_aligned, self.num_samples - self.num_judge_failed)


def score(
    reward: Reward,
    verdicts: Sequence[str | None],
    labels: Sequence[str],
    outcomes: Sequence[Outcome] | None = None,
    *,
    invalid_reward: float = 0.0,
    groups: np.ndarray | None = None,
    twin_groups: np.ndarray | None = None,
    couple: bool = False,
    impute: bool = False,
    masked: np.ndarray | None = None,
) -> GenRMRewards:
    """Rewards of a batch.

    Args:
        reward: of `REWARDS`, or your own.
        verdicts, labels, outcomes: one entry for each sample (see `Samples`); None for a run without a MetaRM.
        invalid_reward: earned by a sample without a verdict.
        groups: [num_samples] int, samples of one prompt; None: all are one group.
        twin_groups: [num_samples] int, the group of the twin of the sample's pair; None: pairs have none.
        couple: with `twin_groups`, values are multiplied by the mean value of the twin's group.
        masked: [num_samples] bool, samples that count nowhere, in metrics neither; None: none.
        impute: a failed review counts as the mean of the group's reviewed samples, or of the batch's.

    Raises:
        UserError: `reward` needs a MetaRM, and there are no outcomes.
    """
    if outcomes is None:
        if reward.needs_metarm:
            raise UserError("this reward needs a MetaRM, and metarm.kind=none")
        outcomes = [Outcome.SKIPPED] * len(verdicts)
    if groups is None:
        groups = np.zeros(len(verdicts), dtype=np.int64)
    if masked is not None:  # a masked sample is neither right nor reviewed
        verdicts = [None if hidden else verdict for verdict, hidden in zip(verdicts, masked, strict=True)]
        outcomes = [
            Outcome.SKIPPED if hidden else outcome for outcome, hidden in zip(outcomes, masked, strict=True)
        ]
    samples = Samples.of(verdicts, labels, outcomes)
    if masked is None:
        masked = np.zeros(len(verdicts), dtype=bool)
    counted = ~masked
    invalid = (samples.invalid & counted)[:, None]
    parts = np.where(invalid, 0.0, reward(samples))  # for the twin; replaced below
    parts = np.where(counted[:, None], parts, math.nan)
    if impute:
        parts = _imputed(parts, samples, groups)
    consistency = math.nan
    if twin_groups is not None:
        if couple:
            parts = np.stack([coupled(part, groups, twin_groups) for part in parts.T], axis=1)
        consistency = twin_consistency(samples.correct, samples.invalid, groups, twin_groups, counted=counted)
    valid: np.ndarray = np.logical_not(np.isnan(parts).any(axis=1))
    parts = np.where(invalid, invalid_reward / parts.shape[1], np.where(valid[:, None], parts, 0))
    return GenRMRewards(
        values=parts.sum(1).astype(np.float32),
        valid=valid,
        parts=parts.astype(np.float32),
        num_samples=int(counted.sum()),
        num_label_correct=int(samples.correct.sum()),
        num_invalid=int(invalid.sum()),
        num_judge_failed=int(samples.failed.sum()),
        num_aligned=int(samples.aligned.sum()),
        num_spurious=int(samples.spurious.sum()),
        twin_consistency=consistency,
    )


def _imputed(parts: np.ndarray, samples: Samples, groups: np.ndarray) -> np.ndarray:
    """parts [num_samples, num_parts]: the unknown values of failed reviews become the mean of reviewed samples.

    Of the sample's group; of the batch where the group has none; unknown where no review succeeded.
    """
    reviewed = samples.aligned | samples.spurious
    unknown = samples.failed & np.isnan(parts).any(1)
    out = parts.copy()
    for row in np.flatnonzero(unknown):
        alike = reviewed & (groups == groups[row])
        alike = alike if alike.any() else reviewed
        if alike.any():
            out[row] = parts[alike].mean(0)
    return out


def check_failures(rewards: GenRMRewards, max_failed_share: float) -> None:
    """Raises JudgeStopped if the MetaRM failed on too large a share of a step's reviews."""
    failed, asked = rewards.num_judge_failed, rewards.num_asked
    if asked >= MIN_REQUESTS and failed > max_failed_share * asked:
        raise JudgeStopped(
            f"the MetaRM failed on {failed} of {asked} reviews of a step, more than"
            f" metarm.max_failed_share={max_failed_share:g}"
        )


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else float("nan")
