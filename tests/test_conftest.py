"""The `torchrun` fixture on a machine with fewer GPUs than a test starts processes."""

import subprocess
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def started(monkeypatch):
    """What was started, and with which GPUs to see; nothing runs."""
    calls: list = []

    def run(command, *, env, cwd, **_):
        calls.append((command, env.get("CUDA_VISIBLE_DEVICES")))
        (cwd / f"{command[5].split('/')[-1].removesuffix('.py')}.json").write_text("{}")
        return SimpleNamespace(returncode=0)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(subprocess, "run", run)
    return calls


@pytest.fixture
def gpus(monkeypatch):
    def set_number(number: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)

    return set_number


@pytest.mark.parametrize(("num_gpus", "num_processes"), [(0, 1), (0, 4), (1, 1), (2, 2), (8, 4)])
def test_a_program_runs_where_each_process_has_a_gpu_or_none_has(
    torchrun, started, gpus, num_gpus, num_processes
):
    gpus(num_gpus)
    torchrun("layouts", num_processes)
    ((command, visible),) = started
    assert f"--nproc-per-node={num_processes}" in command and visible is None


@pytest.mark.parametrize(("num_gpus", "num_processes"), [(1, 2), (2, 4)])
def test_it_is_skipped_with_the_reason_where_gpus_are_too_few(
    torchrun, needs_gpus, started, gpus, num_gpus, num_processes
):
    gpus(num_gpus)
    reason = f"starts {num_processes} processes, one a GPU; found {num_gpus} GPU"
    for start in (lambda: torchrun("layouts", num_processes), lambda: needs_gpus(num_processes)):
        with pytest.raises(pytest.skip.Exception, match=reason):
            start()
    assert not started
    needs_gpus(num_gpus)


def test_a_program_for_the_cpu_runs_all_the_same_and_sees_no_gpu(torchrun, started, gpus):
    gpus(1)
    torchrun("vocab_parallel", 4, "cpu", on_cpu=True)
    ((_, visible),) = started
    assert visible == ""
