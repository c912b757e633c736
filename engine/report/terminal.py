"""The result of an evaluation as tables on the terminal."""

from collections.abc import Mapping
from typing import Any

from ralign.engine.report.progress import duration
from ralign.engine.report.summary import METRICS, display, percent, tests_of
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH = 120


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints a table of models under each test (per cent, with 95 % intervals) and one of the stages' times.

    The tables keep their width on a narrower terminal, which wraps them, and in a file or a pipe.
    """
    console = console or Console()
    console.width = max(console.width, _WIDTH)
    console.print(_metrics_table(summary))
    if summary["time_s"]:
        console.print(_time_table(summary["time_s"]))


def _metrics_table(summary: Mapping[str, Any]) -> Table:
    results = [result for tests in summary["models"].values() for result in tests.values()]
    swapped = any(result["swap_consistency"] is not None for result in results)
    intervals = [*METRICS, "swap_consistency"] if swapped else [*METRICS]
    table = Table(
        title="Per cent [95 % bootstrap interval]", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("", no_wrap=True)
    for name in intervals:
        table.add_column(METRICS.get(name, "Swap"), justify="right", no_wrap=True)
    table.add_column("No verdict", justify="right", no_wrap=True)
    table.add_column("MetaRM failed", justify="right", no_wrap=True)
    for test in tests_of(summary):
        judged = {model: tests[test] for model, tests in summary["models"].items() if test in tests}
        num_pairs = " or ".join(map(str, sorted({result["num_pairs"] for result in judged.values()})))
        table.add_section()
        table.add_row(Text(f"{display(test)} ({num_pairs} pairs)", style="bold"))
        for model, result in judged.items():
            # Text, not str: the brackets of an interval are no markup.
            cells = [Text(percent(result[name]) if result[name] else "–") for name in intervals]
            counts = [str(result[name]) for name in ("num_parse_fail", "num_judge_fail")]
            table.add_row(f"  {display(model)}", *cells, *counts)
    return table


def _time_table(time_s: Mapping[str, float]) -> Table:
    table = Table(title="Time", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Stage")
    table.add_column("Time", justify="right")
    for stage, seconds in time_s.items():
        table.add_row(display(stage), duration(seconds))
    table.add_section()
    table.add_row("all", duration(sum(time_s.values())))
    return table
