"""The report of the paper in miniature: which judges made which actors, and which of their figures would have told.

summary.json is a judges' summary (see summary.py) with two more keys:

    "actors": {NAME: {"judge": JUDGE or null, "quality": {…}, "cue_share": {…}, "win_rate": {…}, "steps": […]}}
    "correlation": {METRIC: {"value": r, "low": l, "high": h, "num": n} or null}

A correlation is Pearson's, over the actors that a judge paid, between the judge's figure in distribution, where
benchmarks are, and the actor's true quality; the 95 % interval is by Fisher's transformation.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ralign.engine.report.html import write_html
from ralign.engine.report.plots import COLORS, INK, plot_judgments, save, tidy
from ralign.engine.report.summary import METRICS, display, make_summary, percent
from ralign.engine.report.terminal import print_summary

TOLD = ("l_acc", "f_score")  # figures of a judge that might foretell its actor
_INTRO = (
    "Judges trained by label alone (RLVR) or by label and rationale (R-Align), each taken at several budgets, pay "
    "actors that start from the same weights. L-Acc is the share of right verdicts, F-Score the share right for "
    "the right reason; an actor's quality is what the oracle says of its answers, which no judge saw."
)


def write_paper_report(
    folder: Path,
    judges: Mapping[str, Mapping[str, Mapping[str, Any]]],
    actors: Mapping[str, Mapping[str, Any]],
    transcripts: Mapping[str, str],
    *,
    seed: int,
    time_s: Mapping[str, float],
) -> dict[str, Any]:
    """Write `folder/report/`, print the tables and return the summary; call it on one rank.

    judges: results by name and test. actors: results by name, with `judge` (a judge's name, or None for the warm
    start) and `steps`. transcripts: heading -> text.
    """
    report = folder / "report"
    summary = make_summary(judges, seed=seed, time_s=time_s)
    found = {name: correlation(points(judges, actors, name)) for name in TOLD}
    figures = {
        "Judges": plot_judgments(summary, report / "judges.png"),
        "Actors, by the judge that paid them": plot_actors(actors, report / "actors.png"),
        "What would have told?": plot_correlation(judges, actors, report / "correlation.png"),
    }
    whole = {**summary, "actors": dict(actors), "correlation": found}
    (report / "summary.json").write_text(json.dumps(whole, indent=2, allow_nan=False) + "\n", "utf-8")
    write_html(
        summary,
        report / "index.html",
        title="The judge's reasons and the actor's fate, in miniature",
        intro=_INTRO,
        figures=figures,
        tables={
            "Actors": actor_table(judges, actors),
            "Correlation with the actor's quality": told_table(found),
        },
        examples=transcripts,
        config=json.loads((folder / "judges" / "config.json").read_text(encoding="utf-8")),
    )
    print_summary(summary)
    for row in (*actor_table(judges, actors), *told_table(found)):
        print(f"{row[0]:24}" + "".join(f"{cell:>26}" for cell in row[1:]))
    return whole


def points(judges: Mapping, actors: Mapping, metric: str, test: str = "in_distribution") -> np.ndarray:
    """[n, 2]: each paid actor's judge's figure, and the actor's quality."""
    found = [
        (judges[actor["judge"]][test][metric]["value"], actor["quality"]["value"])
        for actor in actors.values()
        if actor["judge"] is not None
    ]
    return np.array(found, dtype=float).reshape(-1, 2)


def correlation(xy: np.ndarray) -> dict[str, float] | None:
    """Pearson's r of [n, 2] points with its 95 % interval; None for fewer than four points, or no spread."""
    if len(xy) < 4 or np.ptp(xy[:, 0]) == 0 or np.ptp(xy[:, 1]) == 0:
        return None
    r = float(np.corrcoef(xy.T)[0, 1])
    z, half = math.atanh(max(min(r, 1 - 1e-12), -1 + 1e-12)), 1.96 / math.sqrt(len(xy) - 3)
    return {"value": r, "low": math.tanh(z - half), "high": math.tanh(z + half), "num": len(xy)}


def actor_table(judges: Mapping, actors: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Heading and a row for each actor; a judge's opinion is its actor's share of wins against references, before
    training and after."""
    rows = [["paid by", "judge L-Acc", "judge F-Score", "its opinion", "true quality", "in bullets"]]
    for actor in actors.values():
        judge = judges[actor["judge"]]["in_distribution"] if actor["judge"] else None
        told = [percent(judge[name], bounds=False) if judge else "–" for name in TOLD]
        name = display(actor["judge"]) if actor["judge"] else "nobody (warm start)"
        opinion = [actor.get("win_rate_before"), actor.get("win_rate")]
        said = " to ".join("–" if won is None else percent(won, bounds=False) for won in opinion)
        rows.append([name, *told, said, percent(actor["quality"]), percent(actor["cue_share"])])
    return rows


def told_table(found: Mapping[str, Mapping[str, float] | None]) -> list[list[str]]:
    """Heading and a row for each figure of a judge."""
    rows = [["judge's figure", "r", "95 % interval", "actors"]]
    for name, r in found.items():
        cells = [f"{r['value']:.2f}", f"{r['low']:.2f} to {r['high']:.2f}", str(r["num"])] if r else ["–"] * 3
        rows.append([METRICS[name], *cells])
    return rows


def plot_actors(actors: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """The judge's opinion, true quality and cue share over the steps of each actor's training."""
    paid = {actor["judge"]: actor["steps"] for actor in actors.values() if actor["judge"] is not None}
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    titles = {
        "actor/win_rate": "The judge's opinion (wins against references)",
        "actor/quality": "What the answers are worth",
        "actor/cue_share": "Answers in bullets",
    }
    for panel, (key, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for (judge, steps), color in zip(paid.items(), COLORS * len(paid), strict=False):
            measured = [(step["step"], step[key]) for step in steps if step.get(key) is not None]
            panel.plot(*np.array(measured).reshape(-1, 2).T, color=color, linewidth=1.5, label=display(judge))
        panel.set_title(title, fontsize=10, color=INK)
        panel.set_xlabel("step", fontsize=9)
        tidy(panel)
    figure.legend(
        *panel.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=9
    )
    return save(figure, path)


def plot_correlation(judges: Mapping, actors: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Each paid actor's quality against its judge's L-Acc, and against its F-Score."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    names = [actor["judge"] for actor in actors.values() if actor["judge"] is not None]
    for panel, metric in zip(figure.subplots(1, len(TOLD), sharey=True), TOLD, strict=True):
        xy = 100 * points(judges, actors, metric)
        for name, (x, y), color in zip(names, xy, COLORS * len(names), strict=False):
            panel.scatter(x, y, color=color, s=40, zorder=2, label=display(name))
        r = correlation(xy)
        panel.set_title(f"r = {r['value']:.2f}" if r else "", fontsize=10, color=INK)
        panel.set_xlabel(f"judge's {METRICS[metric]} in distribution, %", fontsize=9)
        panel.margins(0.1)
        tidy(panel)
    handles = panel.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    figure.axes[0].set_ylabel("actor's true quality, %", fontsize=9)
    return save(figure, path)


def pooled(summaries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float] | None]:
    """Correlations over the actors of several seeds together."""
    return {
        name: correlation(np.concatenate([points(s["models"], s["actors"], name) for s in summaries]))
        for name in TOLD
    }
