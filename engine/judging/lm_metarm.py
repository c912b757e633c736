"""A language model as MetaRM: its prompt, its answer read strictly, its outcomes.

The procedure is the released one, in our own words: it is shown what the judge was shown, both judgments, and takes
the decisive points from the golden one, checks that the rationale under review states them and that what else this
one claims is really in the responses, and answers in XML. The ways in which a text could answer in the MetaRM's
place are closed: thinking is stripped from both judgments, tags of our prompt and of our answer form are defused in
every text that goes into it, and an answer counts only if it has each tag once, in order, outside the model's own
thinking, and was not cut off. All else is a ParseFail, asked for again `num_tries` times.

Graded: the model marks each golden point as covered or not, and the share of covered ones decides.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ralign.engine.config.judge import JudgeConfig
from ralign.engine.data.metarm_prompts import load_metarm_template, render_review
from ralign.engine.data.pairs import Pair
from ralign.engine.data.verdicts import visible
from ralign.engine.judging.judge import Judge, Reply, Request, awake
from ralign.engine.judging.metarm import Outcome


@dataclass(kw_only=True, slots=True, frozen=True)
class Review:
    """What a MetaRM made of one judgment.

    Attributes:
        raw: its whole answer. analysis: the part between the analysis tags.
        coverage: share of golden points covered (graded mode alone).
        error: why there is no verdict, for failed outcomes.
    """

    outcome: Outcome
    raw: str = ""
    analysis: str = ""
    coverage: float | None = None
    error: str = ""


def parse_review(reply: Reply, *, graded: bool = False, threshold: float = 0.5) -> Review:
    """Reads one reply; every reply gives a review, and only a faultless one a verdict."""
    if reply.failed:
        return Review(outcome=Outcome.CALL_FAIL, error=reply.problem)

    def fail(error: str) -> Review:
        return Review(outcome=Outcome.PARSE_FAIL, raw=reply.text, error=error)

    if reply.problem:
        return fail(reply.problem)
    if reply.finish_reason == "length":
        return fail("the answer was cut off at its longest length")
    text = visible(reply.text)
    last_tag = "coverage" if graded else "final_verdict"
    analysis, analysis_end, error = _between(text, "genrm_analysis", 0)
    if error:
        return fail(error)
    last, _, error = _between(text, last_tag, analysis_end)
    if error:
        return fail(error)
    if not graded:
        outcome = {"correct": Outcome.CORRECT, "incorrect": Outcome.INCORRECT}.get(last.strip().lower())
        if outcome is None:
            return fail(f"the verdict is {last.strip()[:40]!r}, neither Correct nor Incorrect")
        return Review(outcome=outcome, raw=reply.text, analysis=analysis)
    points, points_end, error = _between(text, "golden_key_points", 0)
    marks = [mark.strip().lower() for mark in last.split(",")]
    num_points = points.count("<point>")
    if error or not num_points or num_points != points.count("</point>"):
        return fail(error or "no golden points, or unclosed ones")
    if points_end > text.index("<genrm_analysis>"):
        return fail("the points do not come before the analysis")
    if len(marks) != num_points or not set(marks) <= {"yes", "no"}:
        return fail(f"{num_points} points, but the coverage is {last.strip()[:40]!r}")
    coverage = marks.count("yes") / num_points
    outcome = Outcome.CORRECT if coverage > 0 and coverage >= threshold else Outcome.INCORRECT
    return Review(outcome=outcome, raw=reply.text, analysis=analysis, coverage=coverage)


def _between(text: str, tag: str, start: int) -> tuple[str, int, str]:
    """What the only pair of this tag holds, where it ends, and what is wrong ("" if nothing is)."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    if text.count(opening) != 1 or text.count(closing) != 1:
        return "", 0, f"{text.count(opening)} times {opening}, {text.count(closing)} times {closing}"
    begin, end = text.index(opening) + len(opening), text.index(closing)
    if not start <= begin - len(opening) < begin <= end:
        return "", 0, f"{opening} is out of order"
    return text[begin:end].strip(), end + len(closing), ""


class LanguageMetaRM:
    """A MetaRM that asks a `Judge`."""

    def __init__(
        self,
        judge: Judge,
        template: str,
        *,
        graded: bool = False,
        threshold: float = 0.5,
        num_tries: int = 2,
    ):
        """`template` is text (see `load_metarm_template`); `num_tries` bounds the questions per judgment.

        Answers are read as graded ones if `graded`, or if the template asks for ``<coverage>``.
        """
        self.judge, self.template, self.num_tries = judge, template, num_tries
        self.graded, self.threshold = graded or "<coverage>" in template, threshold

    @classmethod
    def of(cls, judge: Judge, config: JudgeConfig) -> "LanguageMetaRM":
        """As the settings have it; UserError for a template that cannot be read."""
        template = load_metarm_template(config.template, graded=config.graded)
        return cls(
            judge,
            template,
            graded=config.graded,
            threshold=config.graded_threshold,
            num_tries=config.num_tries,
        )

    @property
    def stop_reason(self) -> str | None:
        """Why nothing more will be judged, or None."""
        return self.judge.stop_reason

    def awake(self) -> AbstractContextManager[None]:
        """To be held open while judgments are submitted and awaited."""
        return awake(self.judge)

    def review(self, pair: Pair, judgment: str) -> Future[Review]:
        """Asks without waiting; the future raises only what the judge's own does."""
        result: Future[Review] = Future()
        self._try(render_review(self.template, pair, judgment), 0, result)
        return result

    def _try(self, prompt: str, attempt: int, result: Future[Review]) -> None:
        def read(reply: Future[Reply]) -> None:
            if reply.cancelled():  # the judge was closed
                result.set_result(Review(outcome=Outcome.CALL_FAIL, error="the judge was closed"))
                return
            if error := reply.exception():
                result.set_exception(error)
                return
            review = parse_review(reply.result(), graded=self.graded, threshold=self.threshold)
            if review.outcome is Outcome.PARSE_FAIL and attempt + 1 < self.num_tries:
                self._try(prompt, attempt + 1, result)
            else:
                result.set_result(review)

        self.judge.submit(Request.of(prompt, attempt)).add_done_callback(read)

    def submit(self, pair: Pair, judgment: str) -> Future[Outcome]:
        """As `review`, the outcome alone."""
        outcome: Future[Outcome] = Future()

        def read(review: Future[Review]) -> None:
            if error := review.exception():
                outcome.set_exception(error)
            else:
                outcome.set_result(review.result().outcome)

        self.review(pair, judgment).add_done_callback(read)
        return outcome

    def review_batch(self, pairs: Sequence[Pair], judgments: Sequence[str]) -> list[Review]:
        """Reviews in order, when all are there."""
        futures = [self.review(p, j) for p, j in zip(pairs, judgments, strict=True)]
        return [future.result() for future in futures]

    def judge_batch(self, pairs: Sequence[Pair], judgments: Sequence[str]) -> list[Outcome]:
        return [review.outcome for review in self.review_batch(pairs, judgments)]

    def close(self) -> None:
        self.judge.close()
