"""A start that cannot fit is refused before anything is built, with numbers and the nearest layout that fits."""

import pytest
from ralign.engine.config.algo import AlgoConfig
from ralign.engine.config.run import DataConfig, GeneratorConfig, MemoryConfig, ParallelConfig, Run
from ralign.engine.planner.judges import GIB
from ralign.engine.planner.shapes import PUBLISHED
from ralign.engine.planner.start import check_memory
from ralign.engine.runtime.errors import UserError


def make_run(**parallel) -> Run:
    return Run(
        name="mine",
        token_budget=16384,
        parallel=ParallelConfig(**({"tensor": 2, "sequence": True, "dtype": "bf16"} | parallel)),
        data=DataConfig(max_prompt_tokens=6144),
        generator=GeneratorConfig(max_new_tokens=8192, kv_cache_gib=0),
        algo=AlgoConfig(num_prompts=64),
    )


def test_what_fits_comes_back_as_the_plan():
    plan = check_memory(make_run(), 8, PUBLISHED["Qwen3-8B"], capacity_bytes=140 * GIB, on_gpu=True)
    assert plan.kv_bytes > GIB and not plan.problems()


def test_what_does_not_fit_is_refused_with_numbers_and_a_layout_that_does():
    with pytest.raises(UserError) as refused:
        check_memory(make_run(), 8, PUBLISHED["Qwen3-8B"], capacity_bytes=60 * GIB, on_gpu=True)
    line = str(refused.value)
    assert line.startswith("mine does not fit 8 x GPU (60 GiB): ") and "GiB of 60.0 GiB" in line
    assert "nearest layout that fits: parallel.tensor=" in line and "\n" not in line


def test_a_host_is_a_limit_too():
    run = make_run(tensor=1, sequence=False, dtype="fp32")
    with pytest.raises(UserError, match=r"does not fit 2 x process on CPU \(12 GiB\): .*no layout of 2 such"):
        check_memory(run, 2, PUBLISHED["Qwen3-8B"], capacity_bytes=12 * GIB, on_gpu=False)


def test_host_memory_beside_gpus_is_a_limit_too():
    shape, size = PUBLISHED["Qwen3-8B"], {"capacity_bytes": 140 * GIB, "on_gpu": True}
    plan = check_memory(make_run(), 8, shape, **size)
    state = 12 * shape.num_parameters / 8
    # Weights and two moments in fp32; torch rounds each tensor in pinned memory up to a power of two.
    assert state < plan.host["checkpoint"] < 1.5 * state
    check_memory(make_run(), 8, shape, **size, host_bytes=plan.host_bytes)
    with pytest.raises(UserError, match=r"GiB of host memory per process \(checkpoint 15\.\d.*of 8\.0 GiB"):
        check_memory(make_run(), 8, shape, **size, host_bytes=8 * GIB)


def test_settings_can_forbid_what_would_make_it_fit():
    run = make_run()
    shape = PUBLISHED["Qwen3-8B"]
    run.memory = MemoryConfig(kv_sleep="never")
    with pytest.raises(UserError, match="learn needs"):
        check_memory(run, 8, shape, capacity_bytes=140 * GIB, on_gpu=True)
