"""One model on one test: answers from a judge, and a MetaRM's reviews of them as they arrive.

For flip rates the judge also answers to each pair and to its twins greedily; these answers are not reviewed.

Two journals hold all answers and reviews with their token counts, and no request is repeated. Calls that failed for
good are not in the journals, so the next run of the same command repeats them.
"""

import hashlib
import queue
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from ralign.engine.data.chat import pair_messages
from ralign.engine.data.pairs import Pair, other_side
from ralign.engine.data.twins import own_side
from ralign.engine.data.verdicts import released_verdict
from ralign.engine.evaluation.journal import Journal, is_text, journal_key
from ralign.engine.evaluation.questions import (
    GREEDY,
    OWN,
    SWAPPED,
    Question,
    answer_key,
    error_fields,
    questions_of,
    twin_role,
)
from ralign.engine.evaluation.records import metarm_fields, twin_fields
from ralign.engine.evaluation.twins import Kinds, Twins
from ralign.engine.judging.judge import Judge, Reply, Request, Usage
from ralign.engine.judging.metarm import MetaRM, Outcome, Review
from ralign.engine.report.progress import Progress
from ralign.engine.runtime.errors import UserError

_REVIEWED = [outcome.value for outcome in Outcome if outcome not in (Outcome.SKIPPED, Outcome.CALL_FAIL)]
ANSWER_FIELDS = {"text": is_text}
REVIEW_FIELDS = {
    "outcome": lambda value: value in _REVIEWED,
    "raw": is_text,
    "analysis": is_text,
    "error": is_text,
    "coverage": lambda value: value is None or isinstance(value, float | int),
}


@dataclass(kw_only=True)
class Evaluation:
    """One model on one test."""

    pairs: Sequence[Pair]
    template: str
    both_orders: bool
    answers: Journal
    reviews: Journal
    progress: Progress
    kinds: Kinds = field(default_factory=dict)  # of twins
    twins: Twins = field(default_factory=dict)
    is_greedy: bool = False  # the judge is: a pair's own verdict is then also the greedy one
    failed: Mapping[str, str] = field(default_factory=dict)  # key -> why its answer cannot be had
    judge: Judge | None = None  # None: no answer is missing
    metarm: MetaRM | None = None  # None: no answer and no review is missing
    problems: dict[str, str] = field(default_factory=dict)  # key -> why its call failed in this run
    _events: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)
    _num_open: int = 0
    _num_right: int = 0
    _num_judged: int = 0
    _outcomes: Counter = field(default_factory=Counter)
    _meters: dict[str, "_Meter"] = field(default_factory=dict)

    def run(self) -> None:
        """Get every answer and review that the journals lack. A progress step is a finished question.

        Raises:
            UserError: judge or MetaRM has stopped (a spent budget, a refused key). The journals keep all results.
        """
        of_metarm = self.metarm.judge if self.metarm is not None else None
        self._meters = {"answers": _Meter(self.judge), "reviews": _Meter(of_metarm)}
        for question in self.questions:
            if question.key in self.answers:
                self._answered(question)
            elif question.key not in self.failed:
                assert self.judge is not None
                messages = pair_messages(self.template, question.shown)
                self._await(
                    self.judge.submit(Request(messages=messages, greedy=question.is_greedy)), question
                )
        while self._num_open:
            result, question = self._events.get()
            self._num_open -= 1
            found = result.result()
            if isinstance(found, Reply):
                self._receive(found, question)
            else:
                self._reviewed(found, question.pair)
        for source in (self.judge, self.metarm):
            if source is not None and source.stop_reason:
                raise UserError(
                    f"stopped: {source.stop_reason}; all results are kept, and the same command continues"
                )

    @cached_property
    def questions(self) -> list[Question]:
        """All that the judge is shown, pair by pair."""
        return [question for pair in self.pairs for question in self._questions(pair)]

    def _questions(self, pair: Pair) -> list[Question]:
        twins = {kind: made[pair.id] for kind, made in self.twins.items() if pair.id in made}
        return questions_of(
            pair, twins, both_orders=self.both_orders, greedy=bool(self.kinds) and not self.is_greedy
        )

    @property
    def keys(self) -> list[str]:
        """Keys of all answers, missing ones included."""
        return [question.key for question in self.questions]

    def num_missing(self) -> int:
        """Missing answers."""
        return sum(key not in self.answers and key not in self.failed for key in self.keys)

    def num_unfinished(self) -> int:
        """Questions without an answer, or with one that needs a review."""
        return self.num_missing() + sum(
            question.key in self.answers and self._lacks_review(question) for question in self.questions
        )

    def _await(self, future: Future, question: Question) -> None:
        self._num_open += 1
        future.add_done_callback(lambda done: self._events.put((done, question)))

    def _receive(self, reply: Reply, question: Question) -> None:
        if reply.failed:
            self.problems[question.key] = reply.problem
            self._step()
            return
        tokens = self._meters["answers"].read()
        record = {"text": reply.text, "finish_reason": reply.finish_reason, "tokens": tokens}
        self.answers.add(question.key, record)
        if not self._answered(question):
            self._step()

    def _answered(self, question: Question) -> bool:
        """Handle an answer in the journal; returns whether a review of it was requested."""
        if question.is_greedy:
            return False
        self._num_judged += 1
        self._num_right += self._is_right(question)
        if self._lacks_review(question):
            assert self.metarm is not None
            text = self.answers[question.key]["text"]
            self._await(self.metarm.review(question.pair, text), question)
            return True
        if question.is_own and (key := self._review_key(question.pair)) in self.reviews:
            self._outcomes[self.reviews[key]["outcome"]] += 1
        return False

    def _is_right(self, question: Question) -> bool:
        label = question.pair.gt_label
        verdict = released_verdict(self.answers[question.key]["text"])
        return verdict == (label if question.is_own else other_side(label))

    def _lacks_review(self, question: Question) -> bool:
        """Whether a review is missing: there is one for each right verdict on a pair in its own order."""
        return (
            question.is_own
            and self._is_right(question)
            and self._review_key(question.pair) not in self.reviews
        )

    def _reviewed(self, review: Review, pair: Pair) -> None:
        if review.outcome is Outcome.CALL_FAIL:
            self.problems[_review_problem(pair)] = review.error
        else:
            record = {**asdict(review), "outcome": review.outcome.value}
            self.reviews.add(self._review_key(pair), {**record, "tokens": self._meters["reviews"].read()})
            self._outcomes[review.outcome.value] += 1
        self._step()

    def _step(self) -> None:
        metrics = {"l_acc": self._num_right / self._num_judged} if self._num_judged else {}
        correct, incorrect = (self._outcomes[kind.value] for kind in (Outcome.CORRECT, Outcome.INCORRECT))
        if correct + incorrect:
            metrics["s_corr"] = incorrect / (correct + incorrect)
        self.progress.step(**metrics)

    def _review_key(self, pair: Pair) -> str:
        """A key with the answer's hash: a review does not hold for a later answer to the same pair."""
        text = self.answers[answer_key(pair.id, False)]["text"]
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return journal_key(pair.id, digest[:16])

    def records(self, model: str, metarm: str) -> list[dict[str, Any]]:
        """The judged pairs as records with the released fields, in order."""
        return [self._record(pair, model, metarm) for pair in self.pairs]

    def _record(self, pair: Pair, model: str, metarm: str) -> dict[str, Any]:
        questions = {question.role: question for question in self._questions(pair)}
        texts = {
            role: self.answers[question.key]["text"] if question.key in self.answers else None
            for role, question in questions.items()
        }
        verdicts = {role: released_verdict(text or "") for role, text in texts.items()}
        errors = {
            role: self.problems.get(question.key) or self.failed[question.key]
            for role, question in questions.items()
            if question.key not in self.answers
        }
        meta = {**pair.meta, "model_name": model, "metarm_model_name": metarm, "metarm_error": None}
        meta |= error_fields(errors)
        if verdicts[OWN] != pair.gt_label:
            judged = metarm_fields(Outcome.SKIPPED)
        elif (key := self._review_key(pair)) in self.reviews:
            review = self.reviews[key]
            judged = metarm_fields(Outcome(review["outcome"]), raw=review["raw"], analysis=review["analysis"])
            meta["metarm_error"] = review["error"] or None
            if review["coverage"] is not None:
                meta["metarm_coverage"] = review["coverage"]
        else:
            judged = metarm_fields(Outcome.CALL_FAIL)
            meta["metarm_error"] = self.problems[_review_problem(pair)]
        more = {}
        if self.both_orders:
            more = {"model_judgment_swapped": texts[SWAPPED], "model_pred_swapped": verdicts[SWAPPED]}
        if self.kinds:
            of_twins = {
                name: own_side(kind, verdicts[twin_role(name)])
                for name, kind in self.kinds.items()
                if twin_role(name) in verdicts
            }
            more |= twin_fields(verdicts[OWN if self.is_greedy else GREEDY], of_twins)
        return {
            **asdict(pair),
            "model_judgment": texts[OWN],
            "model_pred": verdicts[OWN],
            **more,
            **judged,
            "meta": meta,
        }


def _review_problem(pair: Pair) -> str:
    """The key of a failed review in `problems`, which holds failed answers too."""
    return journal_key(pair.id, "review")


class _Meter:
    """Token usage of a judge since the last read."""

    def __init__(self, judge: Judge | None) -> None:
        self._usage = Usage() if judge is None else judge.usage
        self._last = self._now()

    def _now(self) -> tuple[int, int]:
        return self._usage.num_prompt_tokens, self._usage.num_answer_tokens

    def read(self) -> list[int]:
        """[prompt, answer] tokens."""
        before, self._last = self._last, self._now()
        return [now - then for now, then in zip(self._last, before, strict=True)]
