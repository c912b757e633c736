"""metrics.jsonl: the metrics of a run, one JSON object per step, in a fixed order of keys.

Keys are `step` and `GROUP/name`, with GROUP one of `GROUPS`. All times are in `time_s/`, so two runs with the same seed
write the same file except for that group and `memory/`. Non-finite numbers are written as null, since JSON has no NaN.
"""

import json
import math
import numbers
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ralign.engine.runtime.errors import UserError

GROUPS = ("time_s", "reward", "policy", "judge", "memory", "actor", "critic", "eval")


class MetricsLog:
    """Appends to metrics.jsonl. `write` closes the file, so its line survives the end of the process.

    `next_step` is the first step to come. Lines of that step and of later ones, from a run that was killed after its
    last checkpoint, are dropped, so no step is in the file twice. 0 starts a new file. With `enabled=False` (ranks
    other than 0) nothing is read or written.
    """

    def __init__(self, path: str | Path, *, next_step: int = 0, enabled: bool = True) -> None:
        self.path = Path(path)
        self.enabled = enabled
        self.last_step = next_step - 1
        if not enabled:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = read_metrics(self.path) if next_step and self.path.exists() else []
        lines = [_line(record) for record in kept if record["step"] < next_step]
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.write_text("".join(lines), encoding="utf-8")
        os.replace(fresh, self.path)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one step. Values are numbers, or convertible by `float` (a tensor of one element)."""
        assert step > self.last_step, f"step {step} after step {self.last_step}"
        for key in metrics:
            group, slash, name = key.partition("/")
            assert slash and name and group in GROUPS, f"metric {key!r}: its group is not one of {GROUPS}"
        self.last_step = step
        if self.enabled:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line({"step": step, **{key: _number(value) for key, value in metrics.items()}}))


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The steps of a metrics.jsonl, oldest first; null becomes NaN.

    A last line without its newline, from a run that was killed, is ignored.

    Raises:
        UserError: the file cannot be read, or another line is not an object with a `step`; with the line's number.
    """
    records = []
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    complete, _, _ = text.rpartition("\n")
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise UserError(f"{path}, line {number}: not an object with a step")
        records.append({key: math.nan if value is None else value for key, value in record.items()})
    return records


def series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one key, for the steps that have it."""
    measured = [
        (record["step"], record[key]) for record in records if not math.isnan(record.get(key, math.nan))
    ]
    return [step for step, _ in measured], [value for _, value in measured]


def _number(value: Any) -> int | float | None:
    if isinstance(value, numbers.Integral):
        return int(value)
    value = float(value)
    return value if math.isfinite(value) else None


def _line(record: Mapping[str, Any]) -> str:
    finite = {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in record.items()
    }
    return json.dumps(finite, sort_keys=True, allow_nan=False) + "\n"
