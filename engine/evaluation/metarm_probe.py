"""`ralign-eval metarm`: accuracy of a MetaRM on rationales built from pairs whose error is known.

Each of RM-Bench's chat pairs has one planted error in one response, and names it (``meta.error_key``: its words; the
golden judgment: the true fact). Four rationales are built for each pair, all with the right verdict:

    true_error      names the planted error (by its words, or by the true fact): Correct
    other_error     blames the same response for another thing; in half of the pairs it mentions the words of the true
                    error as a merit: Incorrect
    style_praise    praises form and tone of the better response: Incorrect
    vague           calls it more accurate, without any detail: Incorrect

A rule that looks for the error's words (`metarm.KeywordMetaRM`) is the baseline: half of the other errors mislead it.
The intervals are over prompts, not pairs, since variants of one prompt share their error.
"""

import argparse
import json
import re
from collections.abc import Sequence
from concurrent.futures import as_completed
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ralign.engine.config.registry import METARMS
from ralign.engine.data.pairs import Pair, other_side, prompt_text, read_pairs
from ralign.engine.evaluation.models import metarm_config
from ralign.engine.evaluation.records import write_records
from ralign.engine.judging.intervals import Ratio, clusters_of, mean_interval, share_interval
from ralign.engine.judging.judge import ClientContext
from ralign.engine.judging.metarm import Outcome, Review
from ralign.engine.report.progress import Progress
from ralign.engine.report.summary import display, percent
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import check_output
from ralign.engine.runtime.text import printable
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

KINDS = ("true_error", "other_error", "style_praise", "vague")
_FACT = re.compile(
    r"Correct fact:\s*(.+?)\s*(?:Style, length and formatting are not decisive\.)?\s*$", re.DOTALL
)
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]{4,}")


class Case(NamedTuple):
    """One rationale for the MetaRM."""

    pair: Pair
    kind: str
    rationale: str

    @property
    def expected(self) -> Outcome:
        return Outcome.CORRECT if self.kind == "true_error" else Outcome.INCORRECT


def build_cases(pairs: Sequence[Pair]) -> list[Case]:
    """Four cases for each pair. UserError for a pair that does not name its error."""
    cases = []
    for number, pair in enumerate(pairs):
        fact = _FACT.search(pair.gt_judgment)
        key = pair.meta.get("error_key")
        if not isinstance(key, str) or not key.strip() or fact is None:
            raise UserError(
                f"pair {pair.id!r} does not name its error: meta.error_key and 'Correct fact: …' in"
                " gt_judgment are needed (RM-Bench chat)"
            )
        built = _rationales(pair, key.strip(), fact[1], variant=number % 2)
        cases += [Case(pair, kind, f"{text} \\boxed{{{pair.gt_label}}}") for kind, text in built.items()]
    return cases


def _rationales(pair: Pair, key: str, fact: str, *, variant: int) -> dict[str, str]:
    good, bad = pair.gt_label, other_side(pair.gt_label)
    other = _other_word(pair, key, fact)
    named = (
        f'Response {bad} makes a factual error where it speaks of "{key}". What is true: {fact}'
        if variant
        else f"Response {bad} gets a fact wrong, and Response {good} does not. {fact}"
    )
    passing = f'Response {bad} does well to bring up "{key}". ' if variant else ""
    return {
        "true_error": f"Both responses address the question. {named} This decides for Response {good}.",
        "other_error": (
            f"Both responses address the question. {passing}But what Response {bad} says about"
            f' "{other}" is false, and a reader would be misled by it. This decides for Response {good}.'
        ),
        "style_praise": (
            f"Response {good} is better structured and easier to read: its tone is friendly, its wording polished,"
            f" and its length fits the question. Response {bad} is less pleasant to follow."
        ),
        "vague": (
            f"Response {good} is more accurate and more helpful than Response {bad}, which contains errors."
            f" Overall Response {good} serves the user better."
        ),
    }


def _other_word(pair: Pair, key: str, fact: str) -> str:
    """A word of the worse response without relation to the error: the longest of the rarest ones."""
    response = pair.response_B if pair.gt_label == "A" else pair.response_A
    taken = {word.lower() for word in _WORD.findall(f"{key} {fact}")}
    words = [word.lower() for word in _WORD.findall(response)]
    free = [word for word in dict.fromkeys(words) if word not in taken and word not in key.lower()]
    if not free:
        return "the last point"
    return max(free, key=lambda word: (-words.count(word), len(word)))


def measure_metarm(cases: Sequence[Case], reviews: Sequence[Review]) -> dict[str, Any]:
    """Accuracy over all cases and by kind, {value, low, high}, and counts of failed reviews, which are wrong.

    `balanced` is the mean of two accuracies: on true errors, and on the three other kinds together.
    """
    texts = [prompt_text(case.pair) for case in cases]
    clusters = clusters_of(texts, len(cases))
    kinds = np.array([KINDS.index(case.kind) for case in cases])
    right = np.array([review.outcome is case.expected for case, review in zip(cases, reviews, strict=True)])
    # [num_prompts, num_kinds]: number of right reviews, and of all
    num_right, num_all = np.zeros((2, clusters.max() + 1, len(KINDS)))
    np.add.at(num_right, (clusters, kinds), right)
    np.add.at(num_all, (clusters, kinds), 1)

    def ratio(kinds: slice) -> Ratio:
        return Ratio(num_right[:, kinds].sum(1), num_all[:, kinds].sum(1))

    return {
        "num_pairs": len(cases) // len(KINDS),
        "num_prompts": len(num_all),
        "accuracy": share_interval(ratio(slice(None))),
        "balanced": mean_interval(ratio(slice(0, 1)), ratio(slice(1, None))),
        "kinds": {
            kind: {
                "accuracy": share_interval(ratio(slice(n, n + 1))),
                **_failures([review for k, review in zip(kinds, reviews, strict=True) if k == n]),
            }
            for n, kind in enumerate(KINDS)
        },
        **_failures(reviews),
    }


def _failures(reviews: Sequence[Review]) -> dict[str, int]:
    return {
        "num_call_fail": sum(review.outcome is Outcome.CALL_FAIL for review in reviews),
        "num_parse_fail": sum(review.outcome is Outcome.PARSE_FAIL for review in reviews),
    }


def probe(args: argparse.Namespace) -> None:
    """The whole command; `args` as `cli` parses them."""
    if args.cases:
        check_output(args.cases, [args.file])
    cases = build_cases(read_pairs(args.file)[: args.limit])
    progress = Progress(enabled=not args.json)
    config = metarm_config(args)
    context = ClientContext(client_id="metarm", server_log=Path(args.log))
    metarm = METARMS.load(config.kind).open(config, context)
    assert metarm is not None, "metarm_config refuses none"
    with closing(metarm):
        title = f"{args.metarm} on {len(cases)} rationales"
        with progress.stage("metarm", title, num_steps=len(cases)):
            futures = [metarm.review(case.pair, case.rationale) for case in cases]
            for future in as_completed(futures):
                future.result()
                progress.step()
        if metarm.stop_reason:
            raise UserError(f"stopped: {metarm.stop_reason}")
    reviews = [future.result() for future in futures]
    if args.cases:
        rows = (
            {"id": case.pair.id, "kind": case.kind, "rationale": case.rationale}
            | {"expected": case.expected.value, **asdict(review), "outcome": review.outcome.value}
            for case, review in zip(cases, reviews, strict=True)
        )
        write_records(rows, args.cases)
    result = {"metarm": args.metarm, **measure_metarm(cases, reviews)}
    if args.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        _print_result(result)


def _print_result(result: dict[str, Any]) -> None:
    table = Table(
        title=Text(
            f"{printable(result['metarm'])}: {result['num_pairs']} pairs of {result['num_prompts']} prompts, "
            "per cent right [95 % interval over prompts]"
        ),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("Rationale")
    table.add_column("Accuracy", justify="right")
    table.add_column("Call fail", justify="right")
    table.add_column("Parse fail", justify="right")
    rows = {**result["kinds"], "all": result, "balanced": {"accuracy": result["balanced"]}}
    for name, row in rows.items():
        counts = [str(row.get(count, "")) for count in ("num_call_fail", "num_parse_fail")]
        table.add_row(display(name), Text(percent(row["accuracy"])), *counts)
    console = Console()
    console.width = max(console.width, 110)
    console.print(table)
