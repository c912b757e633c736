"""Heartbeat of a rank: what it is doing, since when, and an end instead of a hang.

Every rank says which phase it enters, and when it moves on in it: at each micro-batch, at each step of the engine. A
thread writes that down (`heartbeat/rank00003.json`) and watches the time: a rank that does not move for longer than
the phase allows raises the alarm, a file in the same folder. A phase may last for hours if it moves.
Every rank that sees the alarm writes the Python stack of all its threads to `heartbeat/rank00003.stack` and ends, so
that a hang leaves every rank's whereabouts behind and costs minutes, not the rest of the night. Should a
library hold the interpreter so that no Python thread runs, a timer of the C runtime writes the stack and ends.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

STALLED = 70  # exit status of a job that was ended for a stall (EX_SOFTWARE)
_ALARM = "stalled"


class Watchdog:
    """One rank's heartbeat. `phase` is called from the run; everything else is the thread's."""

    def __init__(
        self,
        folder: str | Path,
        rank: int,
        *,
        stall_s: float,
        phase_stall_s: dict[str, float] | None = None,
        beat_s: float = 10.0,
    ):
        """Start beating.

        Args:
            folder: of all ranks' heartbeats; every rank must see it for one alarm to reach all.
            stall_s: longest time without progress. phase_stall_s: in phases that may take longer (or less).
            beat_s: time between looks at the clock and at the alarm.
        """
        self.folder, self.rank = Path(folder), rank
        self.stall_s, self.phase_stall_s, self.beat_s = stall_s, phase_stall_s or {}, beat_s
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stack_path = self.folder / f"rank{rank:05d}.stack"
        self.stack_path.unlink(missing_ok=True)
        if rank == 0:
            (self.folder / _ALARM).unlink(missing_ok=True)
        self._born_s = time.time()
        self._stack = self.stack_path.open("w")
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self.phase("start")
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def phase(self, name: str) -> None:
        """This rank enters a phase (again): progress."""
        with self._lock:
            self._phase, self._since_s = name, time.time()
            self._limit_s = self.phase_stall_s.get(name, self.stall_s)
        self._restart_clock()

    def moves(self) -> None:
        """Progress within a phase; costs nothing if called often."""
        if time.time() - self._moved_s > self.beat_s:
            self._restart_clock()

    def _restart_clock(self) -> None:
        with self._lock:
            self._moved_s = time.time()
        # The last resort, later than the thread, which reaches the other ranks too.
        faulthandler.dump_traceback_later(self._limit_s + 10 * self.beat_s + 5, exit=True, file=self._stack)

    def close(self) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._stack.close()
        self.stack_path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._ended.wait(self.beat_s):
            with self._lock:
                name, since_s = self._phase, self._since_s
                moved_s, limit_s = self._moved_s, self._limit_s
            self._write(name, since_s, moved_s)
            alarm = self._alarm()
            if alarm is None and time.time() - moved_s > limit_s:
                alarm = f"rank {self.rank} has not moved in phase {name!r} for more than {limit_s:g} s"
                self._replace(self.folder / _ALARM, alarm)
            if alarm is not None:
                self._end(alarm, name, since_s)

    def _alarm(self) -> str | None:
        """What another rank of this job raised; an alarm from before this rank's start is an old job's."""
        path = self.folder / _ALARM
        try:
            return path.read_text() if path.stat().st_mtime >= self._born_s - 1 else None
        except FileNotFoundError:
            return None

    def _write(self, name: str, since_s: float, moved_s: float) -> None:
        beat = {
            "rank": self.rank,
            "phase": name,
            "since": round(since_s, 1),
            "moved": round(moved_s, 1),
            "now": round(time.time(), 1),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self._replace(self.folder / f"rank{self.rank:05d}.json", json.dumps(beat) + "\n")

    def _replace(self, path: Path, text: str) -> None:
        draft = path.with_name(f"{path.name}.{self.rank}")
        try:
            draft.write_text(text)
            os.replace(draft, path)
        except OSError as error:  # a full disk must not end a run that could go on
            print(f"watchdog: {path}: {error.strerror}", file=sys.stderr, flush=True)

    def _end(self, alarm: str, name: str, since_s: float) -> None:
        age_s = time.time() - since_s
        self._stack.write(f"{alarm}; rank {self.rank} is in phase {name!r} since {age_s:.0f} s\n")
        self._stack.flush()
        faulthandler.dump_traceback(self._stack, all_threads=True)
        self._stack.flush()
        print(f"stalled: {alarm}; stacks are in {self.folder}", file=sys.stderr, flush=True)
        # A launcher ends the other ranks with the first: let them write first.
        time.sleep(3 * self.beat_s)
        os._exit(STALLED)
