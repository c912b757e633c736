"""SIGKILL at random instants of a run that checkpoints every step.

RALIGN_NUM_KILLS=30 pytest tests/engine/checkpoint/test_kills.py -s    # the long form
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ralign.engine.checkpoint import folders

NUM_KILLS = int(os.environ.get("RALIGN_NUM_KILLS", "2"))
PROGRAM = Path(__file__).parents[2] / "programs" / "interrupted.py"
KEPT = 3  # two newest and the best


def start(folder: Path, last: int, every: int) -> list[subprocess.Popen]:
    """Both ranks, without a launcher that would have to be killed too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    base = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    with (folder / "errors.txt").open("a") as errors:
        return [
            subprocess.Popen(
                [sys.executable, str(PROGRAM), str(folder), str(last), str(every)],
                env=base | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            for rank in range(2)
        ]


def line_of(process: subprocess.Popen, folder: Path, word: str) -> str:
    """What rank 0 prints after `word`."""
    for line in process.stdout:
        if line.startswith(word):
            return line.split()[1]
    raise AssertionError((folder / "errors.txt").read_text()[-4000:])


def finish(folder: Path, last: int, every: int) -> tuple[str, list[dict]]:
    """Run to the end; the weights' identity and the metrics without times."""
    ranks = start(folder, last, every)
    identity = line_of(ranks[0], folder, "weights")
    assert [process.wait(timeout=60) for process in ranks] == [0, 0]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return identity, [{k: v for k, v in line.items() if not k.startswith("time_s/")} for line in lines]


def last_logged(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


@pytest.mark.slow
def test_every_restart_goes_on_from_the_last_complete_checkpoint(tmp_path):
    rng = random.Random(0)
    folder, lost = tmp_path / "killed", []
    folder.mkdir()
    for _ in range(NUM_KILLS):
        before = folders.complete(folder / "checkpoints")
        newest = int(before[-1].name.removeprefix("step")) if before else 0
        ranks = start(folder, 10**6, 1)
        assert int(line_of(ranks[0], folder, "ready")) == newest
        names = [path.name for path in (folder / "checkpoints").iterdir()]
        assert len(names) <= KEPT + 1, names  # one more may be under way
        time.sleep(rng.uniform(0, 3))
        for process in rng.sample(ranks, 2):
            process.send_signal(signal.SIGKILL)
            time.sleep(rng.choice([0, 0.02]))
        assert [process.wait() for process in ranks] == [-signal.SIGKILL] * 2
        for path in folders.complete(folder / "checkpoints"):
            assert folders.find_fault(path, folders.check(path), rank=0, world_size=1) is None
        after = folders.complete(folder / "checkpoints")
        newest = int(after[-1].name.removeprefix("step")) if after else 0
        lost.append(last_logged(folder) - newest)
    last = newest + 5
    identity, steps = finish(folder, last, 1)
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert len(names) <= KEPT and all(name.startswith("step") for name in names)

    whole = tmp_path / "whole"
    whole.mkdir()
    assert finish(whole, last, 0) == (identity, steps)  # as if nothing had happened
    assert [step["step"] for step in steps] == list(range(1, last + 1))
    assert max(lost) <= 2, lost
    print(f"{NUM_KILLS} kills, {last} steps; steps after the last complete checkpoint at each kill: {lost}")
