"""A run folder with two checkpoints of a tiny model, made by a program of one process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("tiny_checkpoint.py")


@pytest.fixture(scope="session")
def tiny_program():
    """A function that runs tiny_checkpoint.py with arguments and returns what it printed."""

    def start(*args: str) -> str:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        # An environment in which torch.load would read any class by default.
        env["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
        command = [sys.executable, "-W", "ignore", str(PROGRAM), *args]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return start


@pytest.fixture(scope="session")
def made(tiny_program, tmp_path_factory) -> Path:
    """The run's folder, not to be changed."""
    run = tmp_path_factory.mktemp("made")
    tiny_program("make", str(run))
    return run


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy of the run's folder in `tmp_path`."""
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def newest(run) -> Path:
    """The newer of the copy's checkpoints."""
    return run / "stage" / "checkpoints" / "step00000002"
