"""Judged pairs on disk: the released evaluator's JSONL fields, read strictly and written whole.

A pairs file (`data.pairs`) gets, after the GenRM, ``model_judgment`` (null: the call failed), ``model_pred`` ("A",
"B" or null) and ``meta.model_name``; after the MetaRM ``metarm_raw``, ``metarm_analysis``, ``metarm_verdict`` (the
values of `Outcome`), ``metarm_score`` (1.0, 0.0 or null), ``meta.metarm_model_name`` and ``meta.metarm_error``. Of
our own, where both orders were judged: ``model_judgment_swapped`` and ``model_pred_swapped``, written with the
responses swapped, so that an "A" names response_B; and why calls failed, ``meta.model_error`` and
``meta.model_error_swapped``. The released evaluator passes over fields that it does not know, and so do we.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ralign.engine.data.pairs import SIDES, BadLine, Side, parse_object
from ralign.engine.judging.metarm import Outcome
from ralign.engine.runtime.errors import UserError

SUBSET_FIELD = "source"
_SUBSET_KEYS = ("subset", "domain", "category", "dataset", "name")
_SCORES = {Outcome.CORRECT: 1.0, Outcome.INCORRECT: 0.0}
NUM_REASONS_SHOWN = 5


@dataclass(kw_only=True, slots=True)
class JudgedPair:
    """One line of a judged file: what the metrics need, and the whole record."""

    id: str
    label: Side
    verdict: Side | None
    outcome: Outcome
    swapped_verdict: Side | None  # as written, in the swapped order
    in_both_orders: bool
    call_failed: bool  # there is no verdict since the judge's call failed
    swapped_call_failed: bool
    model: str | None  # meta.model_name
    record: dict[str, Any]


def read_judged(path: str | Path, *, max_bad_lines: int = 0) -> list[JudgedPair]:
    """The judged pairs of a file, in order; blank lines are skipped.

    Raises `UserError` when the file cannot be read, holds no pair, or has more than `max_bad_lines` bad ones
    (not JSON, fields missing or of other values, an outcome that contradicts the verdict, an id used twice
    for one model). The message names the first of them by number and reason.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read the judged file {path}: {error.strerror}") from error
    judged: list[JudgedPair] = []
    seen: set[tuple[str | None, str]] = set()
    reasons = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            pair = parse_judged(parse_object(line))
            if (pair.model, pair.id) in seen:
                raise BadLine(f"id {pair.id!r} was already used")
        except BadLine as bad:
            reasons.append(f"{path}:{number}: {bad}")
            continue
        seen.add((pair.model, pair.id))
        judged.append(pair)
    if len(reasons) > max_bad_lines:
        shown = "\n  ".join(reasons[:NUM_REASONS_SHOWN])
        raise UserError(f"{path}: {len(reasons)} bad lines, at most {max_bad_lines} allowed:\n  {shown}")
    if not judged:
        raise UserError(f"{path} holds no judged pair")
    return judged


def parse_judged(record: dict[str, Any]) -> JudgedPair:
    """The judged pair in a JSON object; `BadLine` where a field is missing or says what cannot be."""
    for name in ("id", "gt_label", "model_pred"):
        if name not in record:
            raise BadLine(f"missing field {name}")
    if record.get("metarm_verdict") is None:
        raise BadLine("no metarm_verdict: the MetaRM has not judged this pair yet")
    if not isinstance(record["id"], str | int):
        raise BadLine(f"id must be text or a number, got {type(record['id']).__name__}")
    label, verdict, name = record["gt_label"], record["model_pred"], record["metarm_verdict"]
    if label not in SIDES:
        raise BadLine(f"gt_label must be A or B, got {label!r}")
    swapped = record.get("model_pred_swapped")
    for field, value in (("model_pred", verdict), ("model_pred_swapped", swapped)):
        if value is not None and value not in SIDES:
            raise BadLine(f"{field} must be A, B or null, got {value!r}")
    outcomes = [outcome for outcome in Outcome if outcome.value == name]
    if not outcomes:
        raise BadLine(f"unknown metarm_verdict {name!r}")
    if (verdict == label) == (outcomes[0] is Outcome.SKIPPED):
        raise BadLine(f"metarm_verdict {name} with model_pred {verdict} and gt_label {label}")
    meta = record.get("meta")
    model = meta.get("model_name") if isinstance(meta, dict) else None
    return JudgedPair(
        id=str(record["id"]),
        label=label,
        verdict=verdict,
        outcome=outcomes[0],
        swapped_verdict=swapped,
        in_both_orders="model_pred_swapped" in record,
        call_failed=verdict is None and record.get("model_judgment", "") is None,
        swapped_call_failed=swapped is None and record.get("model_judgment_swapped", "") is None,
        model=None if model is None else str(model),
        record=record,
    )


def subset_of(record: dict[str, Any], field: str = SUBSET_FIELD) -> str:
    """What a record's `field` (dots lead inside objects) calls its subset; "" without one.

    An object is known by the first of its ``subset``, ``domain``, ``category``, ``dataset`` and ``name``.
    """
    value: Any = record
    for key in field.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, dict):
        value = next((value[key] for key in _SUBSET_KEYS if value.get(key) is not None), None)
    return "" if value is None else str(value)


def metarm_fields(outcome: Outcome, *, raw: str = "", analysis: str = "") -> dict[str, Any]:
    """The fields that the MetaRM adds to a record, but for those in ``meta``."""
    return {
        "metarm_raw": raw,
        "metarm_analysis": analysis,
        "metarm_verdict": outcome.value,
        "metarm_score": _SCORES.get(outcome),
    }


def test_of(path: Path, model: str | None) -> str:
    """What the test of a judged file is called, by the file's name.

    The released evaluator writes ``BENCH__MODEL.jsonl`` and ``BENCH__MODEL_metarm_METARM.jsonl``: where MODEL is
    `model` (meta.model_name), BENCH; else the whole name without suffix.
    """
    bench, _, rest = path.stem.partition("__")
    if model and bench and rest.split("_metarm_")[0] == name_in_file(model):
        return bench
    return path.stem


def released_name(test: str, model: str) -> str:
    """The file name by which the released summary knows test and model of a judged file."""
    return f"{name_in_file(test)}__{name_in_file(model)}.jsonl"


def name_in_file(name: str) -> str:
    """A name as the released evaluator writes it in file names: letters, digits, dots, hyphens, single underscores."""
    return re.sub(r"_+", "_", re.sub(r"[^0-9A-Za-z._-]", "_", name)).strip("_")


def write_records(records: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Writes JSON lines at once: a reader finds the old file or the whole new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    os.replace(fresh, path)


def by_subset(judged: Sequence[JudgedPair], field: str) -> dict[str, list[JudgedPair]]:
    """Judged pairs under the names of their subsets, in the order in which these first appear."""
    subsets: dict[str, list[JudgedPair]] = {}
    for pair in judged:
        subsets.setdefault(subset_of(pair.record, field), []).append(pair)
    return subsets
