"""An actor's task: answer a note, paid by the oracle or by a GenRM that compares the answers of a group.

The oracle's true quality is measured in either case, so that what the judge pays can be set against it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from ralign.engine.actor_config import ActorRun
from ralign.engine.data.actorworld import (
    Note,
    actor_prompt,
    judge_pair,
    reference_answer,
    true_quality,
    uses_cue,
)
from ralign.engine.errors import UserError
from ralign.engine.judging.comparisons import GroupResult, Tally
from ralign.engine.judging.judge import JudgeStopped
from ralign.engine.judging.pairwise import Group, PairwiseReward
from ralign.engine.judging.prompts import load_template, render
from ralign.engine.judging.reviews import Replicas
from ralign.engine.rewards import MIN_ASKED
from ralign.engine.tasks import Answered


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorExample:
    """A note and the token ids of the actor's prompt."""

    note: Note
    prompt_ids: np.ndarray  # [L] int64


def actor_examples(notes: Sequence[Note], tokenizer) -> list[ActorExample]:
    """The actor's prompts, tokenized."""
    ids = tokenizer([actor_prompt(note) for note in notes], add_special_tokens=False)["input_ids"]
    return [
        ActorExample(note=note, prompt_ids=np.asarray(prompt, dtype=np.int64))
        for note, prompt in zip(notes, ids, strict=True)
    ]


@dataclass(kw_only=True, slots=True)
class ActorRollout(Answered):
    """An answer, what it is paid, and what it is worth."""

    reward: float
    valid: bool
    quality: float
    tally: Tally | None  # of its group's comparisons, on the group's first sample


@dataclass(kw_only=True, slots=True)
class ActorRewards:
    """Rewards of a batch and what they were made of."""

    values: np.ndarray  # [num_samples] float32; 0 where not valid
    valid: np.ndarray  # [num_samples] bool; False where no comparison survived
    quality: np.ndarray  # [num_samples] true quality, 0 to 1
    cue: np.ndarray  # [num_samples] bool: laid out in bullets
    tally: Tally


class ActorTask:
    """Answers to notes. Without a `payer` the oracle pays."""

    def __init__(
        self,
        run: ActorRun,
        examples: Sequence[ActorExample],
        payer: PairwiseReward | None,
        replicas: Replicas,
    ):
        self.run, self.examples, self.payer, self.replicas = run, examples, payer, replicas
        self.template = load_template(run.actor.template)
        self.num_batches = 0
        self._groups = [group for group in replicas.replica_groups if dist.get_world_size(group) > 1]
        self._asks = all(dist.get_rank(group) == 0 for group in self._groups)

    @contextmanager
    def judging(self) -> Iterator[None]:
        before = self.num_batches
        try:
            yield
        except JudgeStopped:
            self.num_batches = before
            raise

    def finished(self, index: int, example: int, text: str) -> None:
        """Comparisons want the whole group."""

    def judge(self, samples: list[Answered]) -> list[ActorRollout]:
        members: dict[int, list[Answered]] = {}
        for sample in samples:
            members.setdefault(sample.group, []).append(sample)
        results = self._results(list(members.values()))
        self.num_batches += 1
        return [
            ActorRollout(
                example=sample.example,
                group=sample.group,
                rollout=sample.rollout,
                text=sample.text,
                reward=float(result.rewards[place]),
                valid=bool(result.valid[place]),
                quality=self._quality(sample),
                tally=None if place else result.tally,
            )
            for group, result in zip(members.values(), results, strict=True)
            for place, sample in enumerate(group)
        ]

    def _quality(self, sample: Answered) -> float:
        return true_quality(self.examples[sample.example].note, sample.text)

    def _results(self, groups: list[list[Answered]]) -> list[GroupResult]:
        """What each group is paid. Ranks that have the same samples ask once, and all learn.

        Raises:
            JudgeStopped: on every rank, if the judge of any of them has stopped.
        """
        if self.payer is None:
            return [
                GroupResult(
                    rewards=np.array([self._quality(sample) for sample in group]),
                    valid=np.ones(len(group), dtype=bool),
                    comparisons=[],
                    tally=Tally(),
                )
                for group in groups
            ]
        results, stopped = None, None
        if self._asks:
            try:
                results = self.payer.score([self._group(group) for group in groups], self._seed())
            except JudgeStopped as reason:
                stopped = str(reason)
        for group in self._groups:
            box = [(results, stopped)]
            dist.broadcast_object_list(box, dist.get_process_group_ranks(group)[0], group=group)
            results, stopped = box[0]
        reasons = [reason for reason in self.replicas.all_gather_data(stopped) if reason]
        if reasons:
            raise JudgeStopped(reasons[0])
        return results

    def _seed(self) -> int:
        return self.run.seed * 1_000_003 + self.num_batches

    def _group(self, group: list[Answered]) -> Group:
        note = self.examples[group[0].example].note
        return Group(
            name=note.id,
            texts=[sample.text for sample in group],
            lengths=[len(sample.rollout.response_ids) for sample in group],
            prompt_for=lambda first, second: render(self.template, judge_pair(note, first, second)),
            reference=reference_answer(note),
        )

    def reward(self, judged: Sequence[ActorRollout]) -> ActorRewards:
        """UserError where too many calls failed. A comparison without a verdict is masked, however many there are:
        a judge taught on pairs with one fault has none for two good answers."""
        tally = Tally()
        for sample in judged:
            if sample.tally is not None:
                tally.add(sample.tally)
        limit = self.run.judge.max_failed_share
        if tally.num_calls >= MIN_ASKED and tally.num_failed > limit * tally.num_calls:
            raise UserError(
                f"{tally.num_failed} of {tally.num_calls} calls of the GenRM failed,"
                f" more than judge.max_failed_share={limit:g}"
            )
        valid = np.array([sample.valid for sample in judged])
        return ActorRewards(
            values=np.where(valid, [sample.reward for sample in judged], 0).astype(np.float32),
            valid=valid,
            quality=np.array([sample.quality for sample in judged]),
            cue=np.array([uses_cue(sample.text) for sample in judged]),
            tally=tally,
        )

    def metrics(self, rewards: ActorRewards) -> dict[str, float]:
        tally, varies = rewards.tally, rewards.valid.any() and np.ptp(rewards.values[rewards.valid]) > 0
        agreement = math.nan
        if varies and np.ptp(rewards.quality[rewards.valid]) > 0:
            agreement = float(
                np.corrcoef(rewards.values[rewards.valid], rewards.quality[rewards.valid])[0, 1]
            )
        return {
            "actor/quality": float(rewards.quality.mean()),
            "actor/perfect_share": float((rewards.quality == 1).mean()),
            "actor/cue_share": float(rewards.cue.mean()),
            "actor/reward_quality_corr": agreement,
            "judge/num_calls": tally.num_calls,
            "judge/num_failed": tally.num_failed,
            "judge/num_unparsable": tally.num_unparsable,
            "judge/num_masked": tally.num_masked,
            "judge/num_ties": tally.num_ties,
            "judge/first_seat_share": tally.first_seat_share,
            "judge/swap_consistency": tally.swap_consistency,
        }

    def record(self, sample: ActorRollout) -> dict[str, Any]:
        paid = sample.reward if sample.valid else None
        return {
            "id": self.examples[sample.example].note.id,
            "reward": paid,
            "quality": sample.quality,
            "cue": uses_cue(sample.text),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"num_batches": self.num_batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_batches = state["num_batches"]
