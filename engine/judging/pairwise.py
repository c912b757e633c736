"""A GenRM as the reward of groups of answers: comparisons asked of a `Judge`, rewards and counts given back."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ralign.engine.judging.comparisons import (
    REFERENCE,
    Answer,
    Call,
    GroupResult,
    Schedule,
    Tournament,
    cache_order,
    length_penalty,
)
from ralign.engine.judging.judge import Judge, JudgeStopped, Reply, Request
from ralign.engine.judging.verdicts import parse_verdict, visible

_ANSWERS = {"A": Answer.FIRST, "B": Answer.SECOND, None: Answer.UNPARSABLE}


@dataclass(kw_only=True, slots=True)
class Group:
    """The answers to one prompt.

    Attributes:
        name: names the prompt; draws of seats and opponents depend on it.
        texts: the answers.
        lengths: of each, in tokens, for the length penalty.
        prompt_for: the judge's prompt for two of them, the first seat's first.
        reference: the fixed answer; the scheme `reference` needs one.
    """

    name: str
    texts: Sequence[str]
    lengths: Sequence[int]
    prompt_for: Callable[[str, str], str]
    reference: str | None = None


class PairwiseReward:
    """Plays the tournaments of many groups at once, a round of all groups at a time.

    Two answers of the same text tie without a call: their order would decide. An answer without a verdict is asked
    for again, `num_tries` times in all.
    """

    def __init__(
        self, judge: Judge, schedule: Schedule, *, num_tries: int = 1, length_coefficient: float = 0.0
    ):
        self.judge, self.schedule, self.num_tries = judge, schedule, num_tries
        self.length_coefficient = length_coefficient

    def score(self, groups: Sequence[Group], seed: int) -> list[GroupResult]:
        """One result a group, in order. The same groups, seed and answers give the same rewards.

        Raises:
            JudgeStopped: the judge will answer nothing more.
        """
        tournaments = [Tournament(self.schedule, _lot(seed, group.name)) for group in groups]
        while asked := [n for n, tournament in enumerate(tournaments) if tournament.calls]:
            answers = self._round([(groups[n], tournaments[n].calls) for n in asked])
            for n, of_group in zip(asked, answers, strict=True):
                tournaments[n].answer(of_group)
        if self.judge.stop_reason is not None:
            raise JudgeStopped(self.judge.stop_reason)
        results = [tournament.result() for tournament in tournaments]
        if self.length_coefficient:
            for group, result in zip(groups, results, strict=True):
                result.rewards = length_penalty(
                    result.rewards, result.valid, np.asarray(group.lengths), self.length_coefficient
                )
        return results

    def _round(self, calls: Sequence[tuple[Group, Sequence[Call]]]) -> list[list[Answer]]:
        """Answers to the calls of one round, group by group."""
        flat = [(group, *_texts(group, call)) for group, of_group in calls for call in of_group]
        answers: list[Answer] = [Answer.TIE] * len(flat)
        order = cache_order([group.name for group, *_ in flat], [first for _, first, _ in flat])
        open_calls = [i for i in order if flat[i][1] != flat[i][2]]
        for attempt in range(self.num_tries):
            futures = []
            for i in open_calls:
                group, first, second = flat[i]
                futures.append(self.judge.submit(Request.of(group.prompt_for(first, second), attempt)))
            for i, future in zip(open_calls, futures, strict=True):
                answers[i] = read_answer(future.result())
            open_calls = [i for i in open_calls if answers[i] is Answer.UNPARSABLE]
        rest = iter(answers)
        return [[next(rest) for _ in of_group] for _, of_group in calls]


def read_answer(reply: Reply) -> Answer:
    """What a GenRM's reply decides: its verdict, outside its thinking; a call without an answer has failed."""
    return Answer.FAILED if reply.failed else _ANSWERS[parse_verdict(visible(reply.text))]


def _texts(group: Group, call: Call) -> tuple[str, str]:
    def text(sample: int) -> str:
        if sample != REFERENCE:
            return group.texts[sample]
        assert group.reference is not None, f"{group.name} has no reference answer"
        return group.reference

    return text(call.first), text(call.second)


def _lot(seed: int, name: str) -> random.Random:
    return random.Random(hashlib.sha256(f"{seed} {name}".encode()).digest())
