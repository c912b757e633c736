"""The report of a finished comparison: summary.json, plots, the HTML page, the tables on the terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ralign.engine.report.html import write_html
from ralign.engine.report.plots import plot_judgments, plot_training
from ralign.engine.report.summary import make_summary, write_summary
from ralign.engine.report.terminal import print_summary
from ralign.engine.runtime import output

_INTRO = (
    "L-Acc is the share of correct verdicts. S-Corr is the share of correct verdicts whose rationale misses the "
    "decisive reason. F-Score is the share of judgments correct in both. All models start from the SFT model."
)


def write_report(
    folder: Path,
    models: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    seed: int,
    time_s: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write `folder/report/` and print the tables; call it on one rank.

    Args:
        folder: the run folder; `folder/MODEL/metrics.jsonl` has the training curves.
        models: model -> test -> result of `judging.metrics.measure`.
        time_s: stage -> seconds.
        baselines: rule -> test -> result (`evaluation.baselines`).
        notes: sentences on how the figures may be read.
    """
    report = folder / "report"
    summary = make_summary(models, seed=seed, time_s=time_s, baselines=baselines, notes=notes)
    write_summary(summary, report / "summary.json")
    judgments = plot_judgments(summary, report / "judgments.png")
    logs = {name: folder / name / "metrics.jsonl" for name in models}
    curves = plot_training(
        {name: path for name, path in logs.items() if path.exists()}, report / "training.png"
    )
    write_html(
        summary,
        report / "index.html",
        title="Right for the right reasons?",
        intro=_INTRO,
        figures={"Verdicts and their reasons": judgments, "Training": curves},
        config=json.loads((folder / "config.json").read_text(encoding="utf-8")),
    )
    print_summary(summary)
    output.show(f"Report: {report / 'index.html'}")
