"""Judged pairs on disk: the released evaluator's JSONL fields, parsed strictly and written atomically.

The GenRM adds to a pairs file (`data.pairs`): ``model_judgment`` (null: the call failed), ``model_pred`` ("A", "B" or
null) and ``meta.model_name``. The MetaRM adds ``metarm_raw``, ``metarm_analysis``, ``metarm_verdict`` (a value of
`Outcome`), ``metarm_score`` (1.0, 0.0 or null), ``meta.metarm_model_name`` and ``meta.metarm_error``.

Fields of our own: for both orders ``model_judgment_swapped`` and ``model_pred_swapped``, written with the responses
swapped, so that an "A" names response_B; for flip rates ``model_pred_greedy``, the greedy verdict on the pair itself,
and ``model_pred_twins``, an object of the greedy verdicts on its twins by kind, each by the response that it names: an
"A" names response_A, also if the twin has it as B. A kind of which the pair has no twin is missing. For failed calls
the reason is in ``meta.model_error``, ``meta.model_error_swapped`` and ``meta.model_error_twins`` (an object by kind,
and "greedy"). The released evaluator ignores unknown fields, and so do we.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ralign.engine.data.pairs import SIDES, BadLine, Side, parse_object
from ralign.engine.judging.metarm import Outcome
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import check_input, mistakes, replacing

SUBSET_FIELD = "source"
_SUBSET_KEYS = ("subset", "domain", "category", "dataset", "name")
_SCORES = {Outcome.CORRECT: 1.0, Outcome.INCORRECT: 0.0}
_TEXTS = (
    *("response_A", "response_B", "gt_judgment", "model_judgment", "model_judgment_swapped"),
    *("metarm_raw", "metarm_analysis"),
)
NUM_REASONS_SHOWN = 5


@dataclass(kw_only=True, slots=True)
class JudgedPair:
    """One line of a judged file: the inputs of the metrics, and the whole record."""

    id: str
    label: Side
    verdict: Side | None
    outcome: Outcome
    swapped_verdict: Side | None  # as written, in the swapped order
    in_both_orders: bool
    call_failed: bool  # no verdict, because the judge's call failed
    swapped_call_failed: bool
    greedy_verdict: Side | None
    twin_verdicts: (
        dict[str, Side | None] | None
    )  # by kind, in the pair's own sides; None: twins were not judged
    model: str | None  # meta.model_name
    record: dict[str, Any]


def read_judged(path: str | Path, *, max_bad_lines: int = 0) -> list[JudgedPair]:
    """The judged pairs of a file, in order; blank lines are skipped.

    Raises:
        UserError: the file cannot be read, has no pair, or has more than `max_bad_lines` bad lines (not JSON, missing
            fields or unknown values, an outcome that contradicts the verdict, an id used twice for one model). The
            message names the first of them with number and reason.
    """
    with mistakes("read", path):
        lines = check_input(path).read_bytes().split(b"\n")
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
    """The judged pair in a JSON object. Raises `BadLine` for a missing field or an impossible value."""
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
    _check_twins(record)
    _check_shown(record)
    model = (record.get("meta") or {}).get("model_name")
    return JudgedPair(
        id=str(record["id"]),
        label=label,
        verdict=verdict,
        outcome=outcomes[0],
        swapped_verdict=swapped,
        in_both_orders="model_pred_swapped" in record,
        call_failed=verdict is None and record.get("model_judgment", "") is None,
        swapped_call_failed=swapped is None and record.get("model_judgment_swapped", "") is None,
        greedy_verdict=record.get("model_pred_greedy"),
        twin_verdicts=record.get("model_pred_twins"),
        model=None if model is None else str(model),
        record=record,
    )


def _check_twins(record: dict[str, Any]) -> None:
    """Checks the fields for flip rates, which may be missing, but not one of them."""
    names = ("model_pred_greedy", "model_pred_twins")
    if (given := [name for name in names if name in record]) not in ([], [*names]):
        raise BadLine(f"{given[0]} without {names[1 - names.index(given[0])]}")
    if not given:
        return
    greedy, twins = (record[name] for name in names)
    if not isinstance(twins, dict):
        raise BadLine(f"model_pred_twins must be an object, got {type(twins).__name__}")
    for field, value in (
        ("model_pred_greedy", greedy),
        *((f"model_pred_twins.{kind}", value) for kind, value in twins.items()),
    ):
        if value is not None and value not in SIDES:
            raise BadLine(f"{field} must be A, B or null, got {value!r}")


def _check_shown(record: dict[str, Any]) -> None:
    """Checks the fields that only the page shows, which may be missing or null."""
    for name in _TEXTS:
        if not isinstance(record.get(name), str | None):
            raise BadLine(f"{name} must be text or null, got {type(record[name]).__name__}")
    if not isinstance(record.get("meta"), dict | None):
        raise BadLine(f"meta must be an object or null, got {type(record['meta']).__name__}")
    turns = record.get("conversations") or []
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and all(isinstance(turn.get(name), str) for name in ("role", "content"))
        for turn in turns
    ):
        raise BadLine("conversations must be turns, objects with strings role and content")


def subset_of(record: dict[str, Any], field: str = SUBSET_FIELD) -> str:
    """The subset that a record's `field` (a dotted path) names; "" without one.

    For an object it is the first of ``subset``, ``domain``, ``category``, ``dataset`` and ``name``.
    """
    value: Any = record
    for key in field.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, dict):
        value = next((value[key] for key in _SUBSET_KEYS if value.get(key) is not None), None)
    return "" if value is None else str(value)


def metarm_fields(outcome: Outcome, *, raw: str = "", analysis: str = "") -> dict[str, Any]:
    """The fields that the MetaRM adds to a record, except those in ``meta``."""
    return {
        "metarm_raw": raw,
        "metarm_analysis": analysis,
        "metarm_verdict": outcome.value,
        "metarm_score": _SCORES.get(outcome),
    }


def twin_fields(greedy: str | None, twins: Mapping[str, str | None]) -> dict[str, Any]:
    """The fields for flip rates: the greedy verdicts on a pair and, by kind and in its own sides, on its twins."""
    return {"model_pred_greedy": greedy, "model_pred_twins": dict(twins)}


def test_of(path: Path, model: str | None) -> str:
    """The test's name, from the name of a judged file.

    The released evaluator writes ``BENCH__MODEL.jsonl`` and ``BENCH__MODEL_metarm_METARM.jsonl``: BENCH if MODEL is
    `model` (meta.model_name), else the whole name without suffix.
    """
    bench, _, rest = path.stem.partition("__")
    if model and bench and rest.split("_metarm_")[0] == name_in_file(model):
        return bench
    return path.stem


def released_name(test: str, model: str) -> str:
    """The released summary's file name for this test and model. Different ones may have the same name.

    Raises:
        UserError: nothing is left of one of the two.
    """
    for name in (test, model):
        if not name_in_file(name).strip("."):
            raise UserError(
                f"{name!r} has no letter or digit for the released summary's file names: rename the file, or give the"
                " model another name with NAME=FILE"
            )
    return f"{name_in_file(test)}__{name_in_file(model)}.jsonl"


def name_in_file(name: str) -> str:
    """A name in the released evaluator's file names: letters, digits, dots, hyphens, single underscores."""
    return re.sub(r"_+", "_", re.sub(r"[^0-9A-Za-z._-]", "_", name)).strip("_")


def write_records(records: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Write JSON lines atomically: a reader finds the old file or the whole new one. UserError if that fails."""
    with replacing(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def by_subset(judged: Sequence[JudgedPair], field: str) -> dict[str, list[JudgedPair]]:
    """Judged pairs by subset, in order of first appearance."""
    subsets: dict[str, list[JudgedPair]] = {}
    for pair in judged:
        subsets.setdefault(subset_of(pair.record, field), []).append(pair)
    return subsets
