"""An actor's task: answer, paid by a GenRM that compares the answers of a group, or by an oracle.

Where there is an oracle (JudgeWorld's notes) true quality is measured in either case, so that what the judge pays
can be set against it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from ralign.engine.algorithms.rewards import MIN_ASKED
from ralign.engine.config.actor import ActorRun
from ralign.engine.data.chat import pair_messages
from ralign.engine.data.pairs import Pair
from ralign.engine.data.prompts import load_template
from ralign.engine.data.questions import Grade, OpenQuestion, Question
from ralign.engine.data.verdicts import visible
from ralign.engine.data.worlds.actorworld import Note, actor_prompt
from ralign.engine.generator.replicas import Replicas
from ralign.engine.judging.comparisons import REFERENCE, GroupResult, Tally, Transcript, length_penalty
from ralign.engine.judging.judge import Judge, JudgeStopped, awake
from ralign.engine.judging.pairwise import Group, PairwiseReward
from ralign.engine.runtime.errors import UserError
from ralign.engine.training.tasks import Answered, go_on_spending, spent_by_all

NUM_KEPT = 8  # comparisons a step whose words are kept for rollouts/, of the first engine's groups
_SEATS = {"first": "A", "second": "B"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorExample:
    """A question and the token ids of the actor's prompt."""

    question: Question
    prompt_ids: np.ndarray  # [L] int64


def note_examples(notes: Sequence[Note], tokenizer) -> list[ActorExample]:
    """JudgeWorld's notes, tokenized."""
    return _examples(notes, [actor_prompt(note) for note in notes], tokenizer)


def open_examples(
    pairs: Sequence[Pair], tokenizer, max_prompt_tokens: int, *, chat: bool = False
) -> tuple[list[ActorExample], int]:
    """The dialogues of pairs in the tokenizer's chat template, or as plain text; and how many were too long.

    Raises:
        UserError: no prompt fits, or there is no chat template.
    """
    questions = [OpenQuestion(pair=pair) for pair in pairs]
    texts = [question.prompt(tokenizer, chat=chat) for question in questions]
    examples = _examples(questions, texts, tokenizer)
    fit = [example for example in examples if len(example.prompt_ids) <= max_prompt_tokens]
    if not fit:
        shortest = min(len(example.prompt_ids) for example in examples)
        raise UserError(
            f"data.max_prompt_tokens={max_prompt_tokens} leaves none of {len(examples)} prompts: "
            f"the shortest has {shortest} tokens"
        )
    return fit, len(examples) - len(fit)


def _examples(questions: Sequence[Question], texts: list[str], tokenizer) -> list[ActorExample]:
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [
        ActorExample(question=question, prompt_ids=np.asarray(prompt, dtype=np.int64))
        for question, prompt in zip(questions, ids, strict=True)
    ]


@dataclass(kw_only=True, slots=True)
class ActorRollout(Answered):
    """An answer, what it is paid, and what it is worth."""

    reward: float
    valid: bool
    grade: Grade | None
    tally: Tally | None  # of its group's comparisons, on the group's first sample
    transcripts: list[Transcript]  # some of its group's comparisons, likewise


@dataclass(kw_only=True, slots=True)
class ActorRewards:
    """Rewards of a batch and what they were made of."""

    values: np.ndarray  # [num_samples] float32; 0 where not valid
    valid: np.ndarray  # [num_samples] bool; False where no comparison survived
    quality: np.ndarray | None  # [num_samples] true quality, 0 to 1; None without an oracle
    cue: np.ndarray | None  # [num_samples] bool: laid out in bullets
    tally: Tally


class ActorTask:
    """Answers to questions. Without a `payer` the oracle pays."""

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
        self._num_kept = NUM_KEPT if replicas.index == 0 else 0
        self._asks = all(dist.get_rank(group) == 0 for group in self._groups)

    @contextmanager
    def judging(self) -> Iterator[None]:
        before = self.num_batches
        try:
            with awake(self.payer.judge) if self.payer else nullcontext():
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
                grade=self._grade(sample),
                tally=None if place else result.tally,
                transcripts=[] if place else result.transcripts,
            )
            for group, result in zip(members.values(), results, strict=True)
            for place, sample in enumerate(group)
        ]

    def _grade(self, sample: Answered) -> Grade | None:
        return self.examples[sample.example].question.grade(sample.text)

    def _true_quality(self, sample: Answered) -> float:
        grade = self._grade(sample)
        assert grade is not None, "without a judge these questions need an oracle"
        return grade.quality

    def _results(self, groups: list[list[Answered]]) -> list[GroupResult]:
        """What each group is paid. Ranks that have the same samples ask once, and all learn.

        Raises:
            JudgeStopped: on every rank, if the judge of any of them has stopped.
        """
        if self.payer is None:
            return [self._paid_by_oracle(group) for group in groups]
        results, stopped = None, None
        if self._asks:
            try:
                asked = [self._group(group) for group in groups]
                results = self.payer.score(asked, self._seed(), self._num_kept)
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

    def _paid_by_oracle(self, group: list[Answered]) -> GroupResult:
        """True quality, less the length penalty that a judge's reward would have too."""
        rewards, valid = np.array([self._true_quality(sample) for sample in group]), np.ones(len(group), bool)
        if coefficient := self.run.actor.length_penalty:
            rewards = length_penalty(rewards, valid, np.array(_lengths(group)), coefficient)
        return GroupResult(rewards=rewards, valid=valid, comparisons=[], tally=Tally())

    def _seed(self) -> int:
        return self.run.seed * 1_000_003 + self.num_batches

    def _group(self, group: list[Answered]) -> Group:
        question = self.examples[group[0].example].question
        return Group(
            name=question.id,
            texts=[visible(sample.text) for sample in group],
            lengths=_lengths(group),
            messages_for=lambda first, second: pair_messages(self.template, question.compare(first, second)),
            reference=question.reference,
        )

    def reward(self, judged: Sequence[ActorRollout]) -> ActorRewards:
        """JudgeStopped where too many calls failed. A comparison without a verdict is masked, however many there are:
        a judge taught on pairs with one fault has none for two good answers."""
        tally = Tally()
        for sample in judged:
            if sample.tally is not None:
                tally.add(sample.tally)
        limit = self.run.judge.max_failed_share
        if tally.num_calls >= MIN_ASKED and tally.num_failed > limit * tally.num_calls:
            raise JudgeStopped(
                f"{tally.num_failed} of {tally.num_calls} calls of the GenRM failed,"
                f" more than judge.max_failed_share={limit:g}"
            )
        valid = np.array([sample.valid for sample in judged])
        grades = [sample.grade for sample in judged]
        graded = all(grade is not None for grade in grades)
        return ActorRewards(
            values=np.where(valid, [sample.reward for sample in judged], 0).astype(np.float32),
            valid=valid,
            quality=np.array([grade.quality for grade in grades]) if graded else None,
            cue=np.array([grade.cue for grade in grades]) if graded else None,
            tally=tally,
        )

    def metrics(self, rewards: ActorRewards) -> dict[str, float]:
        tally, found = rewards.tally, {}
        if rewards.quality is not None:
            found = {
                "actor/quality": float(rewards.quality.mean()),
                "actor/perfect_share": float((rewards.quality == 1).mean()),
                "actor/cue_share": float(rewards.cue.mean()),
                "actor/reward_quality_corr": _correlation(
                    rewards.values[rewards.valid], rewards.quality[rewards.valid]
                ),
            }
        return found | {
            "judge/num_comparisons": tally.num_comparisons,
            "judge/num_same": tally.num_same,
            "judge/num_calls": tally.num_calls,
            "judge/num_failed": tally.num_failed,
            "judge/num_unparsable": tally.num_unparsable,
            "judge/num_masked": tally.num_masked,
            "judge/num_ties": tally.num_ties,
            "judge/num_without_fit": tally.num_without_fit,
            "judge/first_seat_share": tally.first_seat_share,
            "judge/swap_consistency": tally.swap_consistency,
        }

    def record(self, sample: ActorRollout) -> dict[str, Any]:
        paid = sample.reward if sample.valid else None
        oracle = {} if sample.grade is None else {"quality": sample.grade.quality, "cue": sample.grade.cue}
        found = {"id": self.examples[sample.example].question.id, "reward": paid, **oracle}
        if sample.transcripts:
            found["comparisons"] = [_readable(transcript) for transcript in sample.transcripts]
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"num_batches": self.num_batches, "spent": spent_by_all(self._judge, self.replicas)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_batches = state["num_batches"]
        go_on_spending(self._judge, self.replicas, state["spent"])

    @property
    def _judge(self) -> Judge | None:
        return self.payer.judge if self.payer else None


def _lengths(group: Sequence[Answered]) -> list[int]:
    return [len(sample.rollout.response_ids) for sample in group]


def _readable(transcript: Transcript) -> dict[str, Any]:
    """A comparison for a reader of rollouts/: samples by their place in the group, seats as the judge names them."""

    def seat(sample: int, text: str) -> dict[str, Any]:
        return {"sample": "reference" if sample == REFERENCE else sample, "text": text}

    return {
        "A": seat(transcript.call.first, transcript.first),
        "B": seat(transcript.call.second, transcript.second),
        "better": _SEATS.get(transcript.answer.value, transcript.answer.value),
        "reply": transcript.reply or transcript.problem,
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; NaN where one of them does not vary."""
    varies = len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
    return float(np.corrcoef(x, y)[0, 1]) if varies else math.nan
