"""metrics.csv: a summary as one flat table, for a spreadsheet or a data frame."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ralign.engine.report.summary import CALL_COUNTS, METRICS, SWAP_METRICS
from ralign.engine.runtime.files import replacing

_COUNTS = ("num_pairs", "num_parse_fail", "num_judge_fail", *CALL_COUNTS)


def write_csv(summary: Mapping[str, Any], path: str | Path) -> Path:
    """Write one row per model, test and subset (empty for a whole test), and return `path`.

    A metric has the columns NAME, NAME_low and NAME_high: fractions, empty without a denominator.
    """
    rows = list(_rows(summary))
    with replacing(path) as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["model"])
        writer.writeheader()
        writer.writerows(rows)
    return Path(path)


def _rows(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for model, tests in summary["models"].items():
        for test, result in tests.items():
            for subset, part in {"": result, **result.get("subsets", {})}.items():
                row = {"model": model, "test": test, "subset": subset}
                row |= {name: part.get(name) for name in _COUNTS}
                for name in (*METRICS, *SWAP_METRICS):
                    interval = part.get(name) or {"value": None, "low": None, "high": None}
                    row |= {name: interval["value"]}
                    row |= {f"{name}_{bound}": interval[bound] for bound in ("low", "high")}
                yield row
