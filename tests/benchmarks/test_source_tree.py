"""A Python without this project reads the kernels from the source tree, and so do the processes that it starts."""

import os
import subprocess
import sys

import pytest
from source_tree import ROOT

CODE = """
import importlib.util, subprocess, sys
sys.path.insert(0, {benchmarks!r})
from source_tree import make_importable
assert importlib.util.find_spec("ralign") is None
make_importable()
import ralign.kernels.implementation as module
print(module.__spec__.name)
subprocess.run([sys.executable, "-c", "import ralign.kernels.implementation as m; print(m.__spec__.name)"], check=True)
"""


@pytest.fixture
def without_ralign(tmp_path):
    """An environment whose Python has this one's packages, but not this project."""
    site = tmp_path / "site"
    site.mkdir()
    packages = [path for path in sys.path if path.endswith("site-packages")]
    for folder in packages:
        for entry in os.scandir(folder):
            if (
                "ralign" not in entry.name
                and not entry.name.endswith(".pth")
                and not (site / entry.name).exists()
            ):
                (site / entry.name).symlink_to(entry.path)
    return {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}


def run(environment, *arguments):
    # -S: without site-packages of its own, where an editable installation leaves its .pth file.
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)


@pytest.mark.jobs
def test_kernels_import_here_and_in_processes_that_are_started(without_ralign):
    without_ralign["PYTHONDONTWRITEBYTECODE"] = "1"
    code = CODE.format(benchmarks=str(ROOT / "benchmarks")).replace(
        "[sys.executable,", '[sys.executable, "-S",'
    )
    done = run(without_ralign, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ralign.kernels.implementation"] * 2


@pytest.mark.jobs
def test_the_kernels_tests_run_without_an_installation(without_ralign):
    tests = ROOT / "tests" / "kernels" / "test_advantages.py"
    done = run(
        without_ralign, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "by_hand and torch", str(tests)
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
