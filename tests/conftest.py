"""Shared fixtures. A test that needs a world of processes writes a program and runs it under real torchrun."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.fixture
def torchrun(tmp_path):
    """Run `tests/programs/NAME.py` on `num_processes` ranks; returns what its rank 0 wrote as JSON to argv[1]."""
    return partial(_run_program, tmp_path)


@pytest.fixture(scope="module")
def torchrun_module(tmp_path_factory):
    """`torchrun` for a fixture that several tests of a file share."""
    return partial(_run_program, tmp_path_factory.mktemp("programs"))


def _run_program(folder: Path, name: str, num_processes: int, *args: str, timeout_s: float = 300):
    result = folder / f"{name}.json"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={num_processes}",
    ]
    command += [str(TESTS / "programs" / f"{name}.py"), str(result), *args]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads(result.read_text())
