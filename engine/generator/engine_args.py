"""vLLM's arguments, on CUDA and on CPU, as plain values.

Every argument is set that decides whether engine and trainer agree, or whether all ranks of an engine sample the same
tokens: vLLM's defaults change between releases and depend on the installed packages.
"""

import os
from typing import Any

from ralign.engine.config.run import GeneratorConfig
from ralign.engine.runtime.errors import UserError

# As in the trainer. Logits rounded to bf16 move a logprob by up to 0.03 to 0.08.
LOGITS_IN_FP32: dict[str, Any] = {"hf_overrides": {"head_dtype": "float32"}}


def prepare_environment(config: GeneratorConfig) -> None:
    """Set the environment variables that vLLM reads when it is imported or started."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # vLLM takes FlashInfer's wherever it finds nvcc and ninja, and compiles it at the first start.
    os.environ["VLLM_ALLREDUCE_USE_FLASHINFER"] = str(int(config.all_reduce == "flashinfer"))
    if config.all_reduce == "custom":  # else larger tensors are summed in the switch, in no fixed order
        os.environ["VLLM_ALLREDUCE_USE_SYMM_MEM"] = "0"


def check_all_reduce(config: GeneratorConfig) -> None:
    """Raises UserError for FlashInfer's all-reduce where vLLM cannot use it: vLLM itself only logs a warning."""
    if config.all_reduce != "flashinfer":
        return
    from vllm.utils.flashinfer import has_flashinfer

    if not has_flashinfer():
        raise UserError(
            "generator.all_reduce=flashinfer: vLLM finds no FlashInfer that it can use; install flashinfer-cubin, "
            "or put nvcc (CUDA_HOME) and ninja on the PATH"
        )


def engine_args(
    config: GeneratorConfig,
    *,
    folder: str,
    load_format: str,
    tensor: int,
    dtype: str,
    max_model_len: int,
    kv_bytes: int,
    on_cpu: bool,
    free_share: float = 1.0,
    can_sleep: bool = False,
) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM` (and of `EngineArgs`) for the engine in the training processes.

    Args:
        folder: the Hugging Face folder of the model; its tensors are not read.
        load_format: the registered loader (shared.py).
        tensor: ranks of one engine.
        dtype: vLLM's name of the weights' type.
        kv_bytes: KV cache of this rank.
        free_share: share of the GPU's memory that is free now.
        can_sleep: the KV cache may be given back while training (on CUDA this needs vLLM's own allocator).
    """
    args: dict[str, Any] = {
        "model": folder,
        "load_format": load_format,
        "tensor_parallel_size": tensor,
        "distributed_executor_backend": "external_launcher",
        "dtype": dtype,
        **LOGITS_IN_FP32,
        "max_model_len": max_model_len,
        "max_num_seqs": config.max_num_seqs,
        # vLLM's default depends on the GPU (16,384 on an H100); the memory ledger counts this one.
        "max_num_batched_tokens": max(config.max_num_batched_tokens, config.max_num_seqs),
        "kv_cache_memory_bytes": kv_bytes,
        "enforce_eager": config.enforce_eager or on_cpu,
        "enable_prefix_caching": True,
        "skip_tokenizer_init": True,
        # Ratios need the logprobs of the distribution that was sampled, temperature included.
        "logprobs_mode": "processed_logprobs",
        "seed": 0,
        # Asynchronous scheduling starts a batch ahead of the results, in some versions whenever these are late: the
        # ranks of an engine would differ, and so would the tokens of one seed. On CPU vLLM turns it off itself.
        "async_scheduling": False,
    }
    return args | (_cpu_args() if on_cpu else _cuda_args(config, free_share, can_sleep))


def _cpu_args() -> dict[str, Any]:
    return {"block_size": 32}


def _cuda_args(config: GeneratorConfig, free_share: float, can_sleep: bool) -> dict[str, Any]:
    """The KV cache has a given size; of `gpu_memory_utilization` vLLM only checks that it is free at the start."""
    compilation: dict[str, Any] = {
        "pass_config": {"fuse_allreduce_rms": config.all_reduce == "flashinfer"},
    }
    if not config.enforce_eager:
        compilation["cudagraph_capture_sizes"] = capture_sizes(config.max_num_seqs)
    return {
        "gpu_memory_utilization": min(config.gpu_memory_utilization, 0.95 * free_share),
        "enable_sleep_mode": can_sleep,
        "compilation_config": compilation,
    }


def capture_sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes of CUDA graphs: 1, 2, 4, multiples of 8 up to 256, then of 16, up to `max_num_seqs`.

    vLLM's own list for 256 sequences ends at 512: twice the graphs, in memory of the ledger's reserve.
    """
    largest = min(max_num_seqs, 512)
    sizes = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)]
    return [size for size in sizes if size < largest] + [largest]
