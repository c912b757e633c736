"""Kernels beside plain torch, torch.compile and Liger-Kernel, in one run: `pytest benchmarks --benchmark-only`.

`extra_info` holds the shape, the bytes and operations that any implementation needs, and what share of the
measured copy bandwidth or matrix-product rate of this machine the median call reached.
"""

import pytest
import torch
from kernel_cases import CASES, CPU, GPU, make_cases
from timing import best_time_s, synchronize

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = GPU if DEVICE == "cuda" else CPU
NAMES = ("ralign", "ralign in two steps", "torch", "torch (loop over groups)", "torch.compile", "liger")


@pytest.fixture(scope="module")
def copy_bytes_per_s() -> float:
    """Bytes read and written a second by a large copy."""
    size_bytes = 2**30 if DEVICE == "cuda" else 2**27
    source = torch.zeros(size_bytes, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * size_bytes / best_time_s(lambda: target.copy_(source))


@pytest.fixture(scope="module")
def matmul_flops_per_s() -> float:
    n = 8192 if DEVICE == "cuda" else 1024
    a = torch.randn(n, n, device=DEVICE, dtype=SIZES.dtype)
    return 2 * n**3 / best_time_s(lambda: a @ a)


@pytest.fixture(scope="module")
def case_at():
    """The case of a number; numbers must not fall, and a case is forgotten when the next is asked for."""
    cases, held = make_cases(DEVICE, SIZES), {"index": -1, "case": None}

    def get(index: int):
        while held["index"] < index:
            held["case"] = None
            held.update(index=held["index"] + 1, case=next(cases))
        return held["case"]

    return get


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", range(len(CASES)))
def test_kernel(benchmark, case_at, copy_bytes_per_s, matmul_flops_per_s, index, name):
    case = case_at(index)
    if name not in case.run:
        pytest.skip(f"{case.name} has no {name!r} on {DEVICE}")
    call = case.run[name]

    def timed():
        call()
        synchronize()

    benchmark.group = f"{case.name}: {case.shape}"
    benchmark.name = name
    benchmark.pedantic(timed, rounds=5, warmup_rounds=2)
    seconds = benchmark.stats.stats.median
    info = {"shape": case.shape, "num_bytes": case.num_bytes, "num_flops": case.num_flops}
    if case.num_bytes:
        info["share_of_copy_bandwidth"] = case.num_bytes / seconds / copy_bytes_per_s
    if case.num_flops:
        info["share_of_matmul_rate"] = case.num_flops / seconds / matmul_flops_per_s
    benchmark.extra_info.update(info)
