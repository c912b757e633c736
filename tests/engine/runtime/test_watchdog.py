"""A stall ends the job with every rank's stack; progress does not, however long the job."""

import json
import os
import subprocess
import sys
import time

import pytest

PROGRAM = """
import sys, time
from ralign.engine.runtime.watchdog import Watchdog

def stuck_in_a_collective():
    time.sleep(60)

def holds_the_interpreter():
    import ctypes
    ctypes.PyDLL(None).sleep(60)

folder, rank, kind, stall_s = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
dog = Watchdog(folder, rank, stall_s=stall_s, phase_stall_s={"generate": 60.0}, beat_s=0.1)
dog.phase("generate" if rank == 1 else "optimizer")
if kind == "stuck":
    stuck_in_a_collective()
elif kind == "held":
    holds_the_interpreter()
else:
    for _ in range(20):
        time.sleep(stall_s / 5)
        dog.moves() if kind == "moves" else dog.phase("optimizer")
    dog.close()
"""


def start(folder, rank, kind, stall_s=1.0):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(rank), kind, str(stall_s)],
        stderr=subprocess.PIPE,
        text=True,
    )


def test_one_stalled_rank_ends_all_with_their_stacks(tmp_path):
    ranks = [start(tmp_path, rank, "stuck") for rank in range(2)]
    for rank, process in enumerate(ranks):
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 70
        assert "stalled: rank 0 has not moved in phase 'optimizer' for more than 1 s" in errors
        stack = (tmp_path / f"rank{rank:05d}.stack").read_text()
        assert "stuck_in_a_collective" in stack
        assert f"rank {rank} is in phase {['optimizer', 'generate'][rank]!r}" in stack
        beat = json.loads((tmp_path / f"rank{rank:05d}.json").read_text())
        assert beat["phase"] == ["optimizer", "generate"][rank] and beat["pid"] == process.pid


def test_a_library_that_holds_the_interpreter_is_ended_too(tmp_path):
    process = start(tmp_path, 0, "held", stall_s=0.5)
    process.communicate(timeout=40)
    assert process.returncode not in (0, None)
    assert "holds_the_interpreter" in (tmp_path / "rank00000.stack").read_text()


@pytest.mark.parametrize(("kind", "old_alarm"), [("phases", False), ("phases", True), ("moves", False)])
def test_progress_and_an_old_alarm_do_not_end_a_job(tmp_path, kind, old_alarm):
    if old_alarm:
        (tmp_path / "stalled").write_text("an alarm of the job before")
        old_s = time.time() - 60
        os.utime(tmp_path / "stalled", (old_s, old_s))
    process = start(tmp_path, 3, kind, stall_s=0.5)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert not (tmp_path / "rank00003.stack").exists()
