"""Preference pairs with golden judgments: the released R-Align schema, read strictly.

One JSON object a line: ``id``, ``source`` (string or object), ``conversations`` (turns of ``role`` and
``content``; the last one is the prompt, earlier ones its context), ``response_A``, ``response_B``,
``gt_label`` (``"A"`` or ``"B"``), ``gt_judgment`` (the golden judgment) and an optional ``meta`` object.
A file without golden judgments is read with ``need_golden=False``.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import check_input, mistakes, replacing

logger = logging.getLogger(__name__)

Side = Literal["A", "B"]
SIDES: tuple[Side, Side] = ("A", "B")
NUM_REASONS_SHOWN = 5

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
    return pairs


def scan_pairs(path: str | Path, *, need_golden: bool = True) -> tuple[list[Pair], list[str]]:
    """The pairs of a file and, for each bad line, ``FILE:LINE: reason``; `UserError` if it cannot be read."""
    with mistakes("read", path):
        lines = check_input(path).read_bytes().split(b"\n")
    pairs: list[Pair] = []
    line_of_id: dict[str, int] = {}
    reasons: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            pair = parse_pair(parse_object(line), need_golden=need_golden)
            if pair.id in line_of_id:
                raise BadLine(f"id {pair.id!r} was already used on line {line_of_id[pair.id]}")
        except BadLine as bad:
            reasons.append(f"{path}:{number}: {bad}")
            continue
        line_of_id[pair.id] = number
        pairs.append(pair)
    return pairs, reasons


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> None:
    """Write `pairs` as JSON lines in the schema that `read_pairs` reads, whole or not at all.

    Raises:
        UserError: the file cannot be written; an old one is as it was.
    """
    with replacing(path) as file:
        for pair in pairs:
            file.write(json.dumps(asdict(pair), ensure_ascii=False) + "\n")


class BadLine(Exception):
    """The reason why a line is not a pair (or not an object)."""


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
            raise BadLine(f"{name} must be {expected}, got {type(record[name]).__name__}")
    if not isinstance(record.get("meta"), dict | None):
        raise BadLine(f"meta must be dict, got {type(record['meta']).__name__}")
    for turn in record["conversations"]:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(k), str) for k in ("role", "content")):
            raise BadLine("each turn of conversations must be an object with strings role and content")


def _check_values(record: dict[str, Any], need_golden: bool) -> None:
    if record["gt_label"] not in SIDES:
        raise BadLine(f"gt_label must be A or B, got {record['gt_label']!r}")
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
    except (ValueError, RecursionError) as error:  # 1e999 is read as infinity
        raise BadLine(f"cannot be written back ({error})") from error


def _too_many(path: str | Path, reasons: list[str], max_bad_lines: int) -> str:
    shown = "\n  ".join(reasons[:NUM_REASONS_SHOWN])
    rest = len(reasons) - NUM_REASONS_SHOWN
    more = f"\n  and {rest} more" if rest > 0 else ""
    return f"{path}: {len(reasons)} bad lines, at most {max_bad_lines} allowed:\n  {shown}{more}"
