"""What a policy is asked to do, and what its answers are worth: the part of a step that is its task's.

The `Trainer` is one algorithm for all tasks. `GenRMTask` pays judgments of pairs; an actor's task is in `actor.py`.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from ralign.engine.algorithms.rewards import Rewards, check_failures, score
from ralign.engine.config.run import Run
from ralign.engine.data.examples import Example
from ralign.engine.data.verdicts import parse_verdict
from ralign.engine.generator.generator import Rollout
from ralign.engine.judging.judge import Judge
from ralign.engine.judging.metarm import MetaRM, Outcome
from ralign.engine.judging.reviews import Replicas, Reviews


class Prompted(Protocol):
    """One prompt of a task."""

    prompt_ids: np.ndarray  # [L] int64


@dataclass(kw_only=True, slots=True)
class Answered:
    """A rollout and the prompt that it answers."""

    example: int  # index into the trainer's examples
    group: int  # position of its prompt in the global batch
    rollout: Rollout
    text: str


@dataclass(kw_only=True, slots=True)
class JudgedRollout(Answered):
    """A GenRM's judgment, and what the MetaRM made of it."""

    verdict: str | None
    outcome: Outcome


class Paid(Protocol):
    """Rewards of a batch."""

    values: np.ndarray  # [num_samples] float32; 0 where not valid
    valid: np.ndarray  # [num_samples] bool; False where a judge failed


class Task(Protocol):
    """Judges rollouts. A step calls `finished` and `judge` inside `judging`, then `reward` with all ranks' samples."""

    def judging(self) -> AbstractContextManager[None]:
        """Open while a step's samples are generated and judged; collective. JudgeStopped may leave it."""
        ...

    def finished(self, index: int, example: int, text: str) -> None:
        """Sample `index` of this engine's share is there, while others are still being generated."""
        ...

    def judge(self, samples: list[Answered]) -> list[Answered]:
        """This engine's share, whole groups, judged; the same on all ranks of the engine."""
        ...

    def reward(self, judged: Sequence[Answered]) -> Paid:
        """Rewards of the global batch, from all engines' judged samples: the same on every rank."""
        ...

    def metrics(self, rewards: Paid) -> dict[str, float]:
        """What the log holds of a step's rewards."""
        ...

    def record(self, sample: Answered) -> dict[str, Any]:
        """What a line of rollouts/ holds of a sample beside its text."""
        ...

    def state_dict(self) -> Any:
        """Plain values that a checkpoint keeps, or None."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state`."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A judge whose answers depend on where it stands (a position in its cache): a checkpoint keeps that."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        ...


class GenRMTask:
    """Judge a pair: paid for the verdict, and under `r_align` for the rationale that the MetaRM reads."""

    def __init__(
        self, run: Run, examples: Sequence[Example], metarm: MetaRM | None, replicas: Replicas | None
    ):
        """`metarm` may be None where the reward is the label's alone; then S-Corr is not watched either."""
        self.run, self.examples, self.metarm, self.replicas = run, examples, metarm, replicas

    @contextmanager
    def judging(self) -> Iterator[None]:
        self._reviews = Reviews(self.metarm, self.replicas)
        with self.metarm.awake() if self.metarm is not None else nullcontext():
            yield

    def finished(self, index: int, example: int, text: str) -> None:
        self._reviews.add(index, self.examples[example].pair, text)

    def judge(self, samples: list[Answered]) -> list[JudgedRollout]:
        outcomes = self._reviews.outcomes(len(samples))
        return [
            JudgedRollout(
                example=sample.example,
                group=sample.group,
                rollout=sample.rollout,
                text=sample.text,
                verdict=parse_verdict(sample.text),
                outcome=outcome,
            )
            for sample, outcome in zip(samples, outcomes, strict=True)
        ]

    def reward(self, judged: Sequence[JudgedRollout]) -> Rewards:
        algo = self.run.algo
        partners = None
        if algo.both_orders:  # sample k of the other order's group
            partners = [
                (i // algo.num_samples ^ 1) * algo.num_samples + i % algo.num_samples
                for i in range(len(judged))
            ]
        rewards = score(
            algo.reward,
            [sample.verdict for sample in judged],
            [self.examples[sample.example].pair.gt_label for sample in judged],
            [sample.outcome for sample in judged] if self.metarm is not None else None,
            invalid_reward=algo.invalid_reward,
            partners=partners,
        )
        check_failures(rewards, self.run.judge.max_failed_share)
        return rewards

    def metrics(self, rewards: Rewards) -> dict[str, float]:
        return {
            "reward/num_invalid": rewards.num_invalid,
            "judge/l_acc": rewards.l_acc,
            "judge/s_corr": rewards.s_corr,
            "judge/f_score": rewards.f_score if self.metarm is not None else float("nan"),
            "judge/num_failed": rewards.num_judge_failed,
            "judge/num_asked": rewards.num_asked,
            "judge/swap_consistency": rewards.swap_consistency,
        }

    def record(self, sample: JudgedRollout) -> dict[str, Any]:
        pair = self.examples[sample.example].pair
        return {"id": pair.id, "verdict": sample.verdict, "outcome": sample.outcome.value}

    def state_dict(self) -> dict[str, Any]:
        state = self.metarm.state_dict() if isinstance(self.metarm, Stateful) else None
        return {"metarm": state, "spent": spent_by_all(self._judge, self.replicas)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.metarm, Stateful):
            self.metarm.load_state_dict(state["metarm"])
        go_on_spending(self._judge, self.replicas, state["spent"])

    @property
    def _judge(self) -> Judge | None:
        """The language model that the MetaRM asks."""
        return getattr(self.metarm, "judge", None)


def spent_by_all(judge: Judge | None, replicas: Replicas | None) -> list[int] | None:
    """[prompt, answer] tokens that the engines' askers spent together, for a checkpoint; collective.

    None where nobody counts them.
    """
    if replicas is None or not hasattr(judge, "spent"):
        return None
    return [sum(part) for part in zip(*replicas.all_gather_data(judge.spent), strict=True)]


def go_on_spending(judge: Judge | None, replicas: Replicas | None, spent: list[int] | None) -> None:
    """What was spent before counts against the budget, an equal part at each asker, however many there are now."""
    if spent is not None and replicas is not None and hasattr(judge, "spent"):
        num_prompt, num_answer = (-(-tokens // replicas.count) for tokens in spent)
        judge.spent = (num_prompt, num_answer)
