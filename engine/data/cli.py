"""ralign-data: check pairs files, convert published sets, swap responses, find overlap."""

import argparse
import json
import sys
from itertools import islice

from ralign.engine.data.converters import LAYOUTS
from ralign.engine.data.labels import parse_labels
from ralign.engine.runtime.argparse_utils import Parser, number, whole_number
from ralign.engine.runtime.entry_point import run_main
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import check_output
from ralign.engine.runtime.problems import Problems
from ralign.engine.runtime.text import printable

_CONVERT = """\
Converts a preference set to a pairs file. SOURCE is a name on the Hugging Face hub, a folder, or a JSON, JSON Lines,
Parquet or CSV file in that set's layout. r_align is the pairs schema, and chosen_rejected any set with such columns;
both take the columns' own names. Ties, empty responses, equal responses, images and tool calls are left out and
counted."""
_OVERLAP = """\
Near-duplicates inside FILE, or between FILE (training) and the files after --against (tests), by word 5-grams of
the prompts. --out writes FILE without the pairs that were found."""

_SWAP = """\
Writes FILE with the two responses of each pair exchanged. The label and the names in the golden judgment change with
them. Judgments in which a name is ambiguous are counted and listed."""
NUM_SHOWN = 20


def main() -> None:
    """The console script."""
    run_main(_main)


def _main(argv: list[str]) -> None:
    parser = Parser(prog="ralign-data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    check = commands.add_parser(
        "validate", help="check pairs files", description="Checks every line and pair."
    )
    check.add_argument("files", nargs="+", metavar="FILE")
    check.add_argument("--without-golden", action="store_true", help="allow missing golden judgments")
    check.add_argument("--json", action="store_true", help="print only the reports, as JSON")
    check.set_defaults(call=_validate)
    convert = commands.add_parser("convert", help="convert a published set to pairs", description=_CONVERT)
    convert.add_argument("layout", choices=list(LAYOUTS))
    convert.add_argument("source", metavar="SOURCE")
    convert.add_argument("out", metavar="OUT")
    convert.add_argument("--config", help="the set's configuration on the hub")
    convert.add_argument("--split", help="the split to convert")
    convert.add_argument(
        "--columns",
        metavar="NAME=COLUMN,…",
        help="r_align, chosen_rejected: the set's own names of columns, such as prompt=question,chosen=good",
    )
    convert.add_argument(
        "--labels",
        metavar="LABEL=SIDE,…",
        help="r_align: what labels other than A, B, a and b mean, such as 0=A,1=B,2=tie",
    )
    convert.set_defaults(call=_convert)
    swap = commands.add_parser("swap", help="exchange the two responses of each pair", description=_SWAP)
    swap.add_argument("file", metavar="FILE")
    swap.add_argument("out", metavar="OUT")
    swap.add_argument("--both", action="store_true", help="also write the unchanged pairs")
    swap.add_argument(
        "--unsure",
        choices=("keep", "drop", "refuse"),
        default="keep",
        help="swapped pairs whose golden judgment may be wrong: write them, leave them out, or refuse (default: keep)",
    )
    swap.set_defaults(call=_swap)
    overlap = commands.add_parser(
        "overlap", help="find near-duplicates and train-test overlap", description=_OVERLAP
    )
    overlap.add_argument("file", metavar="FILE")
    overlap.add_argument("--against", nargs="+", metavar="TEST", default=[], help="test files")
    overlap.add_argument(
        "--threshold",
        type=number(0, 1, above=True),
        default=0.8,
        help="smallest Jaccard similarity (default: 0.8)",
    )
    overlap.add_argument(
        "--whole", action="store_true", help="compare prompts and responses, not only prompts"
    )
    overlap.add_argument("--out", metavar="OUT", help="write FILE without the pairs that were found")
    overlap.add_argument("--json", action="store_true", help="print only the matches, as JSON")
    overlap.set_defaults(call=_overlap)
    for each in (swap, overlap):
        each.add_argument(
            "--max-bad-lines",
            type=whole_number(0),
            default=0,
            metavar="N",
            help="skip up to N bad lines (default: 0)",
        )
    args = parser.parse_args(argv)
    args.call(args)


def _validate(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from ralign.engine.data.checks import check_file

    problems = Problems()
    reports = {}
    for path in args.files:
        with problems.collect():
            reports[path] = check_file(path, need_golden=not args.without_golden)
    if args.json:
        print(json.dumps({path: asdict(report) for path, report in reports.items()}, indent=2))
    else:
        for path, report in reports.items():
            _print_report(path, report)
    bad = [path for path, report in reports.items() if report.errors or not report.num_pairs]
    problems.require(not bad, f"{', '.join(bad)}: not a valid pairs file")
    problems.check()


def _print_report(path: str, report) -> None:
    print(f"{path}: {report.num_pairs} pairs, {len(report.errors)} bad lines")
    for error in report.errors:
        print(f"  error: {printable(error)}")
    for kind, ids in report.warnings.items():
        shown = printable(", ".join(ids[:3]))
        print(f"  warning: {kind}: {len(ids)} pairs ({shown}{', …' if len(ids) > 3 else ''})")
    if facts := report.facts:
        unbalanced = "" if facts["balanced"] else " (unbalanced: ralign-data swap --both balances it)"
        print(f"  labels: {facts['label_A']} A, {facts['label_B']} B{unbalanced}")
        print(f"  the longer response is better in {100 * facts['longer_is_better']:.0f} %")
        print(f"  golden judgments: {facts['num_with_golden']}; multi-turn: {facts['num_multi_turn']}")
        lengths = [facts[name] for name in ("chars_median", "chars_p95", "chars_max")]
        print("  characters per pair: median {}, 95 % {}, longest {}".format(*lengths))


def _convert(args: argparse.Namespace) -> None:
    from ralign.engine.data.converters import convert, load_rows
    from ralign.engine.data.pairs import write_pairs

    if check_output(args.out, [args.source]).suffix in (".parquet", ".gz", ".csv"):
        raise UserError(f"{args.out}: pairs are written as JSON lines, so name the file OUT.jsonl")
    options = {"columns": _columns(args.columns), "labels": parse_labels(args.labels) if args.labels else {}}
    rows = load_rows(args.source, config=args.config, split=args.split)
    result = convert(args.layout, rows, **options)
    if not result.pairs:
        raise UserError(f"{args.source}: no row can be converted to a pair ({_counts(result.left_out)})")
    write_pairs(args.out, result.pairs)
    left_out = f", left out: {_counts(result.left_out)}" if result.left_out else ""
    print(f"{args.out}: {len(result.pairs)} pairs{left_out}")
    if not any(pair.gt_judgment for pair in result.pairs):
        print("  without golden judgments: ralign-annotate writes them")


def _columns(option: str | None) -> dict[str, str]:
    """`prompt=question,chosen=good` as a dictionary. UserError for another form."""
    columns: dict[str, str] = {}
    for each in option.split(",") if option else ():
        name, _, column = (part.strip() for part in each.partition("="))
        if not name or not column or name in columns:
            raise UserError(f"--columns {option}: expected NAME=COLUMN,NAME=COLUMN, each name once")
        columns[name] = column
    return columns


def _counts(counts: dict[str, int]) -> str:
    return printable(", ".join(f"{count} {reason}" for reason, count in counts.items())) or "none"


def _swap(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from ralign.engine.data.pairs import read_pairs, write_pairs
    from ralign.engine.data.swap import swap_sides, why_not_swapped

    check_output(args.out, [args.file])
    pairs = read_pairs(args.file, need_golden=False, max_bad_lines=args.max_bad_lines)
    unsure = {pair.id: reason for pair in pairs if (reason := why_not_swapped(pair))}
    found = f"{len(unsure)} of {len(pairs)} golden judgments cannot be swapped reliably"
    if unsure and args.unsure == "refuse":
        id, reason = next(iter(unsure.items()))
        raise UserError(f"{args.file}: {found}, the first is {id}: {reason}")
    kept = [pair for pair in pairs if args.unsure == "keep" or pair.id not in unsure]
    swapped = [replace(swap_sides(pair), id=f"{pair.id}-swapped") for pair in kept]
    if args.both and (repeated := {pair.id for pair in pairs} & {pair.id for pair in swapped}):
        raise UserError(
            f"{args.file}: --both would use the id {min(repeated)!r} twice: the file has it already"
        )
    write_pairs(args.out, [*pairs, *swapped] if args.both else swapped)
    print(f"{args.out}: {len(swapped)} pairs swapped{' and the unchanged ones' if args.both else ''}")
    if unsure:
        done = "may name the wrong response" if args.unsure == "keep" else "were left out"
        print(f"warning: {found} and {done}:", file=sys.stderr)
        for id, reason in islice(unsure.items(), NUM_SHOWN):
            print(printable(f"  {id}: {reason}"), file=sys.stderr)
        if len(unsure) > NUM_SHOWN:
            print(f"  and {len(unsure) - NUM_SHOWN} more", file=sys.stderr)


def _overlap(args: argparse.Namespace) -> None:
    from ralign.engine.data.overlap import near_duplicates, overlap, pair_text
    from ralign.engine.data.pairs import read_pairs, write_pairs

    if args.out:
        check_output(args.out, [args.file, *args.against])
    pairs = read_pairs(args.file, need_golden=False, max_bad_lines=args.max_bad_lines)
    texts = [pair_text(pair, whole=args.whole) for pair in pairs]
    found: list[dict] = []
    dropped: set[int] = set()
    if not args.against:
        for match in near_duplicates(texts, threshold=args.threshold):
            found.append(_match(pairs[match.first].id, args.file, pairs[match.second].id, match.similarity))
            dropped.add(match.second)  # keep the earlier one
    for path in args.against:
        tests = read_pairs(path, need_golden=False, max_bad_lines=args.max_bad_lines)
        test_texts = [pair_text(pair, whole=args.whole) for pair in tests]
        for match in overlap(texts, test_texts, threshold=args.threshold):
            found.append(_match(pairs[match.first].id, path, tests[match.second].id, match.similarity))
            dropped.add(match.first)
    if args.out:
        write_pairs(args.out, [pair for n, pair in enumerate(pairs) if n not in dropped])
    if args.json:
        print(json.dumps({"num_pairs": len(pairs), "num_found": len(dropped), "matches": found}, indent=2))
        return
    for match in found[:NUM_SHOWN]:
        ids = printable(f"{match['id']}  {match['other_file']}: {match['other_id']}")
        print(f"  {match['similarity']:.2f}  {ids}")
    if len(found) > NUM_SHOWN:
        print(f"  and {len(found) - NUM_SHOWN} more")
    share = 100 * len(dropped) / len(pairs)
    kept = f"; the others are in {args.out}" if args.out else ""
    print(f"{args.file}: {len(dropped)} of {len(pairs)} pairs ({share:.1f} %) found{kept}")


def _match(id: str, other_file: str, other_id: str, similarity: float) -> dict:
    return {"id": id, "other_file": other_file, "other_id": other_id, "similarity": round(similarity, 4)}


if __name__ == "__main__":
    main()
