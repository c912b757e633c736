"""Heartbeat of a rank, and an end with stack traces in place of a hang.

A rank reports every phase that it enters, and progress within the phase: each micro-batch, each step of the engine. A
thread writes that to a file (`heartbeat/rank00003.json`) and compares the time since the last progress with the phase's
limit. A phase may last for hours as long as it makes progress. A rank over the limit raises the alarm, which is a file
in the same folder. Every rank that finds the alarm writes the Python stacks of all its threads to
`heartbeat/rank00003.stack` and ends: a hang costs minutes, and shows where each rank was. If a library holds the
interpreter, so that no Python thread runs, a timer of the C runtime writes the stacks and ends the process.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ralign.engine.runtime import output

STALLED = 70  # exit status of a rank that ends for a stall (EX_SOFTWARE)
_ALARM = "stalled"  # and the job's id


class Watchdog:
    """One rank's heartbeat. The run calls `phase` and `moves`; the watchdog's thread does the rest."""

    def __init__(
        self,
        folder: str | Path,
        rank: int,
        *,
        stall_s: float,
        phase_stall_s: dict[str, float] | None = None,
        job: str = "",
        beat_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Start the heartbeat.

        Args:
            folder: heartbeats of all ranks. An alarm reaches the ranks of this job that share this folder.
            stall_s: longest time without progress.
            phase_stall_s: the same for phases that may take longer, or less.
            job: an id, the same on all ranks, that no earlier job in this folder had.
            beat_s: time between two checks.
            clock: seconds, from any start; the time of day could jump.
        """
        self.folder, self.rank = Path(folder), rank
        self.stall_s, self.phase_stall_s, self.beat_s = stall_s, phase_stall_s or {}, beat_s
        self._clock = clock
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stack_path = self.folder / f"rank{rank:05d}.stack"
        self.stack_path.unlink(missing_ok=True)
        self._alarm = self.folder / f"{_ALARM}{job and '-'}{job}"
        if rank == 0:
            for alarm in self.folder.glob(f"{_ALARM}*"):
                alarm.unlink(missing_ok=True)
        self._stack = self.stack_path.open("w")
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self.phase("start")
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def phase(self, name: str) -> None:
        """Enter a phase, or enter it again. Both are progress."""
        with self._lock:
            self._phase, self._phase_start_s = name, self._clock()
            self._limit_s = self.phase_stall_s.get(name, self.stall_s)
        self._note_progress()

    def moves(self) -> None:
        """Progress within the phase; cheap enough for every micro-batch."""
        if self._clock() - self._progress_s > self.beat_s:
            self._note_progress()

    def _note_progress(self) -> None:
        with self._lock:
            self._progress_s = self._clock()
        # Later than the thread's check, which also reaches the other ranks.
        faulthandler.dump_traceback_later(self._limit_s + 10 * self.beat_s + 5, exit=True, file=self._stack)

    def close(self) -> None:
        """Stop the heartbeat."""
        self._closed.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._stack.close()
        self.stack_path.unlink(missing_ok=True)

    def check(self) -> str | None:
        """Write the heartbeat file; returns the alarm, if this or another rank has raised one."""
        with self._lock:
            name, phase_start_s = self._phase, self._phase_start_s
            progress_s, limit_s = self._progress_s, self._limit_s
        self._write_heartbeat(name, phase_start_s, progress_s)
        if alarm := self._alarm_of_any_rank():
            return alarm
        if self._clock() - progress_s <= limit_s:
            return None
        alarm = f"rank {self.rank} has not moved in phase {name!r} for more than {limit_s:g} s"
        self._replace(self._alarm, alarm)
        self._show_main_stack()
        return alarm

    def _run(self) -> None:
        while not self._closed.wait(self.beat_s):
            if alarm := self.check():
                self._end(alarm)

    def _alarm_of_any_rank(self) -> str | None:
        try:
            return self._alarm.read_text()
        except FileNotFoundError:
            return None

    def _write_heartbeat(self, phase: str, phase_start_s: float, progress_s: float) -> None:
        now, moment_s = time.time(), self._clock()
        heartbeat = {
            "rank": self.rank,
            "phase": phase,
            "since": round(now - (moment_s - phase_start_s), 1),
            "moved": round(now - (moment_s - progress_s), 1),
            "now": round(now, 1),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self._replace(self.folder / f"rank{self.rank:05d}.json", json.dumps(heartbeat) + "\n")

    def _replace(self, path: Path, text: str) -> None:
        draft = path.with_name(f"{path.name}.{self.rank}")
        try:
            draft.write_text(text)
            os.replace(draft, path)
        except OSError as error:  # a full disk must not end a run that could go on
            print(f"watchdog: {path}: {error.strerror}", file=output.stderr(), flush=True)

    def _show_main_stack(self) -> None:
        """On the terminal: where this rank is. The stack files have all threads of all ranks."""
        main = threading.main_thread().ident
        assert main is not None, "the main thread has not started"
        stack = "".join(traceback.format_stack(sys._current_frames()[main]))
        print(f"rank {self.rank}, main thread:\n{stack}", end="", file=output.stderr(), flush=True)

    def _end(self, alarm: str) -> None:
        age_s = self._clock() - self._phase_start_s
        self._stack.write(f"{alarm}; rank {self.rank} is in phase {self._phase!r} since {age_s:.0f} s\n")
        self._stack.flush()
        faulthandler.dump_traceback(self._stack, all_threads=True)
        self._stack.flush()
        print(f"stalled: {alarm}; stacks are in {self.folder}", file=output.stderr(), flush=True)
        # torchrun ends the other ranks when the first one has ended: leave them time to write their stacks.
        time.sleep(3 * self.beat_s)
        os._exit(STALLED)
