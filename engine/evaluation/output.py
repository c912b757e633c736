"""What an evaluation leaves: summary.json, metrics.csv, the paper's bar chart, and the page to read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ralign.engine.evaluation.records import subset_of
from ralign.engine.evaluation.score import Judged, compare_models, score
from ralign.engine.report.browser import write_browser
from ralign.engine.report.metrics_csv import write_csv
from ralign.engine.report.plots import plot_judgments
from ralign.engine.report.summary import make_summary, write_summary


def summarise(
    judged: Judged,
    *,
    subset_field: str,
    num_bootstrap: int,
    seed: int,
    time_s: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The summary of judged files, comparisons included."""
    results = score(judged, subset_field=subset_field, num_bootstrap=num_bootstrap, seed=seed)
    return make_summary(
        results, seed=seed, time_s=time_s or {}, comparisons=compare_models(judged, seed=seed)
    )


def write_outputs(
    summary: Mapping[str, Any], judged: Judged, folder: str | Path, *, subset_field: str
) -> Path:
    """Writes everything into `folder` and returns the page's path."""
    folder = Path(folder)
    write_summary(summary, folder / "summary.json")
    write_csv(summary, folder / "metrics.csv")
    figure = plot_judgments(summary, folder / "judgments.png")
    records = {
        model: {test: [pair.record for pair in pairs] for test, pairs in tests.items()}
        for model, tests in judged.items()
    }
    return write_browser(
        summary,
        records,
        folder / "index.html",
        subset_of=lambda record: subset_of(record, subset_field),
        figure=figure,
    )
