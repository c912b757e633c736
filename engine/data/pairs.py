"""Preference pairs with golden judgments: the released R-Align schema, read strictly.

One JSON object a line, an array of them, or a row of Parquet: ``id``, ``source`` (string or object), ``conversations``
(turns of ``role`` and ``content``; the last one is the prompt, earlier ones its context), ``response_A``,
``response_B``, ``gt_label`` (``"A"`` or ``"B"``), ``gt_judgment`` (the golden judgment) and an optional ``meta``
object. A file without golden judgments is read with ``need_golden=False``.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ralign.engine.data.rows import CONVERT, BadLine, read_rows
from ralign.engine.data.rows import parse_object as parse_object  # for readers of other files
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import replacing
from ralign.engine.runtime.text import printable

logger = logging.getLogger(__name__)

Side = Literal["A", "B"]
SIDES: tuple[Side, Side] = ("A", "B")
NUM_REASONS_SHOWN = 5

NO_PROMPT = "that turn is judged as the prompt"
_NO_PROMPT = ("assistant", "system")
_FIELDS = ("id", "source", "conversations", "response_A", "response_B", "gt_label", "gt_judgment")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One prompt, two responses, the label of the better one, and the golden judgment."""

    id: str
    source: str | dict[str, Any]
    conversations: list[dict[str, str]]
    response_A: str
    response_B: str
    gt_label: Side
    gt_judgment: str
    meta: dict[str, Any] = field(default_factory=dict)


def prompt_text(pair: Pair) -> str:
    """The prompt: the last turn, which both responses answer."""
    return pair.conversations[-1]["content"]


def context_turns(pair: Pair) -> list[dict[str, str]]:
    """The turns before the prompt, oldest first."""
    return pair.conversations[:-1]


def other_side(side: Side) -> Side:
    return "B" if side == "A" else "A"


def read_pairs(path: str | Path, *, max_bad_lines: int = 0, need_golden: bool = True) -> list[Pair]:
    """The pairs of a file, in order. Blank lines and lines that break the schema are skipped.

    Each bad line is logged as ``FILE:LINE: reason``. A line that repeats an id is bad, too. Without `need_golden` a
    missing, null or empty ``gt_judgment`` is read as "".

    Raises:
        UserError: the file cannot be read, holds no pair, or has more than `max_bad_lines` bad lines.
    """
    pairs, reasons = scan_pairs(path, need_golden=need_golden)
    for reason in reasons:
        logger.warning("bad line %s", reason)
    if len(reasons) > max_bad_lines:
        raise UserError(_too_many(path, reasons, max_bad_lines))
    if not pairs:
        raise UserError(f"{path} holds no pair")
    for role, ids in ends_otherwise(pairs).items():
        logger.warning(
            "%s: %s", path, printable(f"{len(ids)} conversations end in {role}, first {ids[0]}: {NO_PROMPT}")
        )
    return pairs


def scan_pairs(path: str | Path, *, need_golden: bool = True) -> tuple[list[Pair], list[str]]:
    """The pairs of a file and, for each bad line, ``FILE:LINE: reason``; `UserError` if it cannot be read."""
    pairs: list[Pair] = []
    place_of_id: dict[str, str] = {}
    reasons: list[str] = []
    for row in read_rows(path, columns=(*_FIELDS, "meta")):
        try:
            if isinstance(row.content, BadLine):
                raise row.content
            pair = parse_pair(row.content, need_golden=need_golden)
            if pair.id in place_of_id:
                raise BadLine(f"id {pair.id!r} was already used on {place_of_id[pair.id]}")
        except BadLine as bad:
            reasons.append(f"{row.where}: {bad}")
            continue
        place_of_id[pair.id] = row.place
        pairs.append(pair)
    return pairs, reasons


def ends_otherwise(pairs: Iterable[Pair]) -> dict[str, list[str]]:
    """Role -> ids of the pairs whose last turn, which is judged as the prompt, is the assistant's or the system's."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        if (role := pair.conversations[-1]["role"]) in _NO_PROMPT:
            found.setdefault(role, []).append(pair.id)
    return found


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> None:
    """Write `pairs` as JSON lines in the schema that `read_pairs` reads, whole or not at all.

    Raises:
        UserError: the file cannot be written; an old one is as it was.
    """
    with replacing(path) as file:
        for pair in pairs:
            file.write(json.dumps(asdict(pair), ensure_ascii=False) + "\n")


def parse_pair(record: dict[str, Any], *, need_golden: bool = True) -> Pair:
    """The pair of a JSON object; other fields are ignored. `BadLine` if it breaks the schema."""
    if not need_golden and record.get("gt_judgment") is None:
        record = {**record, "gt_judgment": ""}
    missing = [name for name in _FIELDS if name not in record]
    if missing:
        raise BadLine(f"missing field {', '.join(missing)}")
    _check_types(record)
    _check_values(record, need_golden)
    return Pair(**{name: record[name] for name in _FIELDS}, meta=record.get("meta") or {})


def _check_types(record: dict[str, Any]) -> None:
    for name in _FIELDS:
        kinds: tuple[type, ...] = {"source": (str, dict), "conversations": (list,)}.get(name, (str,))
        if not isinstance(record[name], kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            got = type(record[name]).__name__
            raise BadLine(f"{name} must be {expected}, got {got}{_advice(name, record[name])}")
    if not isinstance(record.get("meta"), dict | None):
        raise BadLine(f"meta must be dict, got {type(record['meta']).__name__}")
    for turn in record["conversations"]:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(k), str) for k in ("role", "content")):
            raise BadLine(
                f"each turn of conversations must be an object with strings role and content ({CONVERT} joins text"
                " parts, and leaves out images and tool calls)"
            )


def _advice(name: str, value: Any) -> str:
    """The command that reads a value which people have and this schema has not."""
    if name == "id" and isinstance(value, int):
        return f" ({CONVERT} writes it as text)"
    if name == "gt_label" and isinstance(value, int | float):
        return f" ({CONVERT} --labels 0=A,1=B reads such labels, or --labels 0=B,1=A)"
    if name == "gt_label" and isinstance(value, str):
        return f" ({CONVERT} reads a and b, leaves out ties, and with --labels 0=A,1=B reads other labels)"
    return ""


def _check_values(record: dict[str, Any], need_golden: bool) -> None:
    if record["gt_label"] not in SIDES:
        label = record["gt_label"]
        raise BadLine(f"gt_label must be A or B, got {label!r}{_advice('gt_label', label)}")
    if not record["id"]:
        raise BadLine("id is empty")
    if not record["conversations"]:
        raise BadLine("conversations is empty")
    for name in ("response_A", "response_B", "gt_judgment")[: 3 if need_golden else 2]:
        if not record[name].strip():
            raise BadLine(f"{name} is empty")
    if not record["conversations"][-1]["content"].strip():
        raise BadLine("the last turn of conversations is empty")
    try:
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError as error:  # an escaped lone surrogate: valid JSON, but it cannot be encoded
        raise BadLine("contains a lone surrogate, which is not valid text") from error
    except (TypeError, ValueError, RecursionError) as error:  # a date of Parquet; 1e999 is read as infinity
        raise BadLine(f"cannot be written back ({error})") from error


def _too_many(path: str | Path, reasons: list[str], max_bad_lines: int) -> str:
    shown = "\n  ".join(reasons[:NUM_REASONS_SHOWN])
    rest = len(reasons) - NUM_REASONS_SHOWN
    more = f"\n  and {rest} more" if rest > 0 else ""
    return f"{path}: {len(reasons)} bad lines, at most {max_bad_lines} allowed:\n  {shown}{more}"
