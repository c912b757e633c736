"""Pairs through a judge and a MetaRM: answers are reviewed as they come in, and nothing is asked twice.

What is done is kept in two journals a model and test, one of answers and one of reviews. Calls that failed for
good are not kept: the same command asks them again.
"""

import hashlib
import queue
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ralign.engine.data.pairs import Pair, other_side
from ralign.engine.errors import UserError
from ralign.engine.evaluation.journal import Journal
from ralign.engine.evaluation.records import metarm_fields
from ralign.engine.judging.judge import Judge, Reply, Request
from ralign.engine.judging.lm_metarm import Review
from ralign.engine.judging.metarm import Outcome
from ralign.engine.judging.prompts import render
from ralign.engine.judging.verdicts import parse_verdict
from ralign.engine.report.progress import Progress

if TYPE_CHECKING:
    from ralign.engine.evaluation.metarms import Reviewer


@dataclass(kw_only=True, slots=True)
class Evaluation:
    """One model on one test."""

    pairs: Sequence[Pair]
    template: str
    both_orders: bool
    judge: Judge | None  # None: all answers are in the journal already
    metarm: "Reviewer"
    answers: Journal
    reviews: Journal
    progress: Progress
    problems: dict[str, str] = field(default_factory=dict)  # key -> why its call failed
    _events: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)
    _num_open: int = 0
    _num_right: int = 0
    _num_judged: int = 0

    def run(self) -> None:
        """Gets every answer and review that the journals lack.

        Raises UserError when judge or MetaRM will answer no more (a spent budget, a refused key); what was
        done until then is kept.
        """
        for pair in self.pairs:
            for swapped in self.orders:
                if key_of(pair, swapped) in self.answers:
                    self._answered(pair, swapped)
                else:
                    assert self.judge is not None
                    shown = replace(pair, response_A=pair.response_B, response_B=pair.response_A)
                    request = Request.of(render(self.template, shown if swapped else pair))
                    self._await(self.judge.submit(request), pair, swapped)
        while self._num_open:
            result, pair, swapped = self._events.get()
            self._num_open -= 1
            found = result.result()
            if isinstance(found, Reply):
                self._receive(found, pair, swapped)
            else:
                self._reviewed(found, pair)
        for asked in (self.judge, self.metarm):
            if asked is not None and asked.stop_reason:
                raise UserError(
                    f"stopped: {asked.stop_reason}; what is done is kept, the same command goes on"
                )

    @property
    def orders(self) -> tuple[bool, ...]:
        return (False, True) if self.both_orders else (False,)

    def num_missing(self) -> int:
        """Answers still to be had."""
        return sum(
            key_of(pair, swapped) not in self.answers for pair in self.pairs for swapped in self.orders
        )

    def _await(self, future: Future, pair: Pair, swapped: bool) -> None:
        self._num_open += 1
        future.add_done_callback(lambda done: self._events.put((done, pair, swapped)))

    def _receive(self, reply: Reply, pair: Pair, swapped: bool) -> None:
        key = key_of(pair, swapped)
        if reply.failed:
            self.problems[key] = reply.problem
            return
        self.answers.add(key, {"text": reply.text, "finish_reason": reply.finish_reason})
        self._answered(pair, swapped)
        self.progress.step(l_acc=self._num_right / self._num_judged)

    def _answered(self, pair: Pair, swapped: bool) -> None:
        """An answer is there: the MetaRM sees it if its label is right and the order the official one."""
        text = self.answers[key_of(pair, swapped)]["text"]
        right = parse_verdict(text) == (other_side(pair.gt_label) if swapped else pair.gt_label)
        self._num_judged += 1
        self._num_right += right
        if right and not swapped and self._review_key(pair) not in self.reviews:
            self._await(self.metarm.review(pair, text), pair, swapped)

    def _reviewed(self, review: Review, pair: Pair) -> None:
        if review.outcome is Outcome.CALL_FAIL:
            self.problems[f"review of {pair.id}"] = review.error
            return
        self.reviews.add(self._review_key(pair), {**asdict(review), "outcome": review.outcome.value})

    def _review_key(self, pair: Pair) -> str:
        """A review belongs to one answer: to another one, given after the first was thrown away, it says nothing."""
        text = self.answers[key_of(pair, False)]["text"]
        return f"{pair.id}\t{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def records(self, model: str, metarm: str) -> list[dict[str, Any]]:
        """The judged pairs in the released fields, in the order of the pairs."""
        return [self._record(pair, model, metarm) for pair in self.pairs]

    def _record(self, pair: Pair, model: str, metarm: str) -> dict[str, Any]:
        texts = [
            self.answers[key]["text"] if (key := key_of(pair, swapped)) in self.answers else ""
            for swapped in self.orders
        ]
        verdict = parse_verdict(texts[0])
        meta = {**pair.meta, "model_name": model, "metarm_model_name": metarm, "metarm_error": None}
        if pair.id in self.problems:
            meta["model_error"] = self.problems[pair.id]
        if verdict != pair.gt_label:
            judged = metarm_fields(Outcome.SKIPPED)
        elif (key := self._review_key(pair)) in self.reviews:
            review = self.reviews[key]
            judged = metarm_fields(Outcome(review["outcome"]), raw=review["raw"], analysis=review["analysis"])
            meta["metarm_error"] = review["error"] or None
            if review["coverage"] is not None:
                meta["metarm_coverage"] = review["coverage"]
        else:
            judged = metarm_fields(Outcome.CALL_FAIL)
            meta["metarm_error"] = self.problems[f"review of {pair.id}"]
        swapped = {}
        if self.both_orders:
            swapped = {"model_judgment_swapped": texts[1], "model_pred_swapped": parse_verdict(texts[1])}
        told = {"model_judgment": texts[0], "model_pred": verdict, **swapped, **judged}
        return {**asdict(pair), **told, "meta": meta}


def key_of(pair: Pair, swapped: bool) -> str:
    """An answer's key in its journal."""
    return f"{pair.id}\tswapped" if swapped else pair.id
