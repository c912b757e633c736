"""A GenRM as the reward model of groups of answers: comparisons by a `Judge`, rewards and counts from them."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ralign.engine.data.chat import Messages
from ralign.engine.data.verdicts import BOXED, VerdictForm, verdict_of
from ralign.engine.judging.comparisons import (
    REFERENCE,
    Answer,
    Call,
    GroupResult,
    Schedule,
    Tournament,
    Transcript,
    cache_order,
)
from ralign.engine.judging.judge import Judge, JudgeStopped, Reply, Request

_ANSWERS = {"A": Answer.FIRST, "B": Answer.SECOND, None: Answer.UNPARSABLE}


@dataclass(kw_only=True, slots=True)
class Group:
    """The answers to one prompt.

    Attributes:
        name: identifies the prompt; the random order and opponents depend on it.
        texts: the answers.
        messages_for: the judge's prompt for two answers, in this order.
        reference: the fixed answer that the scheme `reference` needs.
    """

    name: str
    texts: Sequence[str]
    messages_for: Callable[[str, str], Messages]
    reference: str | None = None


class PairwiseReward:
    """Runs the tournaments of many groups at once, round by round.

    Two answers with the same text are not put to the judge, which could only go by their order. A reply without a
    verdict is requested again, up to `num_tries` requests in all.
    """

    def __init__(
        self,
        judge: Judge,
        schedule: Schedule,
        *,
        num_tries: int = 1,
        form: VerdictForm = BOXED,
    ):
        self.judge, self.schedule, self.num_tries = judge, schedule, num_tries
        self.form = form

    def score(self, groups: Sequence[Group], seed: int, num_kept: int = 0) -> list[GroupResult]:
        """One result for each group, in order. The same groups, seed and replies give the same rewards.

        The results hold transcripts of the first `num_kept` calls.

        Raises:
            JudgeStopped: all further requests to the judge fail.
        """
        tournaments = [Tournament(self.schedule, _rng(seed, group.name)) for group in groups]
        kept: list[list[Transcript]] = [[] for _ in groups]
        while playing := [n for n, tournament in enumerate(tournaments) if tournament.calls]:
            rounds = self._round([(groups[n], tournaments[n].calls) for n in playing])
            for n, transcripts in zip(playing, rounds, strict=True):
                tournaments[n].answer([transcript.answer for transcript in transcripts])
                calls = [transcript for transcript in transcripts if transcript.answer is not Answer.SAME]
                kept[n] += calls[: num_kept - sum(map(len, kept))]
        if self.judge.stop_reason is not None:
            raise JudgeStopped(self.judge.stop_reason)
        results = [tournament.result() for tournament in tournaments]
        for result, transcripts in zip(results, kept, strict=True):
            result.transcripts = transcripts
        return results

    def _round(self, calls: Sequence[tuple[Group, Sequence[Call]]]) -> list[list[Transcript]]:
        """Transcripts of one round, by group, in the order of the calls."""
        flat = [(group, call, *_texts(group, call)) for group, of_group in calls for call in of_group]
        replies: dict[int, Reply] = {}
        order = cache_order([group.name for group, *_ in flat], [first for *_, first, _ in flat])
        open_calls = [i for i in order if flat[i][2] != flat[i][3]]
        for attempt in range(self.num_tries):
            futures = []
            for i in open_calls:
                group, _, first, second = flat[i]
                request = Request(messages=group.messages_for(first, second), attempt=attempt)
                futures.append(self.judge.submit(request))
            for i, future in zip(open_calls, futures, strict=True):
                replies[i] = future.result()
            open_calls = [i for i in open_calls if read_answer(replies[i], self.form) is Answer.UNPARSABLE]
        transcripts = (
            _transcript(call, first, second, replies.get(i), self.form)
            for i, (_, call, first, second) in enumerate(flat)
        )
        return [[next(transcripts) for _ in of_group] for _, of_group in calls]


def read_answer(reply: Reply, form: VerdictForm = BOXED) -> Answer:
    """The answer in a GenRM's reply: its verdict, outside its thinking."""
    return Answer.FAILED if reply.failed else _ANSWERS[verdict_of(reply.text, form)]


def _transcript(call: Call, first: str, second: str, reply: Reply | None, form: VerdictForm) -> Transcript:
    """No reply means that no call was needed."""
    answer = Answer.SAME if reply is None else read_answer(reply, form)
    text, problem = ("", "") if reply is None else (reply.text, reply.problem)
    return Transcript(call=call, first=first, second=second, reply=text, problem=problem, answer=answer)


def _texts(group: Group, call: Call) -> tuple[str, str]:
    def text(sample: int) -> str:
        if sample != REFERENCE:
            return group.texts[sample]
        assert group.reference is not None, f"{group.name} has no reference answer"
        return group.reference

    return text(call.first), text(call.second)


def _rng(seed: int, name: str) -> random.Random:
    return random.Random(hashlib.sha256(f"{seed} {name}".encode()).digest())
