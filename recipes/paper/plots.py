"""Plots of the paper in miniature: the actors' curves, and their quality against their judges' metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from ralign.engine.report.plots import COLORS, INK, save, tidy
from ralign.engine.report.summary import METRICS, display
from ralign.recipes.paper.correlation import PREDICTORS, correlation, pearson, points

_MARKERS = "osD^vP*X"  # one per seed
_SHADES = {"rlvr": "Reds", "r_align": "Blues"}  # one per method; darker with the budget


def judge_colors(names: Sequence[str]) -> dict[str, Any]:
    """A colour for each judge (METHOD_BUDGET, or sft): one hue per method, one shade per budget."""
    colors: dict[str, Any] = {}
    for method, shades in _SHADES.items():
        budgets = sorted(
            (n for n in names if n.rpartition("_")[0] == method), key=lambda n: int(n[len(method) + 1 :])
        )
        for name, shade in zip(budgets, np.linspace(0.4, 0.95, len(budgets)), strict=True):
            colors[name] = colormaps[shades](shade)
    others = [name for name in names if name not in colors]
    return colors | dict(zip(others, COLORS * len(others), strict=False))


def plot_actors(actors: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """The judge's opinion, true quality and cue share over the steps of each actor's training."""
    curves = {actor["judge"]: actor["steps"] for actor in actors.values() if actor["judge"] is not None}
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    titles = {
        "actor/win_rate": "The judge's opinion (wins against references)",
        "actor/quality": "True quality of the answers",
        "actor/cue_share": "Answers in bullets",
    }
    colors = judge_colors(list(curves))
    for panel, (key, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for judge, steps in curves.items():
            measured = [(step["step"], step[key]) for step in steps if step.get(key) is not None]
            line = np.array(measured).reshape(-1, 2).T
            panel.plot(*line, color=colors[judge], linewidth=1.5, label=display(judge))
        panel.set_title(title, fontsize=10, color=INK)
        panel.set_xlabel("step", fontsize=9)
        tidy(panel)
    figure.legend(
        *panel.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=9
    )
    return save(figure, path)


def plot_correlation(judges: Mapping, actors: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """The quality of each trained actor against its judge's L-Acc and F-Score."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    names = [actor["judge"] for actor in actors.values() if actor["judge"] is not None]
    panels = figure.subplots(1, len(PREDICTORS), sharey=True)
    for panel, metric in zip(panels, PREDICTORS, strict=True):
        xy = 100 * points(judges, actors, metric)
        colors = judge_colors(names)
        for name, (x, y) in zip(names, xy, strict=True):
            panel.scatter(x, y, color=colors[name], s=40, zorder=2, label=display(name))
        r = correlation(xy)
        _label(panel, metric, r["value"] if r else None)
    handles = panel.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.axes[0].set_ylabel("actor's true quality, %", fontsize=9)
    return save(figure, path)


def plot_pooled(summaries: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """The gain of each trained actor over its warm start against its judge's L-Acc and F-Score; a marker per seed."""
    figure = Figure(figsize=(8, 3.9), layout="constrained")
    judges = [[a["judge"] for a in s["actors"].values() if a["judge"] is not None] for s in summaries]
    colors = judge_colors(list(dict.fromkeys(name for names in judges for name in names)))
    markers = dict(zip((summary["seed"] for summary in summaries), _MARKERS * len(summaries), strict=False))
    panels = figure.subplots(1, len(PREDICTORS), sharey=True)
    for panel, metric in zip(panels, PREDICTORS, strict=True):
        every = []
        for summary, names in zip(summaries, judges, strict=True):
            xy = 100 * points(summary["models"], summary["actors"], metric, "gain")
            for name, (x, y) in zip(names, xy, strict=True):
                panel.scatter(x, y, color=colors[name], marker=markers[summary["seed"]], s=40, zorder=2)
            every.append(xy)
        _label(panel, metric, pearson(np.concatenate(every)))
    dots = [_dot("o", color, display(name)) for name, color in colors.items()]
    dots += [_dot(marker, INK, f"seed {seed}") for seed, marker in markers.items()]
    figure.legend(handles=dots, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    figure.axes[0].set_ylabel("actor's gain in true quality, points", fontsize=9)
    return save(figure, path)


def _dot(marker: str, color: Any, label: str) -> Line2D:
    return Line2D([], [], marker=marker, color=color, linestyle="", label=label)


def _label(panel, metric: str, r: float | None) -> None:
    panel.set_title("" if r is None else f"r = {r:.2f}", fontsize=10, color=INK)
    panel.set_xlabel(f"judge's {METRICS[metric]} in distribution, %", fontsize=9)
    panel.margins(0.1)
    tidy(panel)
