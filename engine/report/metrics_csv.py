"""metrics.csv: a summary as one flat table, for a spreadsheet or a data frame."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ralign.engine.report.summary import CALL_COUNTS, FLIP_COUNTS, METRICS, OPTIONAL_METRICS, flip_kinds
from ralign.engine.runtime.files import replacing

_COUNTS = ("num_pairs", "num_parse_fail", "num_judge_fail", "num_worst_group", *CALL_COUNTS)
_NOTHING = {"value": None, "low": None, "high": None}


def write_csv(summary: Mapping[str, Any], path: str | Path) -> Path:
    """Write one row per model, test and subset (empty for a whole test), and return `path`.

    A metric has the columns NAME, NAME_low and NAME_high: fractions, empty without a denominator. A flip rate is
    flip_rate.KIND, with its counts.
    """
    rows = list(_rows(summary))
    with replacing(path) as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["model"])
        writer.writeheader()
        writer.writerows(rows)
    return Path(path)


def _rows(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    kinds = flip_kinds([result for tests in summary["models"].values() for result in tests.values()])
    for model, tests in summary["models"].items():
        for test, result in tests.items():
            for subset, part in {"": result, **result.get("subsets", {})}.items():
                row = {"model": model, "test": test, "subset": subset}
                row |= {name: part.get(name) for name in _COUNTS}
                for name in (*METRICS, *OPTIONAL_METRICS):
                    row |= _columns(name, part.get(name) or _NOTHING)
                for kind in kinds:
                    found = part.get("flip_rate", {}).get(kind, {})
                    row |= _columns(f"flip_rate.{kind}", found or _NOTHING)
                    row |= {f"flip_rate.{kind}_{count}": found.get(count) for count in FLIP_COUNTS}
                yield row


def _columns(name: str, interval: Mapping[str, Any]) -> dict[str, Any]:
    return {name: interval["value"], f"{name}_low": interval["low"], f"{name}_high": interval["high"]}
