"""A GenRM as the reward of groups of answers: comparisons asked of a `Judge`, rewards and counts given back."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ralign.engine.data.chat import Messages
from ralign.engine.data.verdicts import parse_verdict, visible
from ralign.engine.judging.comparisons import (
    REFERENCE,
    Answer,
    Call,
    GroupResult,
    Schedule,
    Tournament,
    Transcript,
    cache_order,
    length_penalty,
)
from ralign.engine.judging.judge import Judge, JudgeStopped, Reply, Request

_ANSWERS = {"A": Answer.FIRST, "B": Answer.SECOND, None: Answer.UNPARSABLE}


@dataclass(kw_only=True, slots=True)
class Group:
    """The answers to one prompt.

    Attributes:
        name: names the prompt; draws of seats and opponents depend on it.
        texts: the answers.
        lengths: of each, in tokens, for the length penalty.
        messages_for: how the judge is asked about two of them, the first seat's first.
        reference: the fixed answer; the scheme `reference` needs one.
        strengths: of each answer, known beforehand (by a reward model, say), to seed a knockout; None seeds by lot.
    """

    name: str
    texts: Sequence[str]
    lengths: Sequence[int]
    messages_for: Callable[[str, str], Messages]
    reference: str | None = None
    strengths: Sequence[float] | None = None


class PairwiseReward:
    """Plays the tournaments of many groups at once, a round of all groups at a time.

    Two answers of the same text are not asked about: their order would decide. An answer without a verdict is
    asked for again, `num_tries` times in all.
    """

    def __init__(
        self, judge: Judge, schedule: Schedule, *, num_tries: int = 1, length_coefficient: float = 0.0
    ):
        self.judge, self.schedule, self.num_tries = judge, schedule, num_tries
        self.length_coefficient = length_coefficient

    def score(self, groups: Sequence[Group], seed: int, num_kept: int = 0) -> list[GroupResult]:
        """One result a group, in order. The same groups, seed and answers give the same rewards.

        The first `num_kept` calls are kept word for word.

        Raises:
            JudgeStopped: the judge will answer nothing more.
        """
        tournaments = [Tournament(self.schedule, _lot(seed, group.name), group.strengths) for group in groups]
        kept: list[list[Transcript]] = [[] for _ in groups]
        while asked := [n for n, tournament in enumerate(tournaments) if tournament.calls]:
            rounds = self._round([(groups[n], tournaments[n].calls) for n in asked])
            for n, transcripts in zip(asked, rounds, strict=True):
                tournaments[n].answer([transcript.answer for transcript in transcripts])
                said = [transcript for transcript in transcripts if transcript.answer is not Answer.SAME]
                kept[n] += said[: num_kept - sum(map(len, kept))]
        if self.judge.stop_reason is not None:
            raise JudgeStopped(self.judge.stop_reason)
        results = [tournament.result() for tournament in tournaments]
        for group, result, transcripts in zip(groups, results, kept, strict=True):
            result.transcripts = transcripts
            if self.length_coefficient:
                result.rewards = length_penalty(
                    result.rewards, result.valid, np.asarray(group.lengths), self.length_coefficient
                )
        return results

    def _round(self, calls: Sequence[tuple[Group, Sequence[Call]]]) -> list[list[Transcript]]:
        """What was said in one round, group by group, in the order of the calls."""
        flat = [(group, call, *_texts(group, call)) for group, of_group in calls for call in of_group]
        replies: list[Reply | None] = [None] * len(flat)
        order = cache_order([group.name for group, *_ in flat], [first for *_, first, _ in flat])
        open_calls = [i for i in order if flat[i][2] != flat[i][3]]
        for attempt in range(self.num_tries):
            futures = []
            for i in open_calls:
                group, _, first, second = flat[i]
                asked = Request(messages=group.messages_for(first, second), attempt=attempt)
                futures.append(self.judge.submit(asked))
            for i, future in zip(open_calls, futures, strict=True):
                replies[i] = future.result()
            open_calls = [i for i in open_calls if read_answer(replies[i]) is Answer.UNPARSABLE]
        said = (_transcript(*call, reply) for (_, *call), reply in zip(flat, replies, strict=True))
        return [[next(said) for _ in of_group] for _, of_group in calls]


def read_answer(reply: Reply) -> Answer:
    """What a GenRM's reply decides: its verdict, outside its thinking; a call without an answer has failed."""
    return Answer.FAILED if reply.failed else _ANSWERS[parse_verdict(visible(reply.text))]


def _transcript(call: Call, first: str, second: str, reply: Reply | None) -> Transcript:
    """Without a reply nobody was asked."""
    answer = Answer.SAME if reply is None else read_answer(reply)
    said = Reply() if reply is None else reply
    return Transcript(
        call=call, first=first, second=second, reply=said.text, problem=said.problem, answer=answer
    )


def _texts(group: Group, call: Call) -> tuple[str, str]:
    def text(sample: int) -> str:
        if sample != REFERENCE:
            return group.texts[sample]
        assert group.reference is not None, f"{group.name} has no reference answer"
        return group.reference

    return text(call.first), text(call.second)


def _lot(seed: int, name: str) -> random.Random:
    return random.Random(hashlib.sha256(f"{seed} {name}".encode()).digest())
