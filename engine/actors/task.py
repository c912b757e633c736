"""An actor's task: answer questions; a GenRM that compares the answers of a group gives the rewards, or an oracle.

Where there is an oracle (JudgeWorld's notes) true quality is measured in either case, so that the GenRM's rewards can
be compared with it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from ralign.engine.actors.length_penalty import length_bonus
from ralign.engine.algorithms.rewards import MIN_REQUESTS
from ralign.engine.algorithms.truncation import apply_truncation
from ralign.engine.config.actor import ActorRun
from ralign.engine.data.chat import Prompt, encode_messages, pair_messages
from ralign.engine.data.pairs import Pair
from ralign.engine.data.prompts import load_template
from ralign.engine.data.questions import Grade, OpenQuestion, Question
from ralign.engine.data.verdicts import visible
from ralign.engine.data.worlds.actorworld import Note, actor_prompt
from ralign.engine.generator.replicas import Replicas
from ralign.engine.judging.comparisons import (
    REFERENCE,
    ComparisonStats,
    GroupResult,
    Transcript,
)
from ralign.engine.judging.judge import Judge, JudgeStopped
from ralign.engine.judging.pairwise import Group, PairwiseReward
from ralign.engine.runtime.errors import UserError
from ralign.engine.training.tasks import Response, restore_budget, total_tokens_used

NUM_KEPT = 8  # comparisons a step whose text is kept for rollouts/, of the first engine's groups
_POSITIONS = {"first": "A", "second": "B"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorExample:
    """A question and the token ids of the actor's prompt."""

    question: Question
    prompt_ids: np.ndarray  # [L] int64
    opens_thinking: bool = False  # as of `Prompt`


def note_examples(notes: Sequence[Note], tokenizer) -> list[ActorExample]:
    """JudgeWorld's notes, tokenized."""
    prompts = encode_messages([(("user", actor_prompt(note)),) for note in notes], tokenizer, chat=False)
    return _examples(notes, prompts)


def open_examples(
    pairs: Sequence[Pair], tokenizer, max_prompt_tokens: int, *, chat: bool = False
) -> tuple[list[ActorExample], int]:
    """The dialogues of pairs in the tokenizer's chat template, or as plain text and a blank line; and how many were
    too long.

    Raises:
        UserError: no prompt fits, or there is no chat template.
    """
    questions = [OpenQuestion(pair=pair) for pair in pairs]
    messages = [question.messages() for question in questions]
    prompts = encode_messages(
        messages, tokenizer, chat=chat, after="" if chat else "\n\n", ids=[pair.id for pair in pairs]
    )
    examples = _examples(questions, prompts)
    fit = [example for example in examples if len(example.prompt_ids) <= max_prompt_tokens]
    if not fit:
        shortest = min(len(example.prompt_ids) for example in examples)
        raise UserError(
            f"data.max_prompt_tokens={max_prompt_tokens} leaves none of {len(examples)} prompts: "
            f"the shortest has {shortest} tokens"
        )
    return fit, len(examples) - len(fit)


def _examples(questions: Sequence[Question], prompts: Sequence[Prompt]) -> list[ActorExample]:
    return [
        ActorExample(question=question, prompt_ids=prompt.ids, opens_thinking=prompt.opens_thinking)
        for question, prompt in zip(questions, prompts, strict=True)
    ]


@dataclass(kw_only=True, slots=True)
class ActorResponse(Response):
    """An answer, its reward, and its true quality."""

    reward: float
    valid: bool
    grade: Grade | None
    stats: ComparisonStats | None  # of its group's comparisons, on the group's first response
    transcripts: list[Transcript]  # some of its group's comparisons, likewise


@dataclass(kw_only=True, slots=True)
class ActorRewards:
    """Rewards of a batch, and the counts behind them."""

    values: np.ndarray  # [num_samples] float32; 0 where not valid
    valid: np.ndarray  # [num_samples] bool; False where no comparison survived
    parts: np.ndarray  # [num_samples, 1] float32: the values
    bonus: np.ndarray | None  # [num_samples] float32, the length penalty
    quality: np.ndarray | None  # [num_samples] true quality, 0 to 1; None without an oracle
    cue: np.ndarray | None  # [num_samples] bool: laid out in bullets
    stats: ComparisonStats


class ActorTask:
    """Answers to questions. Without a `reward_model` the oracle gives the rewards."""

    def __init__(
        self,
        run: ActorRun,
        examples: Sequence[ActorExample],
        reward_model: PairwiseReward | None,
        replicas: Replicas,
    ):
        self.run, self.examples, self.reward_model, self.replicas = run, examples, reward_model, replicas
        self.template = load_template(run.genrm.template)
        self.title = "RL against " + ("the oracle" if reward_model is None else "the GenRM")
        graded = bool(examples) and examples[0].question.grade("") is not None
        self.progress_keys = (
            "reward/mean",
            *(("actor/quality", "actor/cue_share") if graded else ("judge/num_masked",)),
        )
        self._num_kept = NUM_KEPT if replicas.index == 0 else 0

    @contextmanager
    def judging(self) -> Iterator[None]:
        with self.reward_model.judge.awake() if self.reward_model else nullcontext():
            yield

    def on_response(self, index: int, example: int, text: str, *, is_cut: bool) -> None:
        """Nothing yet: a comparison needs the whole group."""

    def judge(self, responses: list[Response], step: int) -> list[ActorResponse]:
        groups: dict[int, list[Response]] = {}
        for response in responses:
            groups.setdefault(response.group, []).append(response)
        results = self._results(list(groups.values()), self.run.seed * 1_000_003 + step)
        return [
            ActorResponse(
                example=response.example,
                group=response.group,
                rollout=response.rollout,
                text=response.text,
                reward=float(result.rewards[place]),
                valid=bool(result.valid[place]),
                grade=self._grade(response),
                stats=None if place else result.stats,
                transcripts=[] if place else result.transcripts,
            )
            for group, result in zip(groups.values(), results, strict=True)
            for place, response in enumerate(group)
        ]

    def _grade(self, response: Response) -> Grade | None:
        return self.examples[response.example].question.grade(response.text)

    def _true_quality(self, response: Response) -> float:
        grade = self._grade(response)
        assert grade is not None, "without a GenRM these questions need an oracle"
        return grade.quality

    def _results(self, groups: list[list[Response]], seed: int) -> list[GroupResult]:
        """The rewards of each group, the same on all ranks of an engine."""
        if (reward_model := self.reward_model) is None:
            return [self._oracle_result(group) for group in groups]
        return self.replicas.ask_once(
            lambda: reward_model.score([self._group(group) for group in groups], seed, self._num_kept)
        )

    def _oracle_result(self, group: list[Response]) -> GroupResult:
        """True quality."""
        rewards = np.array([self._true_quality(response) for response in group])
        valid = np.ones(len(group), bool)
        return GroupResult(rewards=rewards, valid=valid, comparisons=[], stats=ComparisonStats())

    def _group(self, group: list[Response]) -> Group:
        question = self.examples[group[0].example].question
        return Group(
            name=question.id,
            texts=[visible(sample.text) for sample in group],
            messages_for=lambda first, second: pair_messages(self.template, question.compare(first, second)),
            reference=question.reference,
        )

    def reward(self, judged: Sequence[ActorResponse]) -> ActorRewards:
        """Rewards of the global batch.

        A comparison without a verdict is masked, however many there are: a judge that was trained on pairs with one
        fault has no verdict on two good answers.

        Raises:
            JudgeStopped: too many calls failed.
        """
        stats = ComparisonStats()
        for sample in judged:
            if sample.stats is not None:
                stats.add(sample.stats)
        limit = self.run.genrm.max_failed_share
        if stats.num_calls >= MIN_REQUESTS and stats.num_failed > limit * stats.num_calls:
            raise JudgeStopped(
                f"{stats.num_failed} of {stats.num_calls} calls of the GenRM failed,"
                f" more than genrm.max_failed_share={limit:g}"
            )
        valid = np.array([sample.valid for sample in judged])
        grades = [sample.grade for sample in judged if sample.grade is not None]
        graded = len(grades) == len(judged)
        lengths = np.array([sample.num_tokens for sample in judged])
        values = np.where(valid, [sample.reward for sample in judged], 0).astype(np.float32)
        bonus, longest = None, self.run.generator.max_new_tokens
        cut = [sample.is_cut for sample in judged]
        paid, valid = apply_truncation(
            values, valid, lengths, cut, self.run.algo, default="keep", max_new_tokens=longest
        )
        if coefficient := self.run.actor.length_penalty:
            groups = np.array([sample.group for sample in judged])
            bonus = length_bonus(
                values, valid, lengths, groups, coefficient=coefficient, max_new_tokens=longest
            )
        return ActorRewards(
            values=paid,
            valid=valid,
            parts=paid[:, None],
            bonus=bonus,
            quality=np.array([grade.quality for grade in grades]) if graded else None,
            cue=np.array([grade.cue for grade in grades]) if graded else None,
            stats=stats,
        )

    def metrics(self, rewards: ActorRewards) -> dict[str, float]:
        stats, found = rewards.stats, {}
        if rewards.quality is not None and rewards.cue is not None:
            found = {
                "actor/quality": float(rewards.quality.mean()),
                "actor/perfect_share": float((rewards.quality == 1).mean()),
                "actor/cue_share": float(rewards.cue.mean()),
                "actor/reward_quality_corr": _correlation(
                    rewards.values[rewards.valid], rewards.quality[rewards.valid]
                ),
            }
        return found | {
            "judge/num_comparisons": stats.num_comparisons,
            "judge/num_same": stats.num_same,
            "judge/num_calls": stats.num_calls,
            "judge/num_failed": stats.num_failed,
            "judge/num_unparsable": stats.num_unparsable,
            "judge/num_masked": stats.num_masked,
            "judge/num_ties": stats.num_ties,
            "judge/num_without_fit": stats.num_without_fit,
            "judge/first_position_share": stats.first_position_share,
            "judge/swap_consistency": stats.swap_consistency,
        }

    def record(self, sample: ActorResponse) -> dict[str, Any]:
        reward = sample.reward if sample.valid else None
        oracle = {} if sample.grade is None else {"quality": sample.grade.quality, "cue": sample.grade.cue}
        found = {"id": self.examples[sample.example].question.id, "reward": reward, **oracle}
        if sample.transcripts:
            found["comparisons"] = [_readable(transcript) for transcript in sample.transcripts]
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"tokens_used": total_tokens_used(self._judge, self.replicas)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore_budget(self._judge, self.replicas, state["tokens_used"])

    @property
    def _judge(self) -> Judge | None:
        return self.reward_model.judge if self.reward_model else None


def _readable(transcript: Transcript) -> dict[str, Any]:
    """A comparison in rollouts/: samples by their place in the group, positions as the GenRM names them."""

    def position(sample: int, text: str) -> dict[str, Any]:
        return {"sample": "reference" if sample == REFERENCE else sample, "text": text}

    return {
        "A": position(transcript.call.first, transcript.first),
        "B": position(transcript.call.second, transcript.second),
        "better": _POSITIONS.get(transcript.answer.value, transcript.answer.value),
        "reply": transcript.reply or transcript.problem,
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation; NaN where one of them is constant."""
    varies = len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
    return float(np.corrcoef(x, y)[0, 1]) if varies else math.nan
