"""Append-only records of an evaluation's results, from which an interrupted run continues."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ralign.engine.runtime.append_log import LineLog
from ralign.engine.runtime.errors import UserError


class Journal:
    """Records by key in a JSONL file (a `LineLog`: whole lines, one process at a time).

    The first line holds the settings of the records; a journal of other settings is refused, since its records would
    mean something else. A record may hold its cost under `tokens`, [prompt, answer].
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        """Open the journal, or create it.

        Raises:
            UserError: it has other settings, is broken, or is open in another process.
        """
        self.path = Path(path)
        self._records: dict[str, dict[str, Any]] = {}
        self._log = LineLog(path)
        try:
            self._open(settings)
        except UserError:
            self._log.close()
            raise

    def _open(self, settings: Mapping[str, Any]) -> None:
        lines = self._log.lines()
        if not lines:
            self._write({"settings": dict(settings)})
            return
        self._check(self._read(lines[0], 1).get("settings"), settings)
        for number, line in enumerate(lines[1:], start=2):
            record = self._read(line, number)
            self._records[record.pop("key")] = record

    def _read(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{self.path}:{number}: not JSON ({error}); remove the file to start over"
            ) from error
        if not isinstance(record, dict) or ("settings" if number == 1 else "key") not in record:
            raise UserError(f"{self.path}:{number}: not a line of a journal; remove the file to start over")
        return record

    def _check(self, made_with: Any, settings: Mapping[str, Any]) -> None:
        names = sorted({*made_with, *settings})
        other = [name for name in names if made_with.get(name) != settings.get(name)]
        if other:
            name = other[0]
            raise UserError(
                f"{self.path} was made with {name}={made_with.get(name)!r}, not {settings.get(name)!r}"
                + (f" (and other {', '.join(other[1:])})" if other[1:] else "")
                + ": give another --out, or remove the file to repeat its part"
            )

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._records[key]

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """Add a record under a new key."""
        assert key not in self._records, key
        self._records[key] = dict(record)
        self._write({"key": key, **record})

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt and answer tokens of all records."""
        costs = [record["tokens"] for record in self._records.values() if "tokens" in record]
        return sum(num_prompt for num_prompt, _ in costs), sum(num_answer for _, num_answer in costs)

    def _write(self, record: Mapping[str, Any]) -> None:
        self._log.add(json.dumps(record, ensure_ascii=True).encode())

    def close(self) -> None:
        self._log.close()
