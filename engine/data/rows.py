"""Rows of a file as people have it: JSON lines, a JSON array, or Parquet.

A file is recognised by its content: Parquet by its first bytes, an array by a leading ``[``. Text is UTF-8, with or
without a byte order mark. `any_form` also reads what only a conversion should: gzip, UTF-16 and UTF-32.
"""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import check_input, mistakes

CONVERT = "ralign-data convert r_align FILE OUT"
_PARQUET, _GZIP = b"PAR1", b"\x1f\x8b"
# UTF-32's mark begins with that of UTF-16.
_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SUFFIXES = (".jsonl", ".json", ".gz", ".parquet", ".csv")  # that a conversion reads
_LENIENT = json.JSONDecoder()


class BadLine(Exception):
    """The reason why a line is not a pair (or not an object)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a file.

    Attributes:
        where: for a message, ``FILE:7`` for a line, ``FILE: item 7`` of an array, ``FILE: row 7`` of Parquet.
        place: the same without the file: ``line 7``.
        content: the object, or why there is none.
    """

    where: str
    place: str
    content: dict[str, Any] | BadLine


def read_rows(
    path: str | Path, *, columns: Sequence[str] | None = None, any_form: bool = False
) -> Iterator[Row]:
    """The rows of a file in order; blank lines are skipped.

    Args:
        columns: of Parquet, the ones that are read where they exist; None: all.
        any_form: also gzip, UTF-16 and UTF-32.

    Raises:
        UserError: it cannot be read, or has a form that only a conversion reads.
    """
    if why := why_no_file(path):
        raise UserError(why)
    path = check_input(path)
    with mistakes("read", path), path.open("rb") as file:
        start = file.read(8)
    if start.startswith(_PARQUET):
        yield from _parquet_rows(path, columns)
        return
    if path.suffix == ".parquet":
        raise UserError(f"cannot read {path}: it is not Parquet, or only the start of such a file")
    with mistakes("read", path):
        data = path.read_bytes()
    yield from _text_rows(path, _as_utf8(path, data, any_form))


def why_no_file(path: str | Path) -> str | None:
    """A message for a name that is no file and may be one on the Hugging Face hub; None otherwise."""
    name = str(path)
    is_name = _HUB_NAME.fullmatch(name) and Path(name).suffix not in SUFFIXES
    if not is_name or Path(name).exists() or Path(name).parent.exists():
        return None
    return (
        f"cannot read {name}: there is no such file; if it is a set on the Hugging Face hub,"
        f" make a pairs file of it with ralign-data convert LAYOUT {name} OUT"
    )


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object on one line; `BadLine` if there is none."""
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_unrepeated)
    except UnicodeDecodeError as error:
        raise BadLine(f"not UTF-8 (byte {error.start} of the line)") from error
    except json.JSONDecodeError as error:
        raise BadLine(f"not JSON ({error.msg} at column {error.colno})") from error
    except ValueError as error:  # NaN, infinity, a repeated key, or a number with thousands of digits
        raise BadLine(f"unreadable JSON ({error})") from error
    except RecursionError as error:
        raise BadLine("unreadable JSON (nested too deeply)") from error
    if not isinstance(record, dict):
        raise BadLine(f"expected a JSON object, got {type(record).__name__}")
    return record


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _unrepeated(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; JSON's usual readers take the last of several values of a key."""
    record = dict(members)
    if len(record) < len(members):
        names = [name for name, _ in members]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} is there twice")
    return record


def _as_utf8(path: Path, data: bytes, any_form: bool) -> bytes:
    """The content of a text file as UTF-8 without a byte order mark."""
    if data.startswith(_GZIP):
        if not any_form:
            raise UserError(f"cannot read {path}: it is compressed; {_advice(path)}, or gunzip unpacks it")
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"cannot read {path}: not a whole gzip file ({error})") from error
    for name, marks in _MARKS.items():
        if data.startswith(marks):
            if not any_form:
                raise UserError(f"cannot read {path}: it is {name}, not UTF-8; {_advice(path)} in UTF-8")
            try:
                return data.decode(name).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                raise UserError(f"cannot read {path}: not {name} (byte {error.start})") from error
    return data.removeprefix(codecs.BOM_UTF8)


def _advice(path: Path) -> str:
    return f"{CONVERT.replace('FILE', str(path))} writes its pairs"


def _text_rows(path: Path, data: bytes) -> Iterator[Row]:
    items = _items(data) if data.lstrip()[:1] == b"[" else None
    if items is not None:
        for number, item in enumerate(items, start=1):
            yield _row(f"{path}: item {number}", f"item {number}", item)
        return
    if path.suffix == ".json" and data.lstrip()[:1] in (b"[", b"{") and _is_spread(data):
        yield Row(where=str(path), place="the file", content=_whole(data))
        return
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield _row(f"{path}:{number}", f"line {number}", line)


def _row(where: str, place: str, line: bytes) -> Row:
    try:
        return Row(where=where, place=place, content=parse_object(line))
    except BadLine as bad:
        return Row(where=where, place=place, content=bad)


def _items(data: bytes) -> list[bytes] | None:
    """The elements of a JSON array as they are written, each on one line or many; None if it is no whole array."""
    try:
        text = data.decode("utf-8").strip()
        items, place = [], _after_blanks(text, 1)
        while text[place : place + 1] != "]":
            _, end = _LENIENT.raw_decode(text, place)
            items.append(text[place:end].encode("utf-8", "surrogatepass"))
            place = _after_blanks(text, end)
            if text[place : place + 1] == ",":
                place = _after_blanks(text, place + 1)
            elif text[place : place + 1] != "]":
                return None
    except (ValueError, RecursionError):
        return None
    return items if place == len(text) - 1 else None


def _after_blanks(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\n", "\r", "\t"):
        place += 1
    return place


def _is_spread(data: bytes) -> bool:
    """Whether no line of the file is an object by itself: one value over many lines."""
    return not any(isinstance(_row("", "", line).content, dict) for line in data.split(b"\n") if line.strip())


def _whole(data: bytes) -> dict[str, Any] | BadLine:
    """The one object of a file, or the place where its JSON ends."""
    try:
        return parse_object(data)
    except BadLine as bad:
        if isinstance(bad.__cause__, json.JSONDecodeError):
            error = bad.__cause__
            return BadLine(f"not JSON ({error.msg} at line {error.lineno}, column {error.colno})")
        return bad


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if columns is None or name in columns]
            for batch in file.iter_batches(batch_size=1024, columns=names):
                for record in batch.to_pylist():
                    number += 1
                    content = {name: _without_nulls(value) for name, value in record.items()}
                    yield Row(where=f"{path}: row {number}", place=f"row {number}", content=content)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # a damaged file gives any of them
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())[:300]}") from error


def _without_nulls(value: Any) -> Any:
    """The value without the nulls that Arrow gives an object for the keys that it lacks."""
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    return value
