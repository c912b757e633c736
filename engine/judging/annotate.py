"""Golden judgments for a pairs file, by a strong model that knows the label.

    ralign-annotate pairs=pairs.jsonl output=golden.jsonl annotator.model=NAME annotator.base_url=http://host:8000/v1

The model reads both responses and the label, and writes a judgment as if it had found the label itself. A judgment is
kept if its verdict is the label and its text does not reveal that the label was given; otherwise it is requested
again, up to `num_tries` requests in all. Pairs with a golden judgment keep it, unless `redo=True`.

Every answer is appended to OUTPUT.journal.jsonl at once. A killed run continues from there and repeats no answered
request. OUTPUT (the pairs with a judgment, in the order of the input) and OUTPUT.summary.json (counts of kept,
rejected and failed pairs with reasons, tokens, cost) are written at the end, and when a budget is spent. The next run
repeats failed calls.

The exit status is 2, with one line, if there is no judgment at the end or every call failed.
"""

import json
import queue
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar

from ralign.engine.config.command_line import parse
from ralign.engine.config.judge import EndpointConfig, check_endpoint, extra_fields
from ralign.engine.data.pairs import (
    Pair,
    other_side,
    read_pairs,
    write_pairs,
)
from ralign.engine.data.prompts import NO_CONTEXT, headings_of, quote_headings, read_template, safe_texts
from ralign.engine.data.verdicts import all_verdicts, visible
from ralign.engine.judging.annotate_journal import Journal
from ralign.engine.judging.cache import cache_key
from ralign.engine.judging.endpoint import Endpoint
from ralign.engine.judging.judge import ClientContext, JudgeStopped, Reply, Request
from ralign.engine.report.progress import Progress
from ralign.engine.runtime.entry_point import run_main
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import check_input, check_output, write_text
from ralign.engine.runtime.problems import Problems

NEEDED = ("prompt", "response_A", "response_B", "label")
_PLACEHOLDER = re.compile(r"\{(context|prompt|response_A|response_B|label|other|reviews)\}")

GOLDEN = r"""You write the reference judgment of a comparison: two responses to the same user message, of which \
experts found Response {label} the better one. Show why it is, as an expert would who read both with care. The \
judgment will be used to check the reasons that others give, so every reason must be a fact about the responses that \
can be looked up in them.

Weigh in this order: true and sound content; doing what was asked, constraints included; relevance and completeness;
clarity and economy; safety; originality where the message leaves room for it. Length and decoration earn nothing.

Write:
- Requirements: what the message asks for.
- Response A: strengths and weaknesses, each with the passage that shows it.
- Response B: likewise.
- Decisive differences: the one to three concrete differences that settle it, the weightiest first, each stating
  which response does what. Where Response {other} is better in something, say why that weighs less.
- Verdict: end with \boxed{{label}}, once, and write nothing after it.

Judge in your own voice. Do not mention that the outcome was known, nor the experts, nor these instructions.

[Notes of human reviewers]
{reviews}

[Dialogue before the message]
{context}

[User message]
{prompt}

[Response A]
{response_A}

[Response B]
{response_B}

[Reference judgment]
"""

_SIDE = r"(?:(?:response|assistant|output|answer)\s+\(?[ab]\b\)?|(?-i:[AB]\b))"
_FINDING = r"(?:label|verdict|preference|winner|(?:preferred|better|chosen) (?:response|answer|one))"
_FOUND = r"(?:find|found|judged?|prefer(?:red)?|deemed|considered|chose|rated|ranked|favou?r(?:ed)?|concluded|agreed?)"
_LABEL_LEAK = re.compile(
    # the label itself
    rf"\b(?:ground[- ]truth|gold(?:en)?|expert|experts') {_FINDING}\b"
    r"|\b(?:as|by|per|to|from|with|since|because) the (?:given|provided|known|stated|supplied)"
    rf" (?:{_FINDING}|outcome)\b"
    rf"|\bthe {_FINDING} (?:was|is|were|has been|had been) (?:given|provided|told|known|supplied|stated)\b"
    # its disclosure
    r"|\b(?:(?:I|we) (?:was|were|am|are|have been|had been)|I'm|I've been|we've been|we're) (?:told|informed|given)\b"
    rf"[^.!?\n]{{0,30}}?\b(?:{_SIDE} (?:is|was|wins|won)|which (?:response|one)|{_FINDING}|the (?:outcome|result))"
    rf"|\b(?:it (?:is|was)|being) (?:known|given|told|established) that {_SIDE} (?:is|was|wins|won)\b"
    r"|\b(?:the outcome|the result) (?:was|is) known (?:in advance|beforehand|to me)\b"
    r"|\bI (?:was|am|have been) (?:instructed|asked|told) to (?:justify|explain why|show why|argue)\b"
    # its authors, and their notes
    rf"|\b(?:experts?|reviewers?|annotators?|raters?) (?:have |had )?{_FOUND} (?:that )?"
    rf"(?:{_SIDE}|(?:it|(?:this|the first|the second)(?: one| response)?) (?:to be|the|better))"
    r"|\b(?:reviewers?|annotators?)['’]s? (?:notes?|comments?|verdicts?|labels?)\b"
    r"|\bnotes (?:of|from|by) (?:the )?(?:human )?(?:reviewers|annotators)\b",
    re.IGNORECASE,
)


@dataclass(kw_only=True, slots=True)
class AnnotatorConfig(EndpointConfig):
    """The model that writes golden judgments."""

    SETTING: ClassVar[str] = "annotator"


@dataclass(kw_only=True, slots=True)
class AnnotateConfig:
    """Settings of `ralign-annotate`."""

    pairs: str = ""
    """Pairs file (JSONL); gt_judgment may be missing."""
    output: str = ""
    """Pairs file to write, with its journal and summary beside it."""
    template: str = "golden"
    """Prompt template: golden, or a file."""
    num_tries: int = 2
    """Requests for one pair: a rejected judgment is requested again."""
    redo: bool = False
    """Replace golden judgments that exist."""
    max_bad_lines: int = 0
    """Bad lines of the pairs file to skip; one more ends the run."""
    limit: int | None = None
    """Number of pairs to read from the file, for a trial; None reads all."""
    annotator: AnnotatorConfig = field(default_factory=AnnotatorConfig)
    """The model that writes the judgments."""


def main() -> None:
    """The console script."""
    run_main(_main)


def _main(argv: list[str]) -> None:
    config = parse(AnnotateConfig(), argv, __doc__)
    _check(config)
    summary = annotate(config)
    reasons = ", ".join(f"{number} {reason}" for reason, number in summary["rejected"].items())
    print(
        f"{config.output}: {summary['num_kept']} of {summary['num_pairs']} pairs have a golden judgment;"
        f" {summary['num_rejected']} rejected{f' ({reasons})' if reasons else ''},"
        f" {summary['num_failed']} calls failed; {summary['tokens']['prompt']} + {summary['tokens']['answer']}"
        f" tokens, cost {summary['cost']:.4g}"
    )
    if summary["num_failed"] and not summary["num_answered"]:
        raise UserError(
            f"all {summary['num_failed']} calls failed ({summary['first_problem']}); the same command tries them again"
        )
    if not summary["num_kept"]:
        raise UserError(f"no pair of {config.pairs} got a golden judgment")


def _check(config: AnnotateConfig) -> None:
    """Raises UserError, with all mistakes in one line."""
    problems = Problems()
    for name, value in (("pairs", config.pairs), ("output", config.output)):
        problems.require(bool(value), f"{name} is missing: give {name}=FILE")
    for name, value in (("num_tries", config.num_tries), ("limit", config.limit)):
        problems.require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
    problems.require(
        config.max_bad_lines >= 0, f"max_bad_lines must not be negative, got {config.max_bad_lines}"
    )
    with problems.collect():
        check_endpoint(config.annotator)
    with problems.collect():
        load_template(config.template)
    if config.pairs:
        with problems.collect():
            check_input(config.pairs)
    if config.output:
        for path in (config.output, *_beside(config.output)):
            with problems.collect():
                check_output(path, [config.pairs] if config.pairs else [])
    problems.check()


def _beside(output: str) -> tuple[Path, Path]:
    """Journal and summary of an output file."""
    return Path(f"{output}.journal.jsonl"), Path(f"{output}.summary.json")


def annotate(config: AnnotateConfig) -> dict:
    """Write the output and its summary; returns the summary.

    Raises:
        UserError: a file cannot be used, or another process has the same output open.
        JudgeStopped: the budget is spent or the key was refused. The output holds the judgments so far.
    """
    template = load_template(config.template)
    pairs = read_pairs(config.pairs, max_bad_lines=config.max_bad_lines, need_golden=False)[: config.limit]
    with Journal(_beside(config.output)[0]) as journal:
        writer = Writer(config, template, journal)
        judge = Endpoint(config.annotator, ClientContext(tokens_used=journal.tokens))
        progress, done = Progress(), Counter()
        try:
            todo = [pair for pair in pairs if writer.needs_answer(pair)]
            with progress.stage(
                "annotate", f"Golden judgments by {config.annotator.model}", num_steps=len(todo)
            ):
                for end in writer.run(judge, todo):
                    done[end] += 1
                    progress.step(**done, tokens=sum(journal.tokens))
        finally:
            judge.close()
        summary = writer.finish(pairs)
    if judge.stop_reason is not None:
        raise JudgeStopped(
            f"{judge.stop_reason}; {config.output} holds the judgments so far, and the same command continues"
        )
    return summary


def load_template(name_or_path: str) -> str:
    """The built-in template of this name, or the file's text. UserError without either, or without a placeholder."""
    return read_template(name_or_path, {"golden": GOLDEN}, _PLACEHOLDER, NEEDED)


def render(template: str, pair: Pair) -> str:
    """The prompt for a pair; no text of the pair passes for a heading of the template."""
    reviews = pair.meta.get("reviews") or []
    texts = "\n".join(f"- {review}" for review in reviews) or NO_CONTEXT
    values = safe_texts(template, pair) | {
        "label": pair.gt_label,
        "other": other_side(pair.gt_label),
        "reviews": quote_headings(texts, headings_of(template, _PLACEHOLDER)),
    }
    return _PLACEHOLDER.sub(lambda found: values[found.group(1)], template)


def reason_to_reject(reply: Reply, label: str) -> str | None:
    """Why an answer is rejected as a golden judgment for this label, in a few words, or None."""
    if reply.problem:
        return "empty or too long"
    if reply.finish_reason == "length":
        return "cut off"
    text = visible(reply.text)
    verdicts = all_verdicts(text)
    if not verdicts:
        return "no verdict"
    if set(verdicts) != {label}:
        return "verdict is not the label" if len(set(verdicts)) == 1 else "two verdicts"
    return "reveals the label" if _LABEL_LEAK.search(text) else None


class Writer:
    """Requests the missing judgments, and counts the results."""

    def __init__(self, config: AnnotateConfig, template: str, journal: Journal):
        self.config, self.template, self.journal = config, template, journal
        self.failed: Counter[str] = Counter()  # problem -> number of failed calls
        self.first_problem = ""  # of the failed calls
        self.num_answered = 0  # in this run

    def key(self, pair: Pair) -> str:
        """A hash of everything that an answer depends on: prompt, model and sampling."""
        judge = self.config.annotator
        sampling = [judge.temperature, judge.max_new_tokens, extra_fields(judge)]
        return cache_key(
            id=pair.id, prompt=render(self.template, pair), model=judge.model, sampling=sampling
        ).hex()[:32]

    def needs_answer(self, pair: Pair) -> bool:
        """Whether a request for this pair is missing."""
        if pair.gt_judgment and not self.config.redo:
            return False
        tries = self.journal.tries.get(self.key(pair), [])
        return not tries or (tries[-1]["reason"] is not None and len(tries) < self.config.num_tries)

    def run(self, judge: Endpoint, todo: list[Pair]) -> Iterator[str]:
        """Request judgments of all pairs in `todo`; yields "kept", "rejected" or "failed" when a pair is finished.

        At most `concurrency` pairs are open at once, so a kill loses no more answers than that. Ends early if the
        judge stops.
        """
        arrived: queue.SimpleQueue = queue.SimpleQueue()
        waiting = iter(todo)
        num_open = 0

        def submit(pair: Pair) -> None:
            attempt = len(self.journal.tries.get(self.key(pair), []))
            request = Request.of(render(self.template, pair), attempt)
            judge.submit(request).add_done_callback(lambda done: arrived.put((pair, done)))

        for pair in islice(waiting, self.config.annotator.concurrency):
            submit(pair)
            num_open += 1
        while num_open:
            pair, done = arrived.get()
            # Not in the callback, which would swallow an error and leave this loop waiting forever.
            reply = Reply(failed=True, problem="cancelled") if done.cancelled() else done.result()
            reason = reason_to_reject(reply, pair.gt_label)
            if reply.failed:
                self.failed[reply.problem.partition(": ")[0]] += 1
                self.first_problem = self.first_problem or reply.problem
                if reply.num_prompt_tokens or reply.num_answer_tokens:
                    self.journal.add_failed(pair, reply)
            else:
                self.num_answered += 1
                self.journal.add(self.key(pair), pair, reply, reason)
                if self.needs_answer(pair):
                    submit(pair)
                    continue
            num_open -= 1
            yield "failed" if reply.failed else "rejected" if reason else "kept"
            if judge.stop_reason is None and (following := next(waiting, None)) is not None:
                submit(following)
                num_open += 1

    def finish(self, pairs: list[Pair]) -> dict:
        """Write output and summary; returns the summary."""
        kept, rejected = [], Counter()
        for pair in pairs:
            tries = self.journal.tries.get(self.key(pair))
            if pair.gt_judgment and not self.config.redo:
                kept.append(pair)
            elif tries and tries[-1]["reason"] is None:
                kept.append(replace(pair, gt_judgment=tries[-1]["judgment"]))
            elif tries:
                rejected[tries[-1]["reason"]] += 1
        write_pairs(self.config.output, kept)
        num_prompt, num_answer = self.journal.tokens
        judge = self.config.annotator
        summary = {
            "model": judge.model,
            "num_pairs": len(pairs),
            "num_kept": len(kept),
            "num_rejected": rejected.total(),
            "rejected": dict(rejected.most_common()),
            "num_answered": self.num_answered,
            "num_left": len(pairs) - len(kept) - rejected.total(),
            "num_failed": self.failed.total(),
            "failed": dict(self.failed.most_common()),
            "first_problem": self.first_problem,
            "tokens": {"prompt": num_prompt, "answer": num_answer},
            "cost": (num_prompt * judge.price_in + num_answer * judge.price_out) / 1e6,
        }
        write_text(_beside(self.config.output)[1], json.dumps(summary, indent=2) + "\n")
        return summary
