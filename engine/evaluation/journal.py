"""Append-only records of an evaluation's results, from which an interrupted run continues."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ralign.engine.data.pairs import BadLine, parse_object
from ralign.engine.runtime.append_log import LineLog
from ralign.engine.runtime.errors import UserError

Fields = Mapping[str, Callable[[Any], bool]]
"""Name of a field of every record -> whether a value is one that it can have."""


def journal_key(*parts: str) -> str:
    """A key of texts; other texts, or another number of them, have another key.

    The parts are joined by tabs. A tab or a backslash of a part is escaped.
    """
    return "\t".join(part.replace("\\", "\\\\").replace("\t", "\\t") for part in parts)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


class Journal:
    """Records by key in a JSONL file (a `LineLog`: whole lines, one process at a time).

    The first line holds the settings of the records; a journal of other settings is refused, since its records would
    mean something else. A record may hold its cost under `tokens`, [prompt, answer].
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], fields: Fields) -> None:
        """Open the journal, or create it.

        Raises:
            UserError: it has other settings, has a line that is no record with `fields`, or is open in another process.
        """
        self.path = Path(path)
        self._fields = fields
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
        made_with = self._read(lines[0], 1).get("settings")
        if not isinstance(made_with, dict):
            raise self._bad(1, "not the settings of a journal")
        self._check(made_with, settings)
        for number, line in enumerate(lines[1:], start=2):
            record = self._read(line, number)
            key = record.pop("key", None)
            if not is_text(key) or not self._is_record(record):
                raise self._bad(number, "not a line of this journal")
            if key in self._records:
                raise self._bad(number, f"the key {key!r} was already used")
            self._records[key] = record

    def _read(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            return parse_object(line)
        except BadLine as bad:
            raise self._bad(number, str(bad)) from bad

    def _is_record(self, record: Mapping[str, Any]) -> bool:
        has_fields = all(name in record and fits(record[name]) for name, fits in self._fields.items())
        return has_fields and _are_tokens(record.get("tokens", [0, 0]))

    def _bad(self, number: int, reason: str) -> UserError:
        return UserError(f"{self.path}:{number}: {reason}; remove the line, or the file to start over")

    def _check(self, made_with: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
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
        """Add a record under a new key.

        Raises:
            UserError: it cannot be written.
        """
        assert key not in self._records and self._is_record(record), key
        self._write({"key": key, **record})
        self._records[key] = dict(record)

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt and answer tokens of all records."""
        costs = [record["tokens"] for record in self._records.values() if "tokens" in record]
        return sum(num_prompt for num_prompt, _ in costs), sum(num_answer for _, num_answer in costs)

    def _write(self, record: Mapping[str, Any]) -> None:
        self._log.add(json.dumps(record, ensure_ascii=True).encode())

    def close(self) -> None:
        self._log.close()


def _are_tokens(value: Any) -> bool:
    """Whether it is [prompt, answer], two numbers of tokens."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(count) is int and count >= 0 for count in value)
    )
