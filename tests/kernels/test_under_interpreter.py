import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def implementation():
    """Replaces the parametrised fixture of conftest.py: the test below runs once."""


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the run in the interpreter")
def test_all_kernel_tests_pass_on_triton_in_its_interpreter():
    """The interpreter truncates stores to bf16; the tests allow for it under TRITON_INTERPRET=1."""
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "triton",
            str(Path(__file__).parent),
        ],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) > 100, run.stdout[-2000:]
