"""ralign-eval: judge pairs with models, score judged files, compare models, test a MetaRM."""

import argparse
import json

from ralign.engine.evaluation.cli_options import add_scoring
from ralign.engine.evaluation.metarm_cli import add_metarm
from ralign.engine.evaluation.run_cli import add_run
from ralign.engine.runtime.argparse_utils import Parser
from ralign.engine.runtime.entry_point import run_main

_SCORE = """\
L-Acc, S-Corr and F-Score of judged files, as the released R-Align evaluator defines them, with 95 % bootstrap
intervals, failures beside them, subsets, and every model against the first one. Reads files judged by
`ralign-eval run` or by the released evaluator. A file is a test; its model is meta.model_name, else its
folder, or NAME in NAME=FILE. BENCH__MODEL_metarm_X.jsonl of the released evaluator is the test BENCH."""


def main() -> None:
    """The console script."""
    run_main(_main)


def _main(argv: list[str]) -> None:
    parser = Parser(prog="ralign-eval", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    _add_score(commands)
    add_run(commands)
    add_metarm(commands)
    args = parser.parse_args(argv)
    args.call(args)


def _add_score(commands) -> None:
    parser = commands.add_parser("score", help="the metrics of files already judged", description=_SCORE)
    parser.add_argument("files", nargs="+", metavar="FILE", help="judged JSONL, or NAME=FILE")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON, and nothing else")
    add_scoring(parser)
    parser.add_argument("--out", metavar="FOLDER", help="write tables, plot and the page to read here")
    parser.set_defaults(call=_score)


def _score(args: argparse.Namespace) -> None:
    from ralign.engine.evaluation.output import summarise, write_outputs, write_released
    from ralign.engine.evaluation.score import read_files
    from ralign.engine.report.terminal import print_summary

    judged = read_files(args.files, max_bad_lines=args.max_bad_lines)
    summary = summarise(judged, subset_field=args.by, num_bootstrap=args.bootstrap, seed=args.seed)
    if args.out:
        written = write_outputs(summary, judged, args.out, subset_field=args.by)
    if args.released:
        write_released(judged, args.released)
    if args.json:
        print(json.dumps(summary, indent=2, allow_nan=False))
        return
    print_summary(summary)
    if args.out:
        print(f"Page: {written}")


if __name__ == "__main__":
    main()
