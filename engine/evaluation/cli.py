"""ralign-eval: judge pairs with models, score judged files, compare models, measure a MetaRM."""

import argparse
import json

from ralign.engine.runtime.argparse_utils import Parser, number, positive, whole_number
from ralign.engine.runtime.entry_point import run_main

_SCORE = """\
L-Acc, S-Corr and F-Score of judged files, as the released R-Align evaluator defines them, with 95 %
intervals, counts of failures, subsets, and every model against the first one. Reads files judged by
`ralign-eval run` or by the released evaluator. A file is a test; its model is meta.model_name, else its
folder, or NAME in NAME=FILE. BENCH__MODEL_metarm_X.jsonl of the released evaluator is the test BENCH."""

_RUN = """\
Judges pairs files with models, lets a MetaRM review every right verdict, and writes judged files, tables, plot and
page. A model is a Hugging Face folder, loaded into this process by vLLM, endpoint:URL#MODEL, or judged:FILE, which
holds answers of an earlier run; NAME=MODEL gives it a name. The MetaRM is `rule` (JudgeWorld's), `keywords` (a
baseline), endpoint:URL#MODEL, managed:FOLDER (a server is started for it), or your own as FILE.py:NAME. The same
command continues a run that was stopped or killed."""

_METARM = """\
Accuracy of a MetaRM on rationales built from pairs whose error is known (RM-Bench chat): one that names the true
error, one that names another, one that praises style, and a vague one. The keyword MetaRM is the baseline."""

_MAX_DRAWS = 1_000_000  # 128 MB of tables
CUES = ("marked", "longer", "markdown")  # of evaluation.baselines, which imports numpy
_METARM_SPECS = "rule, keywords, endpoint:URL#MODEL, managed:FOLDER or FILE.py:NAME"


def main() -> None:
    """The console script."""
    run_main(_main)


def _main(argv: list[str]) -> None:
    args = build_parser().parse_args(argv)
    args.call(args)


def build_parser() -> Parser:
    """The parser of all commands; each sets `call`."""
    parser = Parser(prog="ralign-eval", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    _add_score(commands)
    _add_run(commands)
    _add_metarm(commands)
    return parser


def _add_score(commands) -> None:
    parser = commands.add_parser("score", help="the metrics of files already judged", description=_SCORE)
    parser.add_argument("files", nargs="+", metavar="FILE", help="judged JSONL, or NAME=FILE")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON, and nothing else")
    _add_scoring_options(parser)
    parser.add_argument("--out", metavar="FOLDER", help="write tables, plot and page here")
    parser.set_defaults(call=_score)


def _add_run(commands) -> None:
    run = commands.add_parser("run", help="judge pairs with models", description=_RUN)
    run.add_argument("--pairs", nargs="+", required=True, metavar="FILE", help="pairs files; each is a test")
    run.add_argument(
        "--model", nargs="+", required=True, metavar="MODEL", help="[NAME=]FOLDER, endpoint:… or judged:FILE"
    )
    run.add_argument("--metarm", required=True, help=_METARM_SPECS)
    run.add_argument("--out", required=True, metavar="FOLDER", help="judgments/, report/, and journals")
    run.add_argument(
        "--both-orders", action="store_true", help="judge each pair a second time, sides swapped"
    )
    run.add_argument(
        "--twins",
        default="",
        metavar="KINDS",
        help="flip rates: judge each pair and its twins at temperature 0, too; markdown, padding, reorder, order, cues"
        " or FILE.py:NAME, with commas",
    )
    run.add_argument("--limit", type=positive, metavar="N", help="only the first N pairs of each file")
    run.add_argument("--template", default="full", help="judge's prompt: full, compact, or a file (full)")
    run.add_argument("--temperature", type=number(0), default=0.4, help="of the models (0.4)")
    run.add_argument("--max-new-tokens", type=positive, default=8192, help="of a judgment (8192)")
    run.add_argument(
        "--price",
        nargs=2,
        type=number(0),
        metavar=("IN", "OUT"),
        help="of a million prompt and answer tokens of models behind endpoints",
    )
    _add_scoring_options(run)
    _add_metarm_options(run)
    _add_endpoint_options(run)
    local = run.add_argument_group("models in folders")
    local.add_argument("--plain", action="store_true", help="prompts as plain text, without chat template")
    local.add_argument("--tensor", type=positive, default=1, metavar="N", help="tensor-parallel size (1)")
    local.add_argument(
        "--max-model-len", type=positive, metavar="N", help="longest prompt and answer together"
    )
    local.add_argument(
        "--max-num-seqs", type=positive, default=256, metavar="N", help="decoded at once (256)"
    )
    local.add_argument(
        "--kv-cache-gib", type=number(0, above=True), default=4.0, help="KV cache without a GPU (4)"
    )
    local.add_argument(
        "--gpu-memory-utilization",
        type=number(0, 1, above=True),
        help="share of a GPU's memory (0.9; less the MetaRM's if a managed one shares the GPU)",
    )
    run.set_defaults(call=_run)


def _add_metarm(commands) -> None:
    parser = commands.add_parser("metarm", help="measure a MetaRM on built rationales", description=_METARM)
    parser.add_argument("file", metavar="FILE", help="RM-Bench chat pairs, with meta.error_key")
    parser.add_argument("--metarm", default="keywords", help=f"{_METARM_SPECS} (keywords)")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N pairs")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    parser.add_argument(
        "--cases", metavar="FILE", help="write the rationales and their outcomes here, as JSONL"
    )
    parser.add_argument(
        "--log", default="metarm_server.log", metavar="FILE", help="of a managed MetaRM's server"
    )
    _add_metarm_options(parser)
    _add_endpoint_options(parser)
    parser.set_defaults(call=_metarm, price=None)


def _add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that print a summary."""
    parser.add_argument(
        "--by", default="source", metavar="FIELD", help="field that names the subset, a dotted path (source)"
    )
    parser.add_argument(
        "--cue",
        choices=CUES,
        default="marked",
        help="the worst group is the pairs whose worse response has it: marked (meta.cue_side), longer, or markdown"
        " (more of it) (marked)",
    )
    parser.add_argument(
        "--draws",
        "--bootstrap",
        type=whole_number(1, _MAX_DRAWS),
        default=20_000,
        metavar="N",
        help="draws of the permutation test of two models (20000)",
    )
    parser.add_argument(
        "--seed", type=whole_number(0), default=0, help="of the permutation test and of sampling (0)"
    )
    parser.add_argument(
        "--max-bad-lines",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="skip up to N bad lines a file (0)",
    )
    parser.add_argument(
        "--released",
        metavar="FOLDER",
        help="also write the judged files here as TEST__MODEL.jsonl, the names of the released summary",
    )


def _add_metarm_options(parser: argparse.ArgumentParser) -> None:
    """Settings of a MetaRM that is a language model."""
    group = parser.add_argument_group("MetaRM that is a language model")
    group.add_argument(
        "--metarm-template", default="binary", help="binary, graded, compact, or a file (binary)"
    )
    group.add_argument(
        "--metarm-graded-threshold",
        type=number(0, 1),
        default=0.5,
        metavar="SHARE",
        help="graded: share of the golden points that a Correct judgment covers (0.5)",
    )
    group.add_argument("--metarm-temperature", type=number(0), default=0.4, help="(0.4)")
    group.add_argument("--metarm-max-new-tokens", type=positive, default=16384, help="(16384)")
    group.add_argument(
        "--metarm-tries", type=positive, default=10, help="requests until an answer parses (10)"
    )
    group.add_argument(
        "--metarm-price",
        nargs=2,
        type=number(0),
        metavar=("IN", "OUT"),
        help="of a million of its prompt and answer tokens",
    )
    group.add_argument("--metarm-tensor", type=positive, default=1, metavar="N", help="managed: GPUs (1)")
    group.add_argument(
        "--metarm-devices", metavar="LIST", help="managed: its CUDA_VISIBLE_DEVICES (those of this process)"
    )
    group.add_argument("--metarm-max-model-len", type=positive, metavar="N", help="managed: longest sequence")
    group.add_argument(
        "--metarm-gpu-memory-utilization",
        type=number(0, 1, above=True),
        default=0.35,
        help="managed: share of memory (0.35)",
    )


def _add_endpoint_options(parser: argparse.ArgumentParser) -> None:
    """Settings of all endpoints."""
    group = parser.add_argument_group("endpoints")
    group.add_argument(
        "--api-key-env", default="OPENAI_API_KEY", help="variable with the key (OPENAI_API_KEY)"
    )
    group.add_argument(
        "--concurrency", type=whole_number(1, 10_000), default=64, help="requests under way at once (64)"
    )
    group.add_argument(
        "--timeout-s", type=number(0, 1e6, above=True), default=600.0, help="of one request (600)"
    )
    group.add_argument(
        "--retries",
        type=whole_number(0),
        default=5,
        help="of timeouts, lost connections and busy servers (5)",
    )
    group.add_argument(
        "--budget-tokens",
        type=positive,
        metavar="N",
        help="stop when a model or the MetaRM has used N tokens, earlier runs of this command included",
    )
    group.add_argument(
        "--budget-cost",
        type=number(0, above=True),
        metavar="X",
        help="stop when a model or the MetaRM with a price has cost X, likewise",
    )
    group.add_argument("--cache", metavar="FOLDER", help="cache of earlier answers")


def _score(args: argparse.Namespace) -> None:
    from ralign.engine.evaluation.score import (
        check_outputs,
        read_files,
        split_name,
        summarise,
        write_outputs,
        write_released,
    )
    from ralign.engine.report.terminal import print_summary
    from ralign.engine.runtime.files import check_output_folder

    inputs = [path for _, path in map(split_name, args.files)]
    if args.out:
        check_outputs(args.out, inputs)
    if args.released:
        check_output_folder(args.released)
    judged = read_files(args.files, max_bad_lines=args.max_bad_lines)
    summary = summarise(judged, subset_field=args.by, cue=args.cue, num_draws=args.draws, seed=args.seed)
    if args.out:
        page = write_outputs(summary, judged, args.out, subset_field=args.by)
    if args.released:
        write_released(judged, args.released, inputs)
    if args.json:
        print(json.dumps(summary, indent=2, allow_nan=False))
        return
    print_summary(summary)
    if args.out:
        print(f"Page: {page}")


def _run(args: argparse.Namespace) -> None:
    from ralign.engine.evaluation.run import run

    run(args)


def _metarm(args: argparse.Namespace) -> None:
    from ralign.engine.evaluation.metarm_probe import probe

    probe(args)


if __name__ == "__main__":
    main()
