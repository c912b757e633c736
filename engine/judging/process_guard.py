"""Runs a command, and ends its whole process tree when the parent ends, however that ends.

    python -m ralign.engine.judging.process_guard PARENT_PID COMMAND...

The guard runs in a session of its own, which signals to the job's process group do not reach, and adopts orphans of
the command's processes. When the parent is gone, on SIGTERM, or when the command ends, it sends SIGTERM to all
remaining processes, and SIGKILL after GRACE_S.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time

import psutil

GRACE_S = 5.0
_POLL_S = 0.2
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(parent: int, command: list[str]) -> int:
    """Exit status of the command; -SIGTERM if the guard ended it."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(-signal.SIGTERM))
    # If the guard itself is killed, the kernel kills at least the command's first process.
    child = subprocess.Popen(command, preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
    try:
        while child.poll() is None and os.getppid() == parent:
            time.sleep(_POLL_S)
        return -signal.SIGTERM if child.returncode is None else child.returncode
    finally:
        end_all(psutil.Process().children(recursive=True))


def end_all(processes: list[psutil.Process]) -> None:
    """SIGTERM, then SIGKILL; returns when no process is left."""
    for process in processes:
        _signal(process, signal.SIGTERM)
    _, left = psutil.wait_procs(processes, timeout=GRACE_S)
    for process in {*left, *psutil.Process().children(recursive=True)}:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(left, timeout=GRACE_S)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]) % 256)
