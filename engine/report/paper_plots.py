"""Plots of the paper in miniature: the actors' curves, and their quality against their judges' figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ralign.engine.report.foretold import TOLD, correlation, pearson, points
from ralign.engine.report.plots import COLORS, INK, save, tidy
from ralign.engine.report.summary import METRICS, display

_MARKERS = "osD^vP*X"  # a seed's


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
        _label(panel, metric, r["value"] if r else None)
    handles = panel.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    figure.axes[0].set_ylabel("actor's true quality, %", fontsize=9)
    return save(figure, path)


def plot_pooled(summaries: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Each paid actor's gain over its seed's start against its judge's L-Acc, and F-Score; a marker a seed."""
    figure = Figure(figsize=(8, 3.9), layout="constrained")
    shown: dict[str, Any] = {}
    for panel, metric in zip(figure.subplots(1, len(TOLD), sharey=True), TOLD, strict=True):
        every = []
        for summary, marker in zip(summaries, _MARKERS * len(summaries), strict=False):
            names = [actor["judge"] for actor in summary["actors"].values() if actor["judge"] is not None]
            xy = 100 * points(summary["models"], summary["actors"], metric, "gain")
            for name, (x, y), color in zip(names, xy, COLORS * len(names), strict=False):
                dot = panel.scatter(x, y, color=color, marker=marker, s=40, zorder=2)
                shown.setdefault(f"{display(name)}, seed {summary['seed']}", dot)
            every.append(xy)
        _label(panel, metric, pearson(np.concatenate(every)))
    figure.legend(
        shown.values(), shown.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=7
    )
    figure.axes[0].set_ylabel("actor's gain in true quality, points", fontsize=9)
    return save(figure, path)


def _label(panel, metric: str, r: float | None) -> None:
    panel.set_title("" if r is None else f"r = {r:.2f}", fontsize=10, color=INK)
    panel.set_xlabel(f"judge's {METRICS[metric]} in distribution, %", fontsize=9)
    panel.margins(0.1)
    tidy(panel)
