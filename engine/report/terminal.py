"""The result of an evaluation as tables on the terminal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ralign.engine.report.progress import duration
from ralign.engine.report.summary import (
    METRICS,
    baselines_on,
    display,
    flip_rows,
    metric_columns,
    percent,
    tests_of,
)
from ralign.engine.runtime import output
from ralign.engine.runtime.text import printable
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDEST = 1000  # upper bound of a table's width


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints a table of the models by test (per cent, with 95 % intervals) and one of the stages' times.

    Subsets and comparisons between models get tables, too, if the summary has them, and notes follow the tables. Rules
    that need no model are rows in parentheses. A table keeps its width in a file,
    in a pipe and on a narrower terminal, which wraps its lines.
    """
    console = console or Console(file=output.stdout())
    tables = [_metrics_table(summary, "Per cent [95 % interval]")]
    if subsets := _by_subset(summary):
        tables.append(_metrics_table({"models": subsets}, "Subsets"))
    if rows := flip_rows(summary):
        tables.append(_flips_table(rows))
    tables += [_comparison_table(test, found) for test, found in summary.get("comparisons", {}).items()]
    if summary["time_s"]:
        tables.append(_time_table(summary["time_s"]))
    for table in tables:
        needed = console.measure(table, options=console.options.update(width=_WIDEST)).maximum
        console.width = max(console.width, needed)
        console.print(table)
    for note in summary.get("notes", ()):
        console.print(Text(f"Note: {printable(note)}"))


def _by_subset(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The subsets of every test as separate tests, `TEST: SUBSET`."""
    models: dict[str, dict[str, Any]] = {}
    for model, tests in summary["models"].items():
        for test, result in tests.items():
            for subset, part in result.get("subsets", {}).items():
                models.setdefault(model, {})[f"{test}: {subset}"] = part
    return models


def _metrics_table(summary: Mapping[str, Any], title: str) -> Table:
    results = [result for tests in summary["models"].values() for result in tests.values()]
    intervals = metric_columns(results)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in intervals:
        table.add_column(Text(printable(name)), justify="right", no_wrap=True)
    counts = count_columns(results)
    for name in counts:
        table.add_column(name, justify="right", no_wrap=True)
    for test in tests_of(summary):
        judged = {model: tests[test] for model, tests in summary["models"].items() if test in tests}
        num_pairs = " or ".join(map(str, sorted({result["num_pairs"] for result in judged.values()})))
        table.add_section()
        table.add_row(Text(f"{display(test)} ({num_pairs} pairs)", style="bold"))
        for model, result in judged.items():
            # Text, not str: rich would read the brackets of an interval as markup.
            cells = [Text(percent(interval_of(result))) for interval_of in intervals.values()]
            table.add_row(Text(f"  {display(model)}"), *cells, *[count(result) for count in counts.values()])
        for title, found in baselines_on(summary, test).items():
            cells = [Text(percent(interval_of(found))) for interval_of in intervals.values()]
            table.add_row(Text(f"  ({title})"), *cells, *["–"] * len(counts), style="dim")
    return table


def _flips_table(rows: list[list[str]]) -> Table:
    title = "Verdicts that change with the surface, per cent [95 % interval]"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    heading, *cells = rows
    for number, name in enumerate(heading):
        table.add_column(name, justify="left" if number < 3 else "right", no_wrap=True)
    for row in cells:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def count_columns(results: Sequence[Mapping[str, Any]]) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """The columns of counts: title -> function from a result to its cell."""
    columns = {"No verdict": lambda result: str(result["num_parse_fail"]), "MetaRM failed": failures}
    if any("num_worst_group" in result for result in results):
        columns = {"Worst-group pairs": lambda result: str(result.get("num_worst_group", "–"))} | columns
    if any("num_call_fail" in result for result in results):
        columns = {"Calls failed": calls_failed} | columns
    return columns


def calls_failed(result: Mapping[str, Any]) -> str:
    """Number of the judge's failed calls: `3`, with the second order `3 + 2 swapped`, or `–` if unknown."""
    if "num_call_fail" not in result:
        return "–"
    swapped = result.get("num_swapped_call_fail")
    return f"{result['num_call_fail']} + {swapped} swapped" if swapped else str(result["num_call_fail"])


def failures(result: Mapping[str, Any]) -> str:
    """Number of the MetaRM's failures, with their kinds if known: `10 (4 call, 6 parse)`."""
    total = str(result["num_judge_fail"])
    if not result["num_judge_fail"] or "num_metarm_call_fail" not in result:
        return total
    return f"{total} ({result['num_metarm_call_fail']} call, {result['num_metarm_parse_fail']} parse)"


def _comparison_table(test: str, comparisons: list[dict[str, Any]]) -> Table:
    title = Text(f"{display(test)}: difference in points [95 % interval], p of the paired permutation test")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in METRICS.values():
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Pairs", justify="right")
    for found in comparisons:
        cells = [Text(_difference(found[name])) for name in METRICS]
        models = f"{display(found['model'])} against {display(found['baseline'])}"
        table.add_row(Text(models), *cells, str(found["num_pairs"]))
    return table


def _difference(found: Mapping[str, float | None]) -> str:
    if found["difference"] is None:
        return "–"
    low, high = found["low"], found["high"]
    assert low is not None and high is not None
    return f"{100 * found['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}], p {found['p_value']:.2g}"


def _time_table(time_s: Mapping[str, float]) -> Table:
    table = Table(title="Time", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Stage")
    table.add_column("Time", justify="right")
    for stage, seconds in time_s.items():
        table.add_row(Text(display(stage)), duration(seconds))
    table.add_section()
    table.add_row("all", duration(sum(time_s.values())))
    return table
