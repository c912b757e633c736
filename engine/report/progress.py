"""What a run says while it works: stage headings, step lines with rate and time left, and the time of stages.

On a terminal a stage is a bar that moves; elsewhere (a file, the log of a batch job) it is plain lines, at
most one every few seconds. Only one rank speaks, but every rank may keep the time.
"""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar


class Stage:
    """One stage of a run, made by `Progress.stage`."""

    def __init__(self, num_steps: int | None) -> None:
        self.num_steps = num_steps
        self.num_done = 0
        self.start_s = time.perf_counter()
        self._first_s: float | None = (
            None  # when the first step was done: it is often far slower than the rest
        )
        self._bar: Bar | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the stage began."""
        return time.perf_counter() - self.start_s

    @property
    def step_s(self) -> float:
        """Seconds a step, without the first one as soon as there are others."""
        if self._first_s is None or self.num_done < 2:
            return self.elapsed_s / max(self.num_done, 1)
        return (time.perf_counter() - self._first_s) / (self.num_done - 1)

    def count(self) -> None:
        """One more step is done."""
        self.num_done += 1
        if self._first_s is None:
            self._first_s = time.perf_counter()

    def describe(self, values: Mapping[str, float]) -> str:
        """`1.4 s/step, 1m07s left, reward 0.52` for the steps done so far."""
        parts = [f"{self.step_s:.3g} s/step"]
        if self.num_steps is not None and self.num_done < self.num_steps:
            parts.append(f"{duration(self.step_s * (self.num_steps - self.num_done))} left")
        return ", ".join(parts + [f"{name} {value:.4g}" for name, value in values.items()])


class Progress:
    """Speaks of a run's stages on `stream` (stderr by default) and keeps their times.

    `time_s` maps each stage's key to the seconds spent in it so far, in the order of the stages.
    """

    def __init__(self, *, enabled: bool = True, stream: TextIO | None = None, every_s: float = 5.0) -> None:
        self.enabled = enabled
        self.every_s = every_s
        self.time_s: dict[str, float] = {}
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._stage: Stage | None = None
        self._last_line_s = 0.0

    def say(self, text: str) -> None:
        """One line, indented under the stage's heading."""
        if self.enabled:
            self._console.print(f"  {text}", markup=False)

    @contextmanager
    def stage(self, key: str, title: str = "", *, num_steps: int | None = None) -> Iterator[Stage]:
        """Times what is inside as `time_s[key]`, under the heading `title`; stages do not nest."""
        assert self._stage is None, f"stage {key!r} inside another stage"
        self._stage = stage = Stage(num_steps)
        self._last_line_s = time.perf_counter()
        if self.enabled:
            self._console.print(f"== {title or key}", style="bold cyan", markup=False)
            if self._console.is_terminal and num_steps:
                stage._bar = self._start_bar(num_steps)
        try:
            yield stage
        finally:
            if stage._bar is not None:
                stage._bar.stop()
            self._stage = None
            self.time_s[key] = self.time_s.get(key, 0.0) + stage.elapsed_s
        self.say(f"done in {duration(stage.elapsed_s)}")

    def step(self, **values: float) -> None:
        """One step of the current stage is done; the values are shown beside it, by their names."""
        stage = self._stage
        assert stage is not None, "step outside a stage"
        stage.count()
        if not self.enabled:
            return
        if stage._bar is not None:
            stage._bar.update(stage._bar.task_ids[0], advance=1, text=stage.describe(values))
            return
        now_s = time.perf_counter()
        ends = stage.num_done == 1 or stage.num_done == stage.num_steps
        if ends or now_s - self._last_line_s >= self.every_s:
            self._last_line_s = now_s
            of_all = "" if stage.num_steps is None else f"/{stage.num_steps}"
            self.say(f"step {stage.num_done}{of_all}: {stage.describe(values)}")

    def _start_bar(self, num_steps: int) -> Bar:
        columns = (
            TextColumn(" "),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        )
        bar = Bar(*columns, console=self._console)
        bar.add_task("", total=num_steps, text="")
        bar.start()
        return bar


def duration(seconds: float) -> str:
    """`8.2s`, `1m07s`, `2h05m`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest_s:02d}s" if minutes else f"{rest_s}s"
