"""What ralign knows of the installed vLLM beyond its interface: defaults, names and limits that a release may change.

A failure here is no fault. Its sentence says what to look at before the lock moves to that release.
"""

import importlib
import inspect
from importlib.metadata import version
from unittest import mock

import pytest
from packaging.version import Version
from ralign.engine.config.run import GeneratorConfig

IS_OLDER = Version(version("vllm")) < Version("0.32")
pytestmark = [
    pytest.mark.usefixtures("h100"),
    pytest.mark.skipif(IS_OLDER, reason="known of the newest release; older ones had other defaults"),
]


def test_tokens_of_a_forward_pass(model_folder):
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    args = EngineArgs(model=str(model_folder("qwen3")), load_format="dummy", skip_tokenizer_init=True)
    default = args.create_engine_config(UsageContext.LLM_CLASS).scheduler_config.max_num_batched_tokens
    assert default == 16384, (
        f"vLLM's max_num_batched_tokens on an H100 is now {default} and was 16384; we pass "
        f"{GeneratorConfig().max_num_batched_tokens}, which the memory ledger counts: measure whether more pays"
    )


@pytest.mark.parametrize(
    ("name", "known", "what"),
    [
        ("VLLM_ALLREDUCE_USE_FLASHINFER", True, "generator.all_reduce sets it, engine_args.py"),
        (
            "VLLM_ALLREDUCE_USE_SYMM_MEM",
            True,
            "it sums in the switch, beyond the sizes of the custom all-reduce",
        ),
        ("VLLM_USE_NCCL_SYMM_MEM", False, "it sums in the switch"),
        ("VLLM_BATCH_INVARIANT", False, "it would change kernels and the all-reduce"),
        ("VLLM_USE_V2_MODEL_RUNNER", None, "None lets vLLM choose; generator.seeded serves both runners"),
    ],
)
def test_environment_variable(name, known, what, monkeypatch):
    monkeypatch.delenv(name, raising=False)
    envs = importlib.import_module("vllm.envs")
    default = getattr(envs, name)
    assert default == known, f"vLLM's default of {name} is now {default!r} and was {known!r}: {what}"


def test_sizes_of_the_custom_all_reduce():
    from vllm.distributed.device_communicators.all_reduce_utils import CUSTOM_ALL_REDUCE_MAX_SIZES

    found = {size: limit >> 10 for size, limit in CUSTOM_ALL_REDUCE_MAX_SIZES["9.0"].items()}
    assert found == {2: 65536, 4: 32768, 6: 512, 8: 256}, (
        f"on Hopper vLLM's custom all-reduce now takes up to {found} KiB by number of ranks; larger sums go through "
        "symmetric memory or NCCL, whose order is another: generator.all_reduce and docs/gpu.md speak of it"
    )


def test_sleep_tags():
    from vllm.device_allocator import DEFERRABLE_TAGS

    assert set(DEFERRABLE_TAGS) == {"weights", "kv_cache"}, (
        f"sleep now knows the tags {DEFERRABLE_TAGS} that a wake-up may leave asleep; kv_cache.py wakes weights and "
        "kv_cache, and relies on every other tag waking with the first of them"
    )


@pytest.mark.parametrize("level", [1, 2])
def test_sleep_level_one_keeps_weights_and_level_two_drops_them(level):
    from vllm.device_allocator.sleep_mode_backend import CuMemBackend

    with mock.patch("vllm.device_allocator.get_mem_allocator_instance") as allocator:
        CuMemBackend().suspend(level)
    kept = set(allocator.return_value.sleep.call_args.kwargs["offload_tags"])
    assert ("weights" in kept) == (level == 1) and "kv_cache" not in kept, (
        f"sleep at level {level} now keeps {sorted(kept)} in host memory; kv_cache.py sleeps at level 1 beside shared "
        "weights and at level 2 with weights of the engine's own, which it gathers again"
    )


def test_head_dtype_is_what_vllm_says_training_needs():
    from vllm.config import ModelConfig

    text = inspect.getdoc(ModelConfig.head_dtype.fget)
    assert "float32" in text and "training" in text, (
        "ModelConfig.head_dtype says something else than that hf_overrides head_dtype=float32 is for training: "
        "see whether engine_args.py still asks for fp32 logits in the right way"
    )


def test_model_runner_takes_seeds_from_numpy():
    from vllm.v1.worker.gpu.sample import states

    assert "np.random.randint" in inspect.getsource(states.SamplingStates.add_request), (
        "model runner V2 no longer draws a request's seed from numpy: generator.seeded fixes torch's and numpy's states"
    )


def test_attention_in_the_engine_may_not_be_flashinfers_on_hopper():
    from vllm.platforms.cuda import _get_backend_priorities
    from vllm.platforms.interface import DeviceCapability

    names = [backend.name for backend in _get_backend_priorities(False, DeviceCapability(9, 0))]
    assert names[0] == "FLASH_ATTN", (
        f"on Hopper vLLM now prefers {names[0]}: other kernels, other differences"
    )
    names = [backend.name for backend in _get_backend_priorities(False, DeviceCapability(10, 0))]
    assert names[0] == "FLASHINFER", (
        f"on Blackwell vLLM now prefers {names[0]}; it was FlashInfer, which needs nvcc"
    )
