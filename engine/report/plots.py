"""PNG plots of a run: a comparison of judges, as in the R-Align paper, and training curves.

Figures use matplotlib's Agg canvas without pyplot, so they need no display and change no global state.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from ralign.engine.report.metrics_log import read_metrics, series
from ralign.engine.report.summary import display, percent, tests_of
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import drafting

CURVES = {
    "reward/mean": "Reward",
    "judge/l_acc": "L-Acc",
    "judge/s_corr": "S-Corr",
    "policy/response_len": "Response length (tokens)",
    "policy/grad_norm": "Gradient norm",
    "policy/entropy": "Entropy (nats per token)",
}
_RIGHT, _SPURIOUS, _SPURIOUS_INK, INK = "#2a6f97", "#f4a259", "#b35900", "#333333"
_HATCHED: dict[str, Any] = {"hatch": "////", "edgecolor": "white"}
COLORS = ("#f08a24", "#2a6f97", "#6a994e", "#bc4749", "#7b2cbf", "#8d99ae")
_DPI = 160


def plot_judgments(summary: Mapping[str, Any], path: str | Path) -> Path:
    """Writes one panel per test with one bar per model, and returns `path`.

    The height of a bar is L-Acc. Its lower part is the share right for the right reason, L-Acc · (1 − S-Corr), which
    equals F-Score if no MetaRM call failed. Its upper part is the share right for a wrong reason. Whiskers are the 95 %
    intervals of L-Acc (top) and F-Score (below).
    """
    tests = tests_of(summary)
    if not tests:
        raise UserError("nothing to plot: the summary has no test")
    width = max(7.8, 1.2 + len(tests) * max(2.6, 0.95 * len(summary["models"])))  # the legend needs 7.8
    figure = Figure(figsize=(width, 3.9), layout="constrained")
    panels = figure.subplots(1, len(tests), sharey=True, squeeze=False)[0]
    for panel, test in zip(panels, tests, strict=True):
        results = {model: found[test] for model, found in summary["models"].items() if test in found}
        _draw_bars(panel, results)
        panel.set_title(display(test), fontsize=11, color=INK, parse_math=False)
    panels[0].set_ylabel("pairs judged right, %")
    handles = [
        Patch(facecolor=_RIGHT, label="right for the right reason (F-Score)"),
        Patch(
            facecolor=_SPURIOUS, hatch="////", edgecolor="white", label="right for a wrong reason (S-Corr)"
        ),
        Line2D([], [], color=INK, linewidth=0.8, linestyle=":", label="random verdicts"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return save(figure, path)


def _draw_bars(panel: Axes, results: Mapping[str, Mapping[str, Any]]) -> None:
    for x, result in enumerate(results.values()):
        l_acc, s_corr, f_score = result["l_acc"], result["s_corr"], result["f_score"]
        top = 100 * l_acc["value"]
        right = top * (1 - (s_corr["value"] or 0.0))
        panel.bar(x, right, width=0.62, color=_RIGHT)
        panel.bar(x, top - right, bottom=right, width=0.62, color=_SPURIOUS, **_HATCHED)
        _whisker(panel, x + 0.2, top, l_acc)
        if f_score["value"] is not None and right < top:
            _whisker(panel, x - 0.2, right, f_score)
        above = 100 * l_acc["high"] + 1.5
        centred: dict[str, Any] = {"ha": "center", "va": "bottom"}
        # A white box covers the line of random verdicts behind a number.
        clear: dict[str, Any] = {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5}}
        text = f"S {percent(s_corr, bounds=False)}"
        panel.text(x, above, text, fontsize=8.5, color=_SPURIOUS_INK, **centred, **clear)
        panel.text(x, above + 6, f"{top:.1f}", fontsize=9.5, weight="bold", color=INK, **centred, **clear)
        if right > 8:
            text = f"F {percent(f_score, bounds=False)}"
            panel.text(x, 2, text, fontsize=8.5, color="white", **centred)
    panel.set_xticks(range(len(results)), [display(model) for model in results], parse_math=False)
    panel.set_xlim(-0.6, len(results) - 0.4)
    panel.set_ylim(0, 116)
    panel.set_yticks(range(0, 101, 20))
    panel.axhline(50, color=INK, linewidth=0.8, linestyle=":", zorder=0)
    tidy(panel)


def _whisker(panel: Axes, x: float, y: float, interval: Mapping[str, float]) -> None:
    """The interval's width, drawn around the bar's edge at `y`."""
    below = 100 * (interval["value"] - interval["low"])
    above = 100 * (interval["high"] - interval["value"])
    panel.errorbar(x, y, yerr=[[below], [above]], color=INK, linewidth=1.1, capsize=2.5)


def plot_training(logs: Mapping[str, str | Path], path: str | Path) -> Path:
    """Writes the training curves of several runs, each a metrics.jsonl, and returns `path`.

    There is one panel for each metric of `CURVES` that any run measured. Thin lines are the steps, thick lines a moving
    mean over a tenth of the run. If some runs have rewards, runs without rewards (a warm start) are not drawn, since
    their steps are not comparable.
    """
    runs = {name: read_metrics(log) for name, log in logs.items()}
    rewarded = {name: records for name, records in runs.items() if series(records, "reward/mean")[0]}
    runs = rewarded or runs
    keys = [key for key in CURVES if any(series(records, key)[0] for records in runs.values())]
    if not keys:
        raise UserError(
            f"nothing to plot: no run in {', '.join(runs) or 'none'} measured any of {', '.join(CURVES)}"
        )
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.5 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for key, panel in zip(keys, panels, strict=False):
        for (name, records), color in zip(runs.items(), COLORS * len(runs), strict=False):
            _draw_curve(panel, *series(records, key), label=display(name), color=color)
        panel.set_title(CURVES[key], fontsize=10, color=INK)
        panel.set_xlabel("step", fontsize=9)
        if key in ("judge/l_acc", "judge/s_corr"):
            panel.set_ylim(-0.03, 1.03)
        tidy(panel)
    for panel in list(figure.axes)[len(keys) :]:
        panel.set_axis_off()
    handles = [
        Patch(facecolor=c, label=display(name)) for name, c in zip(runs, COLORS * len(runs), strict=False)
    ]
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a run may be named $x^$
    return save(figure, path)


def _draw_curve(panel: Axes, steps: list[int], values: list[float], *, label: str, color: str) -> None:
    window = max(1, len(values) // 10)
    if window == 1:
        panel.plot(steps, values, color=color, linewidth=1.4, label=label)
        return
    panel.plot(steps, values, color=color, linewidth=0.6, alpha=0.35)
    # The mean over the window that ends at each step; at the start, over the steps so far.
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    panel.plot(steps, (sums[ends] - sums[starts]) / (ends - starts), color=color, linewidth=1.8, label=label)


def tidy(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=9, colors=INK)
    panel.grid(axis="y", color="#e5e5e5", linewidth=0.7)
    panel.set_axisbelow(True)


def save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    FigureCanvasAgg(figure)
    with drafting(path) as draft:
        figure.savefig(draft, dpi=_DPI, format=path.suffix[1:])
    return path
