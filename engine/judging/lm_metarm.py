"""A language model as MetaRM: its prompt, a strict parser of its answer, and its outcomes.

The procedure is the released one in our own words. The model reads the judge's input and both judgments. It takes the
decisive points from the golden judgment, checks that the rationale under review states them, checks that the
rationale's other claims hold for the responses, and answers in XML.

No text can answer in the MetaRM's place: both judgments lose their thinking, tags of our prompt and of our answer form
are defused in every inserted text, and an answer counts only if it has each tag once, in order, outside the model's
thinking, and was not cut off. Any other answer is a ParseFail, requested again up to `num_tries` times in all.

A judgment that makes the prompt too long for the model is Incorrect, and not a failed call: the judge answers for its
length. It is the judgment's length if its visible part is longer than the golden judgment's.

Graded: the model marks each golden point as covered or not, and the share of covered points decides.
"""

from concurrent.futures import Future

from ralign.engine.config.judge import MetaRMConfig
from ralign.engine.data.metarm_prompts import load_metarm_template, render_review
from ralign.engine.data.pairs import Pair
from ralign.engine.data.verdicts import visible
from ralign.engine.judging.judge import Judge, Reply, Request
from ralign.engine.judging.metarm import MetaRM, Outcome, Review


def parse_review(reply: Reply, *, graded: bool = False, threshold: float = 0.5) -> Review:
    """The review in a reply. Every reply gives a review; only a faultless one gives a verdict."""
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
    """The text inside the only pair of this tag, the position after it, and the error ("" for none)."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    if text.count(opening) != 1 or text.count(closing) != 1:
        return "", 0, f"{text.count(opening)} times {opening}, {text.count(closing)} times {closing}"
    begin, end = text.index(opening) + len(opening), text.index(closing)
    if not start <= begin - len(opening) < begin <= end:
        return "", 0, f"{opening} is out of order"
    return text[begin:end].strip(), end + len(closing), ""


class LanguageMetaRM(MetaRM):
    """A MetaRM that sends its questions to a `Judge`."""

    judge: Judge

    def __init__(
        self,
        judge: Judge,
        template: str,
        *,
        graded: bool = False,
        threshold: float = 0.5,
        num_tries: int = 2,
    ):
        """`template` is text (see `load_metarm_template`); `num_tries` limits the requests for one judgment.

        Answers are parsed as graded ones if `graded` is set, or if the template contains ``<coverage>``.
        """
        self.judge, self.template, self.num_tries = judge, template, num_tries
        self.graded, self.threshold = graded or "<coverage>" in template, threshold

    @classmethod
    def of(cls, judge: Judge, config: MetaRMConfig) -> "LanguageMetaRM":
        """A MetaRM with these settings; UserError for a template that cannot be read."""
        template = load_metarm_template(config.template, graded=config.graded)
        return cls(
            judge,
            template,
            graded=config.graded,
            threshold=config.graded_threshold,
            num_tries=config.num_tries,
        )

    def review(self, pair: Pair, judgment: str) -> Future[Review]:
        result: Future[Review] = Future()
        longer = len(visible(judgment)) > len(visible(pair.gt_judgment))
        self._try(render_review(self.template, pair, judgment), 0, result, is_longer=longer)
        return result

    def _try(self, prompt: str, attempt: int, result: Future[Review], *, is_longer: bool) -> None:
        """`is_longer`: the judgment is longer than the golden one."""

        def read(reply: Future[Reply]) -> None:
            if reply.cancelled():
                result.set_result(Review(outcome=Outcome.CALL_FAIL, error="the judge was closed"))
                return
            if error := reply.exception():
                result.set_exception(error)
                return
            if reply.result().too_long and is_longer:
                error = f"the judgment is too long for the MetaRM: {reply.result().problem}"
                result.set_result(Review(outcome=Outcome.INCORRECT, error=error))
                return
            review = parse_review(reply.result(), graded=self.graded, threshold=self.threshold)
            if review.outcome is Outcome.PARSE_FAIL and attempt + 1 < self.num_tries:
                self._try(prompt, attempt + 1, result, is_longer=is_longer)
            else:
                result.set_result(review)

        self.judge.submit(Request.of(prompt, attempt)).add_done_callback(read)
