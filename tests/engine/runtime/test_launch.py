"""What torchrun, and the launcher in its place, leave on the terminal; under the installed torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

JOB = """
import os, signal
from ralign.engine.runtime import entry_point
from ralign.engine.runtime.errors import UserError

def main(argv):
    if argv[0] == "mistake":
        raise UserError("no such file")
    if argv[0] == "bug":
        raise ZeroDivisionError("a bug")
    if argv[0] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if argv[0] == "status":
        os._exit(70)

if __name__ == "__main__":
    entry_point._GRACE_S = 60.0  # however late rank 0 starts
    entry_point.run_job(main)
"""
LAUNCH = """
import sys
from ralign.engine.runtime.launch import main
for kind in sys.argv[1:]:
    status = main(["--standalone", "--nproc-per-node=1", "job.py", kind])
    print(f"{kind}: {status}", file=sys.stderr, flush=True)
"""


def run(folder: Path, *command: str) -> tuple[int, str]:
    (folder / "job.py").write_text(JOB)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.jobs
def test_the_launcher_adds_nothing_to_what_the_job_reports(tmp_path):
    _, errors = run(tmp_path, "-c", LAUNCH, "success", "mistake", "kill", "status", "bug")
    *lines, last = errors.splitlines()
    assert lines[:7] == [
        "success: 0",
        "error: no such file",
        "mistake: 2",
        "error: rank 0 was ended by SIGKILL",
        "kill: 137",
        "error: rank 0 ended with exit status 70",
        "status: 70",
    ]
    traceback = lines[7:]
    assert traceback[0].startswith("Traceback") and traceback[-1] == "ZeroDivisionError: a bug"
    assert sum("Traceback" in line for line in traceback) == 1 and last == "bug: 1"


@pytest.mark.jobs
def test_the_launchers_exit_status_is_the_jobs(tmp_path):
    command = (
        "-m",
        "ralign.engine.runtime.launch",
        "--standalone",
        "--nproc-per-node=2",
        "job.py",
        "mistake",
    )
    assert run(tmp_path, *command) == (2, "error: no such file\n")


@pytest.mark.jobs
def test_torchruns_summary_ends_with_the_mistake(tmp_path):
    status, errors = run(
        tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "job.py", "mistake"
    )
    lines = errors.splitlines()
    assert status == 1 and lines[0] == "error: no such file" and lines.count(lines[0]) == 1
    assert lines[-2:] == ["  traceback : error: no such file", "=" * 60]
