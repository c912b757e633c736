"""Runs a server that must not outlive its starter, however that ends.

    python -m ralign.engine.judging.process_guard STARTER_PID COMMAND...

It stands in a session of its own, where signals to the job's process group do not reach it, watches its
starter, and adopts whatever the server's processes leave behind. When the starter is gone, on SIGTERM, or when
the server ends, all of them are ended: asked first, killed after GRACE_S.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time

import psutil

GRACE_S = 5.0
_LOOK_S = 0.2
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(starter: int, command: list[str]) -> int:
    """Exit status of the command; -SIGTERM if the warden ended it."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(-signal.SIGTERM))
    # Should the warden itself be killed, at least the server's first process goes with it.
    server = subprocess.Popen(command, preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
    try:
        while server.poll() is None and os.getppid() == starter:
            time.sleep(_LOOK_S)
        return -signal.SIGTERM if server.returncode is None else server.returncode
    finally:
        end_all(psutil.Process().children(recursive=True))


def end_all(processes: list[psutil.Process]) -> None:
    """Asks, then kills; returns when none is left."""
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
