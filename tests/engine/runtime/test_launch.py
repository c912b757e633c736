"""What torchrun, and the launcher in its place, leave on the terminal; under the installed torch."""

import os
import subprocess
import sys

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


@pytest.fixture
def launch(tmp_path):
    def launch(module: str, kind: str, num_processes: int = 1) -> tuple[int, list[str]]:
        (tmp_path / "job.py").write_text(JOB)
        options = ["--standalone", f"--nproc-per-node={num_processes}"]
        done = subprocess.run(
            [sys.executable, "-m", module, *options, "job.py", kind],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.stdout == ""
        return done.returncode, done.stderr.splitlines()

    return launch


@pytest.mark.parametrize(
    ("kind", "status", "lines"),
    [
        ("success", 0, []),
        ("mistake", 2, ["error: no such file"]),
        ("kill", 137, ["error: rank 0 was ended by SIGKILL"]),
        ("status", 70, ["error: rank 0 ended with exit status 70"]),
    ],
)
def test_the_launcher_adds_nothing_to_what_the_job_reports(launch, kind, status, lines):
    assert launch("ralign.engine.runtime.launch", kind) == (status, lines)


def test_the_launcher_shows_a_traceback_once(launch):
    status, lines = launch("ralign.engine.runtime.launch", "bug")
    assert status == 1 and lines[0].startswith("Traceback") and lines[-1] == "ZeroDivisionError: a bug"
    assert sum("Traceback" in line for line in lines) == 1


def test_torchruns_summary_ends_with_the_mistake(launch):
    status, lines = launch("torch.distributed.run", "mistake", num_processes=2)
    assert status == 1 and lines[0] == "error: no such file"
    assert lines[-2:] == ["  traceback : error: no such file", "=" * 60]
    assert lines.count("error: no such file") == 1
