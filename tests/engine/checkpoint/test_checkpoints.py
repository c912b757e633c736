"""A killed stage goes on bit for bit, and in another layout to rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("two_gpus")  # on a GPU machine; on a CPU nothing is needed

PROGRAMS = Path(__file__).parents[2] / "programs"
# In another layout sums are rounded in another order.
RESHARDED_REL = 1e-5


@pytest.fixture(scope="module")
def two_jobs(tmp_path_factory) -> tuple[dict, dict]:
    """Reports of a job that is killed after its last step, and of the one that goes on from its step 3."""
    folder = tmp_path_factory.mktemp("resume")
    which = os.environ.get("RALIGN_RESUME_CASES", "some")
    for phase, expected in (("first", 1), ("again", 0)):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
                *(str(PROGRAMS / "resume.py"), str(folder / "resume.json"), phase, which),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == expected, done.stdout[-3000:] + done.stderr[-6000:]
        assert (folder / f"{phase}.json").exists(), done.stderr[-6000:]
    return tuple(json.loads((folder / f"{phase}.json").read_text()) for phase in ("first", "again"))


@pytest.mark.jobs
def test_a_killed_stage_goes_on_bit_for_bit(two_jobs):
    first, again = two_jobs
    assert len(first) >= 8
    for case, before in first.items():
        after = again[case]
        assert after["resumed_at"] == 3 and len(after["steps"]) == 3, case
        assert after["bits_at_resume"] == before["bits_at_save"], case
        assert after["steps"] == before["steps"][3:], case
        assert after["bits"] == before["bits"] != before["bits_at_save"], case


@pytest.mark.jobs
def test_a_checkpoint_goes_on_in_another_layout(two_jobs):
    first, again = two_jobs
    resharded = {case: report for case, report in again.items() if " to " in case}
    assert len(resharded) == 5
    for case, report in resharded.items():
        kind, source, *_ = case.split()
        before = first[f"{kind} {source} fp32"]
        assert report["same_values"], case  # what was loaded is, to the bit, what was saved
        for step, expected in zip(report["steps"], before["steps"][3:], strict=True):
            assert step.keys() == expected.keys()
            for key, value in expected.items():
                got, wanted = float.fromhex(step[key]), float.fromhex(value)
                assert got == pytest.approx(wanted, rel=RESHARDED_REL, abs=1e-6, nan_ok=True), (case, key)
