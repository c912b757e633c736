"""What an evaluation leaves: summary.json, metrics.csv, the paper's bar chart, and the page to read.

Also copies of the judged files for the released evaluator, which knows model and test by a file's name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ralign.engine.evaluation.records import released_name, subset_of, write_records
from ralign.engine.evaluation.score import Judged, compare_models, score
from ralign.engine.report.browser import write_browser
from ralign.engine.report.metrics_csv import write_csv
from ralign.engine.report.plots import plot_judgments
from ralign.engine.report.summary import make_summary, write_summary
from ralign.engine.runtime.errors import UserError


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


def write_released(judged: Judged, folder: str | Path) -> None:
    """Writes each test of each model into `folder`, under the name by which the released summary knows them.

    Raises UserError where two would have the same name.
    """
    written: dict[str, str] = {}
    for model, tests in judged.items():
        for test, pairs in tests.items():
            name = released_name(test, model)
            if name in written:
                raise UserError(
                    f"--released {folder}: {model} on {test} and {written[name]} would both be {name};"
                    " give one of the models another name with NAME=FILE"
                )
            written[name] = f"{model} on {test}"
            records = [pair.record for pair in pairs]
            named = [
                {**record, "meta": {**(record.get("meta") or {}), "model_name": model}} for record in records
            ]
            write_records(named, Path(folder) / name)
