"""`ralign-eval metarm`: how well a MetaRM tells the true reason from others."""

import argparse
import json
from concurrent.futures import as_completed
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from ralign.engine.evaluation.cli_options import add_endpoint_options, add_metarm_options, read_metarm
from ralign.engine.runtime.argparse_utils import positive
from ralign.engine.runtime.errors import UserError

_METARM = """\
Accuracy of a MetaRM on rationales built from pairs whose error is known (RM-Bench chat): one that names the true
error, one that names another, one that praises style, and a vague one. The keyword MetaRM is the baseline."""


def add_metarm(commands) -> None:
    """Adds `metarm`."""
    test = commands.add_parser("metarm", help="test a MetaRM on built rationales", description=_METARM)
    test.add_argument("file", metavar="FILE", help="RM-Bench chat pairs, with meta.error_key")
    test.add_argument(
        "--metarm", default="keywords", help="keywords (the baseline), endpoint:URL#MODEL or managed:FOLDER"
    )
    test.add_argument("--limit", type=positive, metavar="N", help="only the first N pairs")
    test.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    test.add_argument(
        "--cases", metavar="FILE", help="write the rationales and their outcomes here, as JSONL"
    )
    test.add_argument(
        "--log", default="metarm_server.log", metavar="FILE", help="of a managed MetaRM's server"
    )
    test.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    add_metarm_options(test)
    add_endpoint_options(test)
    test.set_defaults(call=_metarm)


def _metarm(args: argparse.Namespace) -> None:
    from ralign.engine.data.pairs import read_pairs
    from ralign.engine.evaluation.metarm_probe import build_cases, measure_metarm
    from ralign.engine.evaluation.records import write_records
    from ralign.engine.evaluation.reviewers import build_reviewer
    from ralign.engine.report.progress import Progress

    cases = build_cases(read_pairs(args.file)[: args.limit])
    progress = Progress(enabled=not args.json)
    with closing(build_reviewer(args.metarm, read_metarm(args), Path(args.log))) as reviewer:
        title = f"{args.metarm} on {len(cases)} rationales"
        with progress.stage("metarm", title, num_steps=len(cases)):
            asked = [reviewer.review(case.pair, case.rationale) for case in cases]
            for future in as_completed(asked):
                future.result()
                progress.step()
        if reviewer.stop_reason:
            raise UserError(f"stopped: {reviewer.stop_reason}")
    reviews = [future.result() for future in asked]
    if args.cases:
        rows = (
            {"id": case.pair.id, "kind": case.kind, "rationale": case.rationale}
            | {"expected": case.expected.value, **asdict(review), "outcome": review.outcome.value}
            for case, review in zip(cases, reviews, strict=True)
        )
        write_records(rows, args.cases)
    result = {"metarm": args.metarm, **measure_metarm(cases, reviews, seed=args.seed)}
    if args.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        _print_metarm(result)


def _print_metarm(result: dict) -> None:
    from ralign.engine.report.summary import display, percent
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"{result['metarm']}: {result['num_pairs']} pairs of {result['num_prompts']} prompts, "
        "per cent right [95 % interval over prompts]",
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
