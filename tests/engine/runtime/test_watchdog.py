"""A stall ends the job with every rank's stack; progress does not, however long the job."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ralign.engine.runtime.watchdog import Watchdog

PROGRAM = """
import ctypes, sys, time
from ralign.engine.runtime.watchdog import Watchdog

def stuck_in_a_collective():
    time.sleep(600)

def holds_the_interpreter():
    ctypes.PyDLL(None).sleep(600)

folder, rank, phase, kind, stall_s = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], float(sys.argv[5])
watchdog = Watchdog(folder, rank, stall_s=stall_s, phase_stall_s={"generate": 600.0}, beat_s=0.1)
watchdog.phase(phase)
stuck_in_a_collective() if kind == "stuck" else holds_the_interpreter()
"""
BEAT_S, STALL_S = 3600.0, 36000.0  # the thread of the watchdog never checks: the test does


def start(folder: Path, rank: int, phase: str, kind: str, stall_s: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(rank), phase, kind, str(stall_s)],
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_phase(folder: Path, rank: int, phase: str) -> None:
    heartbeat, end_s = folder / f"rank{rank:05d}.json", time.monotonic() + 120
    while not heartbeat.exists() or json.loads(heartbeat.read_text())["phase"] != phase:
        assert time.monotonic() < end_s, "no heartbeat"
        time.sleep(0.05)


def test_one_stalled_rank_ends_all_with_their_stacks(tmp_path):
    waiting = start(tmp_path, 1, "generate", "stuck", stall_s=600)
    wait_for_phase(tmp_path, 1, "generate")
    stalled = start(tmp_path, 0, "optimizer", "stuck", stall_s=0.5)
    for rank, process, phase in ((0, stalled, "optimizer"), (1, waiting, "generate")):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 70
        assert "stalled: rank 0 has not moved in phase 'optimizer' for more than 0.5 s" in errors
        assert ("rank 0, main thread:" in errors) == ("stuck_in_a_collective" in errors) == (rank == 0)
        stack = (tmp_path / f"rank{rank:05d}.stack").read_text()
        assert "stuck_in_a_collective" in stack and f"rank {rank} is in phase {phase!r}" in stack
        heartbeat = json.loads((tmp_path / f"rank{rank:05d}.json").read_text())
        assert heartbeat["phase"] == phase and heartbeat["pid"] == process.pid


def test_a_library_that_holds_the_interpreter_is_ended_too(tmp_path):
    process = start(tmp_path, 0, "optimizer", "held", stall_s=0.5)
    process.communicate(timeout=120)
    assert process.returncode not in (0, None)
    assert "holds_the_interpreter" in (tmp_path / "rank00000.stack").read_text()


class Clock:
    """Stands still until `advance`."""

    def __init__(self) -> None:
        self.now_s = time.time()

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watch(tmp_path, clock):
    """(rank) -> a watchdog of that rank, which checks when the test asks for it."""
    opened = []

    def watch(rank: int) -> Watchdog:
        phases = {"generate": 10 * STALL_S}
        opened.append(
            Watchdog(
                tmp_path,
                rank,
                stall_s=STALL_S,
                phase_stall_s=phases,
                job="now",
                beat_s=BEAT_S,
                clock=clock,
            )
        )
        return opened[-1]

    yield watch
    for watchdog in opened:
        watchdog.close()


@pytest.mark.parametrize("by_phase", [True, False])
def test_progress_keeps_a_job_alive(watch, clock, by_phase):
    watchdog = watch(3)
    watchdog.phase("optimizer")
    for _ in range(20):
        clock.advance(0.9 * STALL_S)
        watchdog.phase("optimizer") if by_phase else watchdog.moves()
        assert watchdog.check() is None
    clock.advance(1.1 * STALL_S)
    assert "rank 3 has not moved in phase 'optimizer'" in watchdog.check()


def test_a_phase_may_have_a_limit_of_its_own(watch, clock):
    watchdog = watch(0)
    watchdog.phase("generate")
    clock.advance(9 * STALL_S)
    assert watchdog.check() is None
    watchdog.phase("optimizer")
    clock.advance(1.1 * STALL_S)
    assert "optimizer" in watchdog.check()


def test_an_alarm_reaches_the_other_ranks(watch, clock):
    stalled, other = watch(0), watch(1)
    clock.advance(1.1 * STALL_S)
    other.phase("optimizer")
    assert other.check() is None
    alarm = stalled.check()
    assert alarm is not None and other.check() == alarm


def test_an_alarm_of_an_earlier_job_is_ignored(watch, tmp_path):
    (tmp_path / "stalled-before").write_text("an alarm of the job before")
    (tmp_path / "stalled").write_text("another one")
    watchdog = watch(3)
    assert watchdog.check() is None
    (tmp_path / "stalled-now").write_text("an alarm of this job")
    assert watchdog.check() == "an alarm of this job"


def test_the_time_of_day_may_jump(watch, clock, tmp_path, monkeypatch):
    watchdog = watch(3)
    watchdog.phase("optimizer")
    clock.advance(60)
    for jump_s in (1e9, -1e9):
        monkeypatch.setattr(time, "time", lambda jump_s=jump_s: 2e9 + jump_s)
        assert watchdog.check() is None
        heartbeat = json.loads((tmp_path / "rank00003.json").read_text())
        assert heartbeat["now"] == 2e9 + jump_s and heartbeat["since"] == heartbeat["now"] - 60


def test_an_orderly_end_leaves_no_stack_file(tmp_path):
    Watchdog(tmp_path, 3, stall_s=STALL_S, beat_s=BEAT_S).close()
    assert not (tmp_path / "rank00003.stack").exists()
