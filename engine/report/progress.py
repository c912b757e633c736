"""Progress of a run: stage headings, steps with rate and remaining time, and the time of each stage.

On a terminal a stage is a progress bar. Elsewhere (a file, the log of a batch job) it is plain lines, at most one
every few seconds. One rank prints; every rank may measure times.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from ralign.engine.runtime import output
from ralign.engine.runtime.text import printable
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar


class Stage:
    """One stage of a run, made by `Progress.stage`."""

    def __init__(self, num_steps: int | None, clock: Callable[[], float]) -> None:
        self.num_steps = num_steps
        self.num_done = 0
        self.bar: Bar | None = None
        self._clock = clock
        self._start_s = clock()
        self._first_s: float | None = None  # end of the first step, which is often far slower than the others

    @property
    def elapsed_s(self) -> float:
        """Seconds since the stage began."""
        return self._clock() - self._start_s

    @property
    def step_s(self) -> float:
        """Seconds per step, without the first one as soon as there are others."""
        if self._first_s is None or self.num_done < 2:
            return self.elapsed_s / max(self.num_done, 1)
        return (self._clock() - self._first_s) / (self.num_done - 1)

    def count(self) -> None:
        """One more step is done."""
        self.num_done += 1
        if self._first_s is None:
            self._first_s = self._clock()

    def describe(self, values: Mapping[str, float]) -> str:
        """`1.4 s/step, 1m07s left, reward 0.52` for the steps done so far."""
        parts = [f"{self.step_s:.3g} s/step"]
        if self.num_steps is not None and self.num_done < self.num_steps:
            parts.append(f"{duration(self.step_s * (self.num_steps - self.num_done))} left")
        return ", ".join(parts + [f"{printable(name)} {value:.4g}" for name, value in values.items()])


class Progress:
    """Prints a run's stages and measures their times.

    Attributes:
        time_s: seconds spent so far in each stage, by its key, in the order of the stages.
    """

    def __init__(
        self,
        *,
        enabled: bool = True,
        stream: TextIO | None = None,
        every_s: float = 5.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        Args:
            enabled: whether to print; times are measured in any case.
            stream: by default ralign's stderr (see runtime/output.py).
            every_s: least time between two plain lines of steps; the first and the last step are always printed.
            clock: the time in seconds.
        """
        self.enabled = enabled
        self.every_s = every_s
        self.time_s: dict[str, float] = {}
        self._clock = clock
        self._console = Console(file=stream or output.stderr(), highlight=False, soft_wrap=True)
        self._stage: Stage | None = None
        self._last_line_s = 0.0

    def say(self, text: str) -> None:
        """Print one line, indented under the stage's heading."""
        if self.enabled:
            self._console.print(f"  {printable(text)}", markup=False)

    @contextmanager
    def stage(self, key: str, title: str = "", *, num_steps: int | None = None) -> Iterator[Stage]:
        """Adds the time of this context to `time_s[key]`, under the heading `title`; stages do not nest."""
        assert self._stage is None, f"stage {key!r} inside another stage"
        self._stage = stage = Stage(num_steps, self._clock)
        self._last_line_s = self._clock()
        if self.enabled:
            self._console.print(f"== {printable(title or key)}", style="bold cyan", markup=False)
            if self._console.is_terminal and num_steps:
                stage.bar = self._start_bar(num_steps)
        try:
            yield stage
        finally:
            if stage.bar is not None:
                stage.bar.stop()
            self._stage = None
            self.time_s[key] = self.time_s.get(key, 0.0) + stage.elapsed_s
        self.say(f"done in {duration(stage.elapsed_s)}")

    def step(self, **values: float) -> None:
        """One step of the current stage is done; its line shows the values by their names."""
        stage = self._stage
        assert stage is not None, "step outside a stage"
        stage.count()
        if not self.enabled:
            return
        if stage.bar is not None:
            stage.bar.update(stage.bar.task_ids[0], advance=1, text=stage.describe(values))
            return
        now_s = self._clock()
        is_first_or_last = stage.num_done in (1, stage.num_steps)
        if is_first_or_last or now_s - self._last_line_s >= self.every_s:
            self._last_line_s = now_s
            total = "" if stage.num_steps is None else f"/{stage.num_steps}"
            self.say(f"step {stage.num_done}{total}: {stage.describe(values)}")

    def _start_bar(self, num_steps: int) -> Bar:
        columns = (
            TextColumn(" "),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
        )
        # By default rich prints what others write to stdout and stderr above the bar.
        redirects = not output.is_captured()
        bar = Bar(*columns, console=self._console, redirect_stdout=redirects, redirect_stderr=redirects)
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
