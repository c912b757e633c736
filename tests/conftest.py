"""Shared fixtures. A test that needs a world of processes writes a program and runs it under real torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.fixture
def torchrun(tmp_path):
    """Run `tests/programs/NAME.py` on `num_processes` ranks; returns what its rank 0 wrote as JSON to argv[1]."""

    def run(name: str, num_processes: int, *args: str, timeout_s: float = 300):
        result = tmp_path / f"{name}.json"
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
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return json.loads(result.read_text())

    return run
