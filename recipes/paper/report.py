"""The report of the paper in miniature: judges, the actors trained against them, and the correlation of both.

summary.json is a summary of judges (engine/report/summary.py) with two more keys:

    "actors": {NAME: {"judge": JUDGE or null, "quality": {…}, "cue_share": {…}, "steps": […], …}}
    "correlation": {METRIC: {"value": r, "low": l, "high": h, "num": n} or null}

An actor that was trained against a judge also has the judge's opinion before and after training, `win_rate_before` and
`win_rate` (the share of its answers preferred to fixed references), over the `num_decided_before` and `num_decided` of
`num_compared` comparisons with a verdict. correlation.py defines the correlations and their intervals.

To pool runs of several seeds (tables, `pooled.json` and a figure in FOLDER):

    python -m ralign.recipes.paper.report runs/paper_seed*/report/summary.json --out FOLDER
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ralign.engine.planner.cli import table
from ralign.engine.report.html import write_html
from ralign.engine.report.plots import plot_judgments
from ralign.engine.report.summary import display, make_summary, percent
from ralign.engine.report.terminal import print_summary
from ralign.engine.runtime.entry_point import run_main
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.output import show
from ralign.recipes.paper.correlation import (
    PREDICTORS,
    correlation,
    correlation_table,
    points,
    pooled,
    pooled_table,
)
from ralign.recipes.paper.plots import plot_actors, plot_correlation, plot_pooled

_INTRO = (
    "Judges are trained on the label only (RLVR) or on label and rationale (R-Align), and exported at several budgets. "
    "One actor is trained against each judge, all from the same weights. L-Acc is the share of correct verdicts, "
    "F-Score the share right for the right reason. The true quality of an actor's answers is measured by an oracle, "
    "which no judge sees."
)
_CAVEAT = (
    "95 % intervals: a bootstrap over seeds and, within each seed, over its actors. With two or three seeds the "
    "intervals are too narrow."
)


def write_paper_report(
    folder: Path,
    judges: Mapping[str, Mapping[str, Mapping[str, Any]]],
    actors: Mapping[str, Mapping[str, Any]],
    transcripts: Mapping[str, str],
    *,
    seed: int,
    time_s: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Write `folder/report/`, print the tables and return the summary; call it on one rank.

    Args:
        judges: name -> test -> result.
        actors: name -> result, with `judge` (a judge's name, or None for the warm start) and `steps`.
        transcripts: heading -> text.
        time_s: stage -> seconds.
        baselines: rule -> test -> result (`evaluation.baselines`).
    """
    report = folder / "report"
    summary = make_summary(judges, seed=seed, time_s=time_s, baselines=baselines)
    found = {name: correlation(points(judges, actors, name)) for name in PREDICTORS}
    figures = {
        "Judges": plot_judgments(summary, report / "judges.png"),
        "Actors, by the judge of their training": plot_actors(actors, report / "actors.png"),
        "Judge metrics against actor quality": plot_correlation(judges, actors, report / "correlation.png"),
    }
    whole = {**summary, "actors": dict(actors), "correlation": found}
    (report / "summary.json").write_text(json.dumps(whole, indent=2, allow_nan=False) + "\n", "utf-8")
    write_html(
        summary,
        report / "index.html",
        title="The judge's reasons and the actor's quality, in miniature",
        intro=_INTRO,
        figures=figures,
        tables={
            "Actors": actor_table(judges, actors),
            "Correlation with the actor's quality": correlation_table(found),
        },
        examples=transcripts,
        config={
            part: json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
            for part in ("judges", "actors")
        },
    )
    print_summary(summary)
    show(f"{table(actor_table(judges, actors))}\n\n{table(correlation_table(found))}")
    return whole


def actor_table(judges: Mapping, actors: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Heading and a row for each actor. A judge's opinion is its actor's share of wins against references, before and
    after training, among the comparisons with a verdict."""
    columns = ["judge L-Acc", "judge F-Score", "its opinion", "decided", "true quality", "in bullets"]
    rows = [["trained against", *columns]]
    for actor in actors.values():
        judge = judges[actor["judge"]]["in_distribution"] if actor["judge"] else None
        metrics = [percent(judge[name], bounds=False) if judge else "–" for name in PREDICTORS]
        name = display(actor["judge"]) if actor["judge"] else "none (warm start)"
        win_rates = [actor.get("win_rate_before"), actor.get("win_rate")]
        opinion = " to ".join("–" if won is None else percent(won, bounds=False) for won in win_rates)
        rows.append(
            [name, *metrics, opinion, _decided(actor), percent(actor["quality"]), percent(actor["cue_share"])]
        )
    return rows


def _decided(actor: Mapping[str, Any]) -> str:
    if "num_compared" not in actor:
        return "–"
    return f"{actor['num_decided_before']} and {actor['num_decided']} of {actor['num_compared']}"


def seeds_table(summaries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The actors' tables of several seeds in one table."""
    tables = [actor_table(summary["models"], summary["actors"]) for summary in summaries]
    rows = [["seed", *tables[0][0]]]
    for summary, (_, *actors) in zip(summaries, tables, strict=True):
        rows += [[str(summary["seed"]), *row] for row in actors]
    return rows


def read_summaries(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The summaries of runs of different seeds, sorted by seed.

    Raises:
        UserError: a file cannot be read, is not a summary of the paper in miniature, or repeats a seed.
    """
    found: dict[int, dict[str, Any]] = {}
    for path in paths:
        try:
            summary = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"{path}: not JSON ({error})") from error
        if not isinstance(summary, dict) or not {"models", "actors", "seed"} <= summary.keys():
            raise UserError(
                f"{path}: not a summary of the paper in miniature (expected models, actors and seed)"
            )
        if summary["seed"] in found:
            raise UserError(
                f"{path}: seed {summary['seed']} is a duplicate; only runs of different seeds can be pooled"
            )
        found[summary["seed"]] = summary
    return [found[seed] for seed in sorted(found)]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ralign.recipes.paper.report",
        description="Pools runs of the paper in miniature: correlation of judge metrics with actor quality.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "summaries", nargs="+", metavar="SUMMARY.json", help="report/summary.json of each run"
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="write pooled.json and correlation.png into this folder"
    )
    options = parser.parse_args(argv)
    summaries = read_summaries(options.summaries)
    found = pooled(summaries)
    print(f"{table(seeds_table(summaries))}\n\n{table(pooled_table(found))}\n{_CAVEAT}")
    if options.out:
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "pooled.json").write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", "utf-8")
        plot_pooled(summaries, out / "correlation.png")
        print(f"{out}: pooled.json, correlation.png")


if __name__ == "__main__":
    run_main(main, sys.argv[1:])
