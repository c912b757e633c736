"""Stages of a check, each a program of its own with a time limit; what one found is kept, and is not measured again.

A stage that fails, hangs or lacks a package is recorded, and the next one runs. State is one JSON file.
"""

import dataclasses
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

GRACE_S = 60.0  # torchrun gives its processes half of it to end by themselves
PIP_NAMES = {"megatron.core": "megatron-core", "ralign.kernels._packing": "ralign (pip install -e .)"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure with its limits; without a limit it is reported alone."""

    name: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def limit(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"

    @property
    def verdict(self) -> str:
        """met, MISSED, or nothing without a limit. What is not a number meets no limit."""
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        if self.limit == "":
            return ""
        return "met" if low <= self.value <= high else "MISSED"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A program and what its results say.

    Attributes:
        limit_s: how long it may run.
        needs: modules without which it is not started.
        command: the command line, given the stage's own folder.
        read: the figures that it left in that folder.
        exit_statuses: those after which there is something to read.
    """

    name: str
    title: str
    limit_s: float
    needs: tuple[str, ...]
    command: Callable[[Path], Sequence[str]]
    read: Callable[[Path], list[Row]]
    exit_statuses: tuple[int, ...] = (0,)


@dataclass(kw_only=True)
class Outcome:
    """What came of a stage: status `done`, `failed`, `not installed` or `no time left`."""

    status: str
    elapsed_s: float = 0.0
    reason: str = ""
    rows: list[Row] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return self.status == "done" and all(row.verdict != "MISSED" for row in self.rows)


def missing(modules: Sequence[str]) -> list[str]:
    """Names, as pip knows them, of modules that cannot be found."""
    names = []
    for module in modules:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # not even its package
            found = None
        if found is None:
            names.append(PIP_NAMES.get(module, module))
    return names


def run_stage(stage: Stage, folder: Path, *, left_s: float = math.inf) -> Outcome:
    """Run it in an empty `folder`, with its output in `folder`/log; as long as its limit and `left_s` allow at most."""
    if absent := missing(stage.needs):
        return Outcome(status="not installed", reason=", ".join(absent))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start, limit_s = time.monotonic(), min(stage.limit_s, left_s)
    with (folder / "log").open("w") as log:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            stage.command(folder),
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # so that it can be ended with all that it started
        )
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            _end(process)
            status = None
    elapsed_s = time.monotonic() - start
    if status is None:
        name = "failed" if limit_s == stage.limit_s else "no time left"
        return Outcome(status=name, elapsed_s=elapsed_s, reason=f"stopped after {limit_s:.0f} s")
    said = last_words((folder / "log").read_text(errors="replace"))
    if status not in stage.exit_statuses:
        return Outcome(status="failed", elapsed_s=elapsed_s, reason=f"exit status {status}: {said}")
    try:
        rows = stage.read(folder)
    except (OSError, ValueError, LookupError) as error:
        reason = f"exit status {status}, no result ({type(error).__name__}): {said}"
        return Outcome(status="failed", elapsed_s=elapsed_s, reason=reason)
    return Outcome(status="done", elapsed_s=elapsed_s, rows=rows)


def _end(process: subprocess.Popen) -> None:
    """Ask, then end the whole group; torchrun passes the question on to its own processes."""
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def last_words(log: str) -> str:
    """The last error that a program named, or its last line; torchrun's report of a failed process is not it."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [
        line
        for line in lines
        if re.match(r"(\[rank\d+\]: ?)?([\w.]*(Error|Exception)\b|error: )", line)
        and "ChildFailedError" not in line
    ]
    return (errors or lines or ["it said nothing"])[-1][:300]


class Record:
    """The outcomes so far, in one JSON file, for one machine.

    Attributes:
        set_aside: where the file went that held another machine's outcomes, or those of other versions; None: nowhere.
    """

    def __init__(self, path: Path, machine: dict[str, str]):
        self.path, self.machine = path, machine
        self.outcomes: dict[str, Outcome] = {}
        self.set_aside: Path | None = None
        if not path.exists():
            return
        saved = json.loads(path.read_text())
        if saved["machine"] == machine:
            self.outcomes = {name: _outcome(stage) for name, stage in saved["stages"].items()}
        else:
            self.set_aside = path.replace(path.with_suffix(".old.json"))

    def is_done(self, stage: str) -> bool:
        return stage in self.outcomes and self.outcomes[stage].status == "done"

    def is_good(self, stage: str) -> bool:
        return stage in self.outcomes and self.outcomes[stage].is_good

    def forget(self, stages: Sequence[Stage]) -> None:
        """They are to be done anew."""
        for stage in stages:
            self.outcomes.pop(stage.name, None)

    def add(self, stage: str, outcome: Outcome) -> None:
        self.outcomes[stage] = outcome
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".part")
        draft.write_text(json.dumps(self.as_json(), indent=2) + "\n")
        draft.replace(self.path)

    def as_json(self) -> dict:
        stages = {name: dataclasses.asdict(outcome) for name, outcome in self.outcomes.items()}
        for name, outcome in self.outcomes.items():
            for saved, row in zip(stages[name]["rows"], outcome.rows, strict=True):
                saved |= {"limit": row.limit, "verdict": row.verdict}
        return {"machine": self.machine, "stages": stages}


def _outcome(saved: dict) -> Outcome:
    names = {item.name for item in dataclasses.fields(Row)}
    rows = [Row(**{name: value for name, value in row.items() if name in names}) for row in saved["rows"]]
    return Outcome(**{**saved, "rows": rows})


def run_all(
    stages: Sequence[Stage],
    record: Record,
    folder: Path,
    *,
    minutes: float,
    run: Callable[..., Outcome] = run_stage,
    say: Callable[[str], None] = print,
) -> None:
    """Every stage that is not done yet, in order; none begins after `minutes`."""
    end_s = time.monotonic() + 60 * minutes
    for number, stage in enumerate(stages, 1):
        title = f"{number}/{len(stages)} {stage.name}"
        if record.is_done(stage.name):
            say(f"{title}: done before")
            continue
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            outcome = Outcome(status="no time left")
        else:
            say(f"{title}: {stage.title}")
            outcome = run(stage, folder / stage.name, left_s=left_s)
        record.add(stage.name, outcome)
        reason = f": {outcome.reason}" if outcome.reason else ""
        say(f"{title}: {outcome.status} after {outcome.elapsed_s:.0f} s{reason}")


def table(record: Record, stages: Sequence[Stage]) -> str:
    """One line a figure, and one for each stage that has none."""
    outcomes = {stage.name: record.outcomes.get(stage.name, Outcome(status="not run")) for stage in stages}
    width = max((len(row.name) for outcome in outcomes.values() for row in outcome.rows), default=0) + 2
    width = max(width, len("figure") + 2)
    lines = [f"{'stage':<16}{'figure':<{width}}{'value':>14}  {'limit':<13}{'verdict':<8}{'s':>4}"]
    for name, outcome in outcomes.items():
        if outcome.status != "done":
            lines.append(f"{name:<16}{outcome.status}{': ' + outcome.reason if outcome.reason else ''}")
        for number, row in enumerate(outcome.rows):
            value = f"{row.value:.4g} {row.unit}".strip()
            elapsed = f"{outcome.elapsed_s:.0f}" if number == 0 else ""
            line = f"{name:<16}{row.name:<{width}}{value:>14}  {row.limit:<13}{row.verdict:<8}{elapsed:>4}"
            lines.append(f"{line}  {row.note}".rstrip())
    return "\n".join(lines)
