"""What a check found, and how findings are printed."""

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
        check: what was looked at.
        level: FAIL for what stops a run or spoils it, WARN for what may.
        found: what is there, with the values.
        next_step: what the user does about it; empty for OK alone.
        details: more of the same for `--json`, where a line has no room for it.
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
    return max((finding.level for finding in findings), key=LEVELS.index, default="OK")


def as_text(findings: Sequence[Finding]) -> str:
    """A line a finding, and a line that counts them."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = [
        f"{finding.level:4}  {finding.check:{width}}  {one_line(finding.found)}"
        + (f"; next: {one_line(finding.next_step)}" if finding.next_step else "")
        for finding in findings
    ]
    counts = ", ".join(f"{sum(f.level == level for f in findings)} {level}" for level in reversed(LEVELS))
    return "\n".join([*lines, counts])


def as_json(findings: Sequence[Finding], recipe: str | None) -> str:
    """The same for programs; `level` is the worst of all."""
    report = {"recipe": recipe, "level": worst(findings), "findings": [asdict(f) for f in findings]}
    return json.dumps(report, indent=2)


def one_line(text: str) -> str:
    """Without line breaks and control characters, which a server's or a library's message may hold."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def size_text(num_bytes: float) -> str:
    """A size as disks and file systems give it: 393 GB, 1.5 TB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            value = num_bytes / scale
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"
