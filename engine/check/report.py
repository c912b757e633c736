"""Findings of checks, and their output."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["OK", "WARN", "FAIL"]
LEVELS: tuple[Level, ...] = ("OK", "WARN", "FAIL")  # from the mildest


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The result of one check: a line of the report.

    Attributes:
        check: name of the check.
        level: FAIL if a run will not start or not finish, WARN if it may fail or be slow.
        found: the finding, with values.
        next_step: advice to the user; empty only for OK.
        details: further findings for `--json`, which do not fit into the line.
    """

    check: str
    level: Level
    found: str
    next_step: str = ""
    details: tuple[str, ...] = ()

    def __post_init__(self):
        assert (self.level == "OK") == (not self.next_step), self


def ok(check: str, found: str, details: Sequence[str] = ()) -> Finding:
    return Finding(check=check, level="OK", found=found, details=tuple(details))


def warn(check: str, found: str, next_step: str, details: Sequence[str] = ()) -> Finding:
    return Finding(check=check, level="WARN", found=found, next_step=next_step, details=tuple(details))


def fail(check: str, found: str, next_step: str, details: Sequence[str] = ()) -> Finding:
    return Finding(check=check, level="FAIL", found=found, next_step=next_step, details=tuple(details))


def worst(findings: Sequence[Finding]) -> Level:
    return LEVELS[max((LEVELS.index(finding.level) for finding in findings), default=0)]


def as_text(findings: Sequence[Finding]) -> str:
    """One line per finding, and a line of counts."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = [
        f"{finding.level:4}  {finding.check:{width}}  {one_line(finding.found)}"
        + (f"; next: {one_line(finding.next_step)}" if finding.next_step else "")
        for finding in findings
    ]
    counts = ", ".join(f"{sum(f.level == level for f in findings)} {level}" for level in reversed(LEVELS))
    return "\n".join([*lines, counts])


def as_json(findings: Sequence[Finding], recipe: str | None) -> str:
    """The findings as JSON; `level` is the worst of all."""
    report = {"recipe": recipe, "level": worst(findings), "findings": [asdict(f) for f in findings]}
    return json.dumps(report, indent=2)


def one_line(text: str) -> str:
    """The text without line breaks and control characters, which a message of a server or a library may contain."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def size_text(num_bytes: float) -> str:
    """A size in decimal units, as for disks: 393 GB, 1.5 TB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            value = num_bytes / scale
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"
