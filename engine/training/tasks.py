"""The task of a step: its prompts, and the rewards of the responses.

The `Trainer` is one algorithm for all tasks. `GenRMTask` rewards judgments of pairs; an actor's task is in
`actors/task.py`.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from ralign.engine.algorithms.failures import failure_shares
from ralign.engine.algorithms.rewards import GenRMRewards, check_failures, score
from ralign.engine.algorithms.truncation import apply_truncation
from ralign.engine.config.registry import REWARDS
from ralign.engine.config.run import GenRMRun
from ralign.engine.data.examples import Example
from ralign.engine.data.verdicts import other_forms, read_form, verdict_of
from ralign.engine.generator.generator import Rollout
from ralign.engine.generator.replicas import Replicas
from ralign.engine.judging.judge import Judge
from ralign.engine.judging.metarm import MetaRM, Outcome
from ralign.engine.judging.reviews import Reviews
from ralign.engine.runtime.entry_point import rank

CUT_JUDGMENTS = "invalid"  # algo.truncated of a judge, where it is not set


class Prompt(Protocol):
    """A tokenized prompt."""

    @property
    def prompt_ids(self) -> np.ndarray:
        """[L] int64."""
        ...

    @property
    def opens_thinking(self) -> bool:
        """It ends inside a thinking block."""
        ...


@dataclass(kw_only=True, slots=True)
class Response:
    """A rollout, as text, and its prompt."""

    example: int  # index into the task's examples
    group: int  # position of its prompt in the global batch
    rollout: Rollout
    text: str

    @property
    def num_tokens(self) -> int:
        return len(self.rollout.response_ids)

    @property
    def is_cut(self) -> bool:
        """It was cut off at the longest length."""
        return self.rollout.finish_reason == "length"


@dataclass(kw_only=True, slots=True)
class JudgedResponse(Response):
    """A GenRM's judgment, and the MetaRM's outcome."""

    verdict: str | None
    outcome: Outcome


class RewardBatch(Protocol):
    """Rewards of a batch.

    Attributes:
        values: [num_samples] float32; 0 where not valid.
        valid: [num_samples] bool; False where a judge failed.
        parts: [num_samples, num_parts] float32, the values' summands.
        bonus: [num_samples] float32, added to the advantages, so that no normalisation rescales it; None: nothing.
    """

    values: np.ndarray
    valid: np.ndarray
    parts: np.ndarray
    bonus: np.ndarray | None


class Task(Protocol):
    """Prompts and rewards.

    Within `judging`, a step calls `on_response` for each response of a round, `judge` for the round, and `reward` for
    the responses of all rounds so far.
    """

    @property
    def title(self) -> str:
        """Of a stage that trains on it."""
        ...

    @property
    def progress_keys(self) -> tuple[str, ...]:
        """Metrics of its progress line."""
        ...

    @property
    def examples(self) -> Sequence[Prompt]: ...

    def judging(self) -> AbstractContextManager[None]:
        """Open while a step's samples are generated and judged; collective. JudgeStopped may leave it."""
        ...

    def on_response(self, index: int, example: int, text: str, *, is_cut: bool) -> None:
        """Response `index` of this engine's share of a round is finished, while others are still being generated."""
        ...

    def judge(self, responses: list[Response], step: int) -> list[Any]:
        """This engine's share of the responses of step number `step`, whole groups, judged.

        Returns subclasses of `Response`, the same on all ranks of the engine.
        """
        ...

    def reward(self, judged: Sequence[Any]) -> Any:
        """The `RewardBatch` of the global batch, from all engines' judged responses: the same on every rank."""
        ...

    def metrics(self, rewards: Any) -> dict[str, float]:
        """Metrics of a step's rewards."""
        ...

    def record(self, response: Any, /) -> dict[str, Any]:
        """The fields of a line of rollouts/, beside the text."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain values of a checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class GenRMTask:
    """Judge a pair: the reward is of the verdict, and under `r_align` of the rationale that the MetaRM audits."""

    progress_keys: tuple[str, ...] = ("reward/mean", "judge/l_acc", "judge/s_corr")

    def __init__(
        self,
        run: GenRMRun,
        examples: Sequence[Example],
        metarm: MetaRM | None,
        replicas: Replicas,
        reward: str,
    ):
        """`metarm` may be None where the reward needs none; then S-Corr is not measured.

        `reward`: a name or import path as of `algo.reward`.
        """
        self.run, self.examples, self.metarm, self.replicas = run, examples, metarm, replicas
        self.title, self.reward_function = f"RL, reward {reward}", REWARDS.load(reward)
        self.form, self._is_form_checked = read_form("data.verdict", run.data.verdict), False

    @contextmanager
    def judging(self) -> Iterator[None]:
        self._reviews = Reviews(self.metarm, self.replicas, self.form)
        with self.metarm.awake() if self.metarm is not None else nullcontext():
            yield

    def on_response(self, index: int, example: int, text: str, *, is_cut: bool) -> None:
        if not (is_cut and self._cut_is_unread):
            self._reviews.add(index, self.examples[example].pair, text)

    @property
    def _cut_is_unread(self) -> bool:
        """What was cut off has no verdict, or no reward: there is nothing to review."""
        return (self.run.algo.truncated or CUT_JUDGMENTS) in ("invalid", "mask")

    def _verdict(self, response: Response) -> str | None:
        if response.is_cut and self._cut_is_unread:
            return None
        return verdict_of(response.text, self.form)

    def judge(self, responses: list[Response], step: int) -> list[JudgedResponse]:
        outcomes = self._reviews.outcomes(len(responses))
        self._reviews = Reviews(self.metarm, self.replicas, self.form)  # of the next round
        return [
            JudgedResponse(
                example=response.example,
                group=response.group,
                rollout=response.rollout,
                text=response.text,
                verdict=self._verdict(response),
                outcome=outcome,
            )
            for response, outcome in zip(responses, outcomes, strict=True)
        ]

    def reward(self, judged: Sequence[JudgedResponse]) -> GenRMRewards:
        if not self._is_form_checked and rank() == 0:
            if warning := other_forms([response.text for response in judged], self.form):
                logging.getLogger(__name__).warning("data.verdict: %s", warning)
        self._is_form_checked = True
        algo = self.run.algo
        labels = [self.examples[response.example].pair.gt_label for response in judged]
        groups = np.array([response.group for response in judged])
        lengths, cut = [r.num_tokens for r in judged], [r.is_cut for r in judged]
        rewards = score(
            self.reward_function,
            [response.verdict for response in judged],
            labels,
            [response.outcome for response in judged] if self.metarm is not None else None,
            invalid_reward=algo.invalid_reward,
            groups=groups,
            twin_groups=groups ^ 1 if algo.partner != "none" else None,
            couple=algo.couple,
            impute=self._imputes,
            masked=np.array(cut) if algo.truncated == "mask" else None,
        )
        check_failures(rewards, self.run.metarm.max_failed_share)
        settings = {"default": CUT_JUDGMENTS, "max_new_tokens": self.run.generator.max_new_tokens}
        rewards.parts, _ = apply_truncation(rewards.parts, rewards.valid, lengths, cut, algo, **settings)
        rewards.values, rewards.valid = apply_truncation(
            rewards.values, rewards.valid, lengths, cut, algo, **settings
        )
        if self.metarm is not None and self.metarm.judge is not None:
            failed = np.array([response.outcome.failed for response in judged])
            reviewed = np.array([response.outcome is not Outcome.SKIPPED for response in judged])
            rewards.failures = failure_shares(failed, reviewed, np.array(lengths), np.array(labels))
        return rewards

    @property
    def _imputes(self) -> bool:
        return self.run.metarm.on_failure == "impute"

    def metrics(self, rewards: GenRMRewards) -> dict[str, float]:
        return {
            "reward/num_invalid": rewards.num_invalid,
            "judge/l_acc": rewards.l_acc,
            "judge/s_corr": rewards.s_corr,
            "judge/f_score": rewards.f_score if self.metarm is not None else float("nan"),
            "judge/num_failed": rewards.num_judge_failed,
            "judge/num_asked": rewards.num_asked,
            "reward/twin_consistency": rewards.twin_consistency,
            **rewards.failures,
        }

    def record(self, response: JudgedResponse) -> dict[str, Any]:
        pair = self.examples[response.example].pair
        return {"id": pair.id, "verdict": response.verdict, "outcome": response.outcome.value}

    def state_dict(self) -> dict[str, Any]:
        state = self.metarm.state_dict() if self.metarm else None
        return {"metarm": state, "tokens_used": total_tokens_used(self._judge, self.replicas)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.metarm is not None:
            self.metarm.load_state_dict(state["metarm"])
        restore_budget(self._judge, self.replicas, state["tokens_used"])

    @property
    def _judge(self) -> Judge | None:
        """The language model behind the MetaRM."""
        return self.metarm.judge if self.metarm else None


def total_tokens_used(judge: Judge | None, replicas: Replicas) -> list[int] | None:
    """[prompt, answer] tokens that the clients of all engines used together; collective. None where not counted."""
    if judge is None or judge.tokens_used is None:
        return None
    return [sum(part) for part in zip(*replicas.all_gather_data(judge.tokens_used), strict=True)]


def restore_budget(judge: Judge | None, replicas: Replicas, tokens_used: list[int] | None) -> None:
    """Count what was used before the checkpoint against the budget, an equal part at each client."""
    if tokens_used is not None and judge is not None and judge.tokens_used is not None:
        num_prompt, num_answer = (-(-tokens // replicas.count) for tokens in tokens_used)
        judge.restore_tokens_used((num_prompt, num_answer))
