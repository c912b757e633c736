"""Shared fixtures. A test that needs a world of processes writes a program and runs it under real torchrun."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("no_deadline", deadline=None)  # other programs may use the machine
hypothesis.settings.load_profile("no_deadline")

TESTS = Path(__file__).parent
sys.path.append(str(TESTS.parent / "benchmarks"))  # a folder of programs, not a package


@pytest.fixture
def torchrun(tmp_path):
    """Run `tests/programs/NAME.py` on `num_processes` ranks; returns what its rank 0 wrote as JSON to argv[1].

    On a GPU machine each rank has a GPU of its own: with fewer GPUs the test is skipped. `on_cpu` is for programs that
    use none; they see none. `optimize` runs Python without asserts.
    """
    return partial(_run_program, tmp_path)


@pytest.fixture(scope="module")
def torchrun_module(tmp_path_factory):
    """`torchrun` for a fixture that several tests of a file share."""
    return partial(_run_program, tmp_path_factory.mktemp("programs"))


@pytest.fixture
def needs_gpus():
    """For tests that start their own processes: `needs_gpus(2)` skips where GPUs are there, but fewer than two."""
    return _skip_without_gpus


@pytest.fixture
def two_gpus(needs_gpus):
    """For files whose tests start two processes themselves."""
    needs_gpus(2)


def _skip_without_gpus(num_processes: int) -> None:
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() < num_processes:
        pytest.skip(f"starts {num_processes} processes, one a GPU; found {torch.cuda.device_count()} GPU(s)")


def _run_program(
    folder: Path,
    name: str,
    num_processes: int,
    *args: str,
    timeout_s: float = 300,
    on_cpu: bool = False,
    optimize: bool = False,
):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if optimize:
        env["PYTHONOPTIMIZE"] = "1"
    if on_cpu:
        env["CUDA_VISIBLE_DEVICES"] = ""
    else:
        _skip_without_gpus(num_processes)
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
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads(result.read_text())
