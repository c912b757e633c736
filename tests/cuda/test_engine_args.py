"""The generator's arguments, resolved by the installed vLLM's own rules as on 8 x H100."""

import dataclasses
import os
from pathlib import Path
from unittest import mock

import pytest
from ralign.engine.config.run import GeneratorConfig
from ralign.engine.generator.engine_args import capture_sizes, engine_args, prepare_environment

pytestmark = pytest.mark.usefixtures("h100")


@pytest.fixture(autouse=True)
def environment():
    """Each test sets the environment variables of its own engine."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """`compiler(True)` puts nvcc and ninja on PATH, `compiler(False)` takes every one away."""
    from vllm.utils import flashinfer

    cached = [value for value in vars(flashinfer).values() if callable(getattr(value, "cache_clear", None))]

    def put(is_there: bool) -> None:
        folder = tmp_path / ("with" if is_there else "without") / "bin"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("nvcc", "ninja") if is_there else ():
            (folder / name).write_text("#!/bin/sh\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.setattr(flashinfer, "_DEFAULT_CUDA_HOME", str(folder / "no-toolkit"), raising=False)
        for name in ("CUDA_HOME", "CUDA_PATH"):
            monkeypatch.delenv(name, raising=False)
        for function in cached:
            function.cache_clear()

    yield put
    for function in cached:
        function.cache_clear()


def resolve(
    folder: Path, config: GeneratorConfig | None = None, *, tensor: int = 8, drop: tuple = (), **changes
):
    """vLLM's configuration of an engine of `tensor` ranks, from our arguments without those in `drop`."""
    from ralign.engine.generator import shared
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    config = config or GeneratorConfig()
    prepare_environment(config)
    args = engine_args(
        config, folder=str(folder), load_format=shared.register_shared_loader({}), tensor=tensor, on_cpu=False,
        **{"dtype": "bfloat16", "max_model_len": 256, "kv_bytes": 1 << 30} | changes,
    )  # fmt: skip
    args = {name: value for name, value in args.items() if name not in drop}
    return EngineArgs(**args).create_engine_config(UsageContext.LLM_CLASS)


def described(config) -> dict[str, str]:
    """Every part of vLLM's configuration in words, to compare two of them."""
    parts = {part.name: repr(getattr(config, part.name)) for part in dataclasses.fields(config)}
    return {name: text for name, text in parts.items() if name != "instance_id"}


@pytest.fixture(scope="module")
def folder(model_folder):
    return model_folder("qwen3")


@pytest.mark.parametrize("tensor", [1, 8])
def test_engine_is_configured_as_the_generator_assumes(folder, tensor):
    config = resolve(folder, tensor=tensor)
    assert config.use_v2_model_runner, "the generator seeds requests as model runner V2 reads the seeds"
    assert config.scheduler_config.async_scheduling is False
    assert config.parallel_config.distributed_executor_backend == "external_launcher"
    assert config.cache_config.enable_prefix_caching and config.cache_config.kv_cache_memory_bytes == 1 << 30
    assert config.model_config.logprobs_mode == "processed_logprobs"
    assert config.device_config.device_type == "cuda"


def test_logits_are_computed_in_fp32_from_bf16_weights(folder):
    import torch

    config = resolve(folder).model_config
    assert config.dtype == torch.bfloat16 and config.head_dtype == torch.float32
    assert (
        resolve(folder, drop=("hf_overrides",)).model_config.head_dtype == torch.bfloat16
    )  # it has to be asked for


@pytest.mark.parametrize(("max_num_seqs", "tokens"), [(256, 8192), (16384, 16384)])
def test_forward_pass_has_as_many_tokens_as_the_memory_ledger_counts(folder, max_num_seqs, tokens):
    config = resolve(folder, GeneratorConfig(max_num_seqs=max_num_seqs)).scheduler_config
    assert config.max_num_batched_tokens == tokens and config.max_num_seqs == max_num_seqs


@pytest.mark.parametrize("max_num_seqs", [1, 5, 64, 200, 256, 300, 512])
def test_cuda_graphs_end_at_the_sequences_decoded_at_once(folder, max_num_seqs):
    config = resolve(folder, GeneratorConfig(max_num_seqs=max_num_seqs)).compilation_config
    assert config.cudagraph_capture_sizes == capture_sizes(max_num_seqs)
    assert config.cudagraph_capture_sizes[-1] == config.max_cudagraph_capture_size == max_num_seqs
    assert config.cudagraph_mode.name == "FULL_AND_PIECEWISE"


def test_no_cuda_graph_is_captured_when_eager(folder):
    config = resolve(folder, GeneratorConfig(enforce_eager=True)).compilation_config
    assert config.cudagraph_mode.name == "NONE" and not config.cudagraph_capture_sizes


@pytest.mark.parametrize("can_sleep", [False, True])
def test_sleep_mode_is_on_when_asked(folder, can_sleep):
    assert resolve(folder, can_sleep=can_sleep).model_config.enable_sleep_mode is can_sleep


def test_engine_does_not_depend_on_the_compilers_on_path(folder, compiler):
    """FlashInfer compiles its kernels with nvcc and ninja; vLLM chooses it where both are found."""
    found = {}
    for is_there in (True, False):
        compiler(is_there)
        found[is_there] = described(resolve(folder))
    assert found[True] == found[False]


@pytest.mark.parametrize("is_there", [True, False])
def test_all_reduce_is_chosen_by_the_setting(folder, compiler, is_there):
    import vllm.envs

    compiler(is_there)
    config = resolve(folder, GeneratorConfig(all_reduce="custom"))
    assert config.compilation_config.pass_config.fuse_allreduce_rms is False
    assert not vllm.envs.VLLM_ALLREDUCE_USE_FLASHINFER
    if is_there:
        config = resolve(folder, GeneratorConfig(all_reduce="flashinfer"))
        assert config.compilation_config.pass_config.fuse_allreduce_rms is True
        assert vllm.envs.VLLM_ALLREDUCE_USE_FLASHINFER


@pytest.mark.parametrize("is_there", [True, False])
def test_without_our_argument_the_compilers_on_path_would_choose(folder, compiler, is_there):
    """What the two tests above hold off: if this fails, vLLM chooses by something else now."""
    compiler(is_there)
    config = resolve(folder, drop=("compilation_config",))
    assert config.compilation_config.pass_config.fuse_allreduce_rms is is_there
