"""What vLLM is asked for, whatever its defaults; against the real wheel on H100s in tests/cuda."""

import os

import pytest
from ralign.engine.config.run import GeneratorConfig
from ralign.engine.generator.engine_args import (
    capture_sizes,
    check_all_reduce,
    engine_args,
    prepare_environment,
)
from ralign.engine.runtime.errors import UserError


def make_args(config: GeneratorConfig | None = None, **options) -> dict:
    options = {"on_cpu": False, "tensor": 8, "max_model_len": 14336, "kv_bytes": 1 << 30} | options
    return engine_args(
        config or GeneratorConfig(), folder="model", load_format="ralign_shared", dtype="bfloat16", **options
    )


@pytest.mark.parametrize("on_cpu", [True, False])
def test_the_engine_computes_what_the_trainer_computes_and_the_ledger_counts(on_cpu):
    args = make_args(on_cpu=on_cpu)
    assert args["hf_overrides"] == {"head_dtype": "float32"}
    assert args["logprobs_mode"] == "processed_logprobs" and not args["async_scheduling"]
    assert args["max_num_batched_tokens"] == GeneratorConfig().max_num_batched_tokens
    assert args["kv_cache_memory_bytes"] == 1 << 30


def test_a_batch_has_room_for_a_token_of_every_sequence():
    assert make_args(GeneratorConfig(max_num_seqs=9000))["max_num_batched_tokens"] == 9000


@pytest.mark.parametrize(("all_reduce", "fused"), [("custom", False), ("flashinfer", True)])
def test_the_setting_chooses_the_all_reduce(monkeypatch, all_reduce, fused):
    for name in (
        "VLLM_ALLREDUCE_USE_SYMM_MEM",
        "VLLM_ALLREDUCE_USE_FLASHINFER",
        "VLLM_ENABLE_V1_MULTIPROCESSING",
        "VLLM_LOGGING_LEVEL",
    ):
        monkeypatch.setenv(name, "1")
    config = GeneratorConfig(all_reduce=all_reduce)
    prepare_environment(config)
    assert os.environ["VLLM_ALLREDUCE_USE_FLASHINFER"] == str(int(fused))
    assert os.environ["VLLM_ALLREDUCE_USE_SYMM_MEM"] == str(
        int(fused)
    )  # as it was for flashinfer, 0 for custom
    assert make_args(config)["compilation_config"]["pass_config"] == {"fuse_allreduce_rms": fused}


@pytest.mark.parametrize("max_num_seqs", [1, 3, 8, 100, 256, 300, 512, 4000])
def test_graphs_end_at_what_decodes_together(max_num_seqs):
    sizes = capture_sizes(max_num_seqs)
    assert sizes == sorted(set(sizes)) and sizes[-1] == min(max_num_seqs, 512)
    assert (
        make_args(GeneratorConfig(max_num_seqs=max_num_seqs))["compilation_config"]["cudagraph_capture_sizes"]
        == sizes
    )


def test_without_graphs_none_are_captured():
    args = make_args(GeneratorConfig(enforce_eager=True))
    assert args["enforce_eager"] and "cudagraph_capture_sizes" not in args["compilation_config"]


def test_the_share_of_a_gpu_is_at_most_what_is_free():
    assert make_args(free_share=0.5)["gpu_memory_utilization"] == pytest.approx(0.475)
    assert make_args()["gpu_memory_utilization"] == 0.9


@pytest.mark.parametrize(("all_reduce", "found", "is_refused"), [
    ("flashinfer", False, True), ("flashinfer", True, False), ("custom", False, False)
])  # fmt: skip
def test_a_missing_flashinfer_is_named_and_not_gone_without(monkeypatch, all_reduce, found, is_refused):
    monkeypatch.setattr("vllm.utils.flashinfer.has_flashinfer", lambda: found)
    config = GeneratorConfig(all_reduce=all_reduce)
    if not is_refused:
        check_all_reduce(config)
        return
    with pytest.raises(UserError, match="generator.all_reduce=flashinfer: .*nvcc"):
        check_all_reduce(config)
