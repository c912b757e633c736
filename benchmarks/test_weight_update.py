"""Time and bytes of giving the engine new weights: shared memory against the gather path.

pytest benchmarks/test_weight_update.py --benchmark-only -s
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).parent / "weight_update.py"


@pytest.mark.benchmark(group="weight update")
def test_weight_update(benchmark, tmp_path):
    if torch.cuda.is_available() and torch.cuda.device_count() < 2:
        pytest.skip(f"starts 2 processes, one a GPU; found {torch.cuda.device_count()} GPU(s)")
    result = tmp_path / "result.json"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

    def run() -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*launch, str(PROGRAM), str(result)], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    benchmark.pedantic(run, rounds=1)
    report = json.loads(result.read_text())
    benchmark.extra_info.update(report)
    print()
    for name, row in report.items():
        print(name, {key: round(x, 4) if isinstance(x, float) else x for key, x in row.items()})
    assert report["shared, tp 2 to 2"]["bytes_moved"] == 0
    for name, row in report.items():
        if name.startswith("gather"):
            assert row["exact"] and row["bytes_moved"] > 0, name
    # Half of what is wanted is here already: straight pieces beat tensors made whole on every rank.
    tp = report["gather, tp 2 to 1"]
    assert tp["seconds"] < 1.5 * tp["whole_tensors_s"]
