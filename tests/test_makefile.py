"""The set-up: what the Makefile does once, does again, and says when it fails; python is a stand-in."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

_ROOT = Path(__file__).parents[1]

# Notes what it was asked, answers questions about headers, and fails at pip where the test wants that.
_PYTHON = """#!/bin/bash
echo "$*" >> {log}
case "$*" in
    *sysconfig*) exec {python} "$@" ;;
    *is_available*) echo "${{IS_AVAILABLE:-True}}" ;;
    *torch.version.cuda*) echo "torch is built for CUDA 13.0" ;;
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


def _with_driver(clone, version="580.95", num_gpus=1):
    """The environment of a machine with that driver and one GPU, or none."""
    driver = clone / "bin" / "nvidia-smi"
    driver.parent.mkdir()
    listed = f'[ "$1" = -L ] && echo "GPU 0: NVIDIA H200" || echo {version}' if num_gpus else "exit 9"
    driver.write_text(f"#!/bin/sh\n{listed}\n")
    driver.chmod(0o755)
    return {"PATH": f"{driver.parent}:{os.environ['PATH']}"}


def test_a_gpu_machine_gets_the_cuda_lock_and_the_engine_is_imported(clone):
    done = _make(clone, "venv", f"PYTHON={clone}/.venv/bin/python", **_with_driver(clone))
    assert done.returncode == 0, done.stderr
    asked = _asked(clone)
    assert any(line.endswith("--no-deps -r requirements/cuda.lock") for line in asked)
    assert any("vllm._C_stable_libtorch" in line for line in asked)


def test_cuda_packages_without_a_gpu_are_an_environment_of_their_own(clone):
    """As `make test-cuda` makes it; vLLM's extension modules do not load without a driver."""
    shutil.copytree(clone / ".venv", clone / ".venv-cuda")
    environment = _with_driver(clone, num_gpus=0)
    _make(clone, "venv", "VENV=.venv-cuda", f"PYTHON={clone}/.venv/bin/python", "KIND=cuda", **environment)
    asked = _asked(clone)
    assert any("--no-deps -r requirements/cuda.lock" in line for line in asked)
    assert not any("vllm" in line for line in asked)
    assert (clone / ".venv-cuda" / "extension.stamp").exists()
    assert not (clone / ".venv" / "extension.stamp").exists()


def test_a_driver_that_is_too_old_is_said_in_one_line(clone):
    environment = _with_driver(clone, "550.54.15") | {"IS_AVAILABLE": "False"}
    done = _make(clone, "venv", f"PYTHON={clone}/.venv/bin/python", **environment)
    assert done.returncode == 2
    line = next(line for line in done.stderr.splitlines() if "driver" in line)
    assert "CUDA 13.0" in line and "550.54.15" in line and "580 or newer" in line


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
    assert "launch --standalone --nproc-per-node 2 recipes/r_align_mini.py num_steps=5" in demo
    test = _make(clone, "-n", "test", "KIND=cpu", "ARGS=-k policy").stdout
    assert '-m "not gpu and not slow and not jobs"  -k policy' in test
    assert "tests/programs/sanitized.py build/asan" in _make(clone, "-n", "asan", "KIND=cpu").stdout
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
    assert os.access(run, os.X_OK) and {"make test", "make lint"} <= set(run.read_text().splitlines())


def _requirements(name):
    lines = (_ROOT / "requirements" / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def _ranges(kind):
    """The requirements of the package, of one of its extras `cpu` and `cuda`, and of development."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [Requirement(line) for line in project["dependencies"] + extras[kind] + extras["dev"]]


def _pins(name):
    """Package, spelled as the registry compares names -> version, of a lock."""
    requirements = _requirements(name)
    assert all(str(requirement.specifier).startswith("==") for requirement in requirements)
    pins = {canonicalize_name(each.name): str(each.specifier).lstrip("=") for each in requirements}
    assert len(pins) == len(requirements)
    return pins


def test_the_lock_pins_everything_once_without_the_packages_that_break_transformers():
    assert not {"torchvision", "torchaudio", "torchcodec", "wandb", "trl"} & _pins("cpu.lock").keys()


def test_the_cuda_locks_take_no_cpu_build_of_torch():
    """`==2.13.0` takes a 2.13.0+cpu where pip finds one; `===` compares the text."""
    for lock in ("cuda.lock", "cuda-oldest.lock"):
        torch = next(each for each in _requirements(lock) if each.name == "torch")
        assert str(torch.specifier).startswith("===") and "+" not in str(torch.specifier)


def test_gpu_machines_get_flash_attn_4():
    """tests/cuda leaves its tests out where it is not installed."""
    assert "flash-attn-4" in _pins("cuda.lock")


@pytest.mark.parametrize("lock", ["cpu.lock", "cuda.lock", "cuda-oldest.lock"])
def test_what_is_pinned_lies_within_the_range(lock):
    """Every package that pyproject.toml requires for this kind of machine is pinned in the lock, within its range."""
    pins = _pins(lock)
    for requirement in _ranges(lock.removesuffix(".lock").removesuffix("-oldest")):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_the_range_ends_where_what_was_tried_ends():
    """vLLM pins its torch: the two locks are the ends of the range."""
    oldest, newest = _pins("cuda-oldest.lock"), _pins("cuda.lock")
    ranges = {each.name: each.specifier for each in _ranges("cuda")}
    for name in ("torch", "vllm"):
        bounds = {
            each.operator: Version(each.version).release for each in ranges[name] if each.operator != "!="
        }
        major, minor = Version(newest[name]).release[:2]
        assert bounds[">="] == Version(oldest[name]).release[:2] and bounds["<"] == (major, minor + 1), name
