"""flash-attn 4, the real package: what training calls compiles without a GPU, and nobody takes it for version 2."""

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from ralign.engine.policy import flash_attention

PROGRAM = Path(__file__).parents[1] / "programs" / "compile_attention.py"


@pytest.fixture(scope="module", params=["90", "100"], ids=["sm_90a", "sm_100a"])
def starts(request, tmp_path_factory):
    """(rows, stderr) of the program's first and second start on one cache, compiling for one architecture."""
    folder = tmp_path_factory.mktemp(f"sm_{request.param}")
    target = {
        "FLASH_ATTENTION_ARCH": f"sm_{request.param}",
        "CUTE_DSL_ARCH": f"sm_{request.param}a",
        "FLASH_ATTENTION_NUM_SMS": {"90": "132", "100": "148"}[request.param],
        "XDG_CACHE_HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    results = []
    for result in (folder / "first.json", folder / "second.json"):
        done = subprocess.run(
            [sys.executable, str(PROGRAM), str(result), request.param],
            env=os.environ | target,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-6000:]
        results.append((json.loads(result.read_text()), done.stderr))
    return results


@pytest.mark.slow
@pytest.mark.timeout(1800)  # it waits for the fixture: two minutes of CPU time, more where others share it
def test_what_training_calls_compiles(starts):
    """A kernel for each: with and without a gradient, deterministic, with a gradient of the LSE; none for lengths."""
    rows, _ = starts[0]
    line = "{case:12} {step:25} {num_compiled} kernels, {time_s:5.1f} s, CPU {cpu_s:5.1f} s"
    print(*(line.format_map(row) for row in rows), sep="\n")
    compiled = {(row["case"], row["step"]): row["num_compiled"] for row in rows}
    for (case, step), number in compiled.items():
        # The ratio of heads counts and not their number, and no length does.
        assert (number == 0) == (case == "8:1 x 128" or step == "short sequences"), (case, step)
    assert len(compiled) > 20


@pytest.mark.slow
def test_a_second_start_compiles_nothing(starts):
    rows, _ = starts[1]
    assert not any(row["num_compiled"] for row in rows)


@pytest.mark.slow
def test_only_the_first_start_says_that_it_compiles(starts):
    lines = [
        [line for line in stderr.splitlines() if "flash-attn 4 compiles" in line] for _, stderr in starts
    ]
    assert [len(x) for x in lines] == [1, 0]
    assert "aux_data" not in starts[0][1], "the package's own warning, at each compilation"


def test_the_package_takes_the_call():
    from flash_attn.cute import flash_attn_varlen_func

    called = []

    def function(*args, **options):
        called.append((args, options))
        return torch.zeros(1), None

    flash_attention._call_flash_attn_4(function, *range(7))
    ((args, options),) = called
    bound = inspect.signature(flash_attn_varlen_func).bind(*args, **options)
    assert [bound.arguments[name] for name in ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k")] == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_the_package_takes_the_head_sizes():
    from flash_attn.cute.interface import _validate_head_dims

    for size in flash_attention.HEAD_SIZES:
        for major in (9, 10):
            _validate_head_dims(size, size, major, 8)
    with pytest.raises(AssertionError):  # so that the lines above say something
        _validate_head_dims(160, 160, 10, 8)


def test_the_name_is_a_namespace_without_version_2():
    assert flash_attention._installed("flash-attn-4") and not flash_attention._installed("flash-attn")
    spec = importlib.util.find_spec("flash_attn")
    assert spec.origin is None and list(spec.submodule_search_locations)
    assert importlib.util.find_spec("flash_attn_2_cuda") is None


def test_the_engine_does_not_take_it_for_version_2(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    flash_attention.varlen_kernel.cache_clear()
    kernel = flash_attention.varlen_kernel(torch.device("cuda", 0), torch.bfloat16, 128)
    flash_attention.varlen_kernel.cache_clear()
    assert kernel.func.__module__ == "torch.nn.attention.varlen"


def test_megatron_does_not_take_it_for_version_2():
    from megatron.core import utils
    from megatron.core.models.common.embeddings import rope_utils
    from megatron.core.transformer import attention

    assert attention.flash_attn_varlen_func is None and attention.flash_attn_with_kvcache is None
    assert not attention.HAVE_FA3
    assert rope_utils.apply_rotary_emb_flash is None
    with pytest.raises(PackageNotFoundError):  # asked only where flash-attn 2 would be called
        utils.get_fa_version()


def test_transformers_does_not_take_it_for_version_2(monkeypatch):
    from transformers import AutoModelForCausalLM, Qwen3Config
    from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX
    from transformers.utils import import_utils

    monkeypatch.setattr(import_utils, "is_torch_cuda_available", lambda: True)
    for question in (import_utils.is_flash_attn_2_available, import_utils.is_flash_attn_3_available):
        assert not inspect.unwrap(question)()
    assert not inspect.unwrap(import_utils.is_flash_attn_greater_or_equal)("2.1.0")
    assert not FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]["pkg_availability_check"]()
    config = Qwen3Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vocab_size=8
    )
    with torch.device("meta"):
        assert AutoModelForCausalLM.from_config(config).config._attn_implementation == "sdpa"


def test_vllm_takes_its_own_copy(h100):
    from vllm.v1.attention.backends import fa_utils

    assert fa_utils.flash_attn_varlen_func.__module__.startswith("vllm.vllm_flash_attn")
    with pytest.raises(ModuleNotFoundError):  # which vLLM expects, and then uses its own rotary embedding
        importlib.import_module("flash_attn.ops.triton.rotary")


def test_torch_keeps_its_own_kernel(h100):
    """torch can be told to call flash-attn 4 from within; only its import is not enough for that."""
    import flash_attn.cute  # noqa: F401
    from torch.nn.attention import current_flash_attention_impl

    assert current_flash_attention_impl() is None


def test_both_copies_live_in_one_process(h100):
    """vLLM has one of its own for Blackwell."""
    import flash_attn.cute.interface as ours
    import vllm.vllm_flash_attn.cute.interface as theirs

    assert ours.__file__ != theirs.__file__
