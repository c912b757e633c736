"""Every access to vLLM's internals, each with the version in which it was read (see runtime/internals.py)."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from ralign.engine.runtime.internals import Internal, InternalPath

READ_IN = "0.32.0"

CPU_GEMM = Internal(
    module="vllm.model_executor.layers.utils",
    name="dispatch_cpu_unquantized_gemm",
    purpose="chooses how a linear layer on CPU reads its weight",
    read_in=READ_IN,
)
SHM_NAME = Internal(
    module="vllm.distributed.device_communicators.cpu_communicator",
    name="_CPUSHMDistributed.make_group_name",
    purpose="names the memory through which tensor-parallel ranks on CPU exchange tensors",
    read_in=READ_IN,
)
MODEL_RUNNER = (
    ("vllm.entrypoints.llm", "LLM", "llm_engine"),
    ("vllm.v1.engine.llm_engine", "LLMEngine", "model_executor"),
    ("vllm.v1.executor.uniproc_executor", "UniProcExecutor", "driver_worker"),
    ("vllm.v1.worker.worker_base", "WorkerWrapperBase", "worker"),
    ("vllm.v1.worker.gpu_worker", "Worker", "model_runner"),
)
KV_CACHES = InternalPath(
    steps=(*MODEL_RUNNER, ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "kv_caches")),
    purpose="the tensors of the KV cache, whose memory is given back while the policy trains",
    read_in=READ_IN,
)
FINALIZER = InternalPath(
    steps=(
        ("vllm.entrypoints.llm", "LLM", "llm_engine"),
        ("vllm.v1.engine.llm_engine", "LLMEngine", "engine_core"),
        ("vllm.v1.engine.core_client", "InprocClient", "_finalizer"),
    ),
    purpose="the engine's shutdown when it is deleted",
    read_in=READ_IN,
)


def linear_reads_its_weight(layer: Any, remove_weight: bool) -> None:
    """In place of `CPU_GEMM`: the layer's product reads the parameter itself, at every call.

    vLLM chooses here, by the CPU and by what is installed, a kernel that packs a private copy of the weight (oneDNN,
    the sgl kernel on CPUs with AMX, zentorch) and may empty the parameter. The engine would then keep the weights of
    its start, whatever the trainer writes.
    """
    layer.cpu_linear = torch.nn.functional.linear


def kv_cache_storages(llm: Any) -> list[torch.UntypedStorage]:
    """The storages of the engine's KV cache, each once; layers may share one. Both model runners have the list."""
    caches = KV_CACHES.get(llm)
    tensors = [x for cache in caches for x in (cache if isinstance(cache, list | tuple) else [cache])]
    storages = (tensor.untyped_storage() for tensor in tensors)
    return list({id(storage): storage for storage in storages}.values())


def named_request(request_id: str) -> str:
    """A request's id as the engine's outputs carry it: the engine appends a random part to those that it returns."""
    return request_id.split("-")[0]


def detach_shutdown(llm: Any) -> None:
    """Cancel the engine's shutdown at its deletion, which would end the job's process groups, too."""
    FINALIZER.get(llm).detach()


@torch.no_grad()
def layer_errors(model: torch.nn.Module) -> dict[str, float]:
    """Difference between a layer's product and its parameter's, over the largest entry, for every linear layer.

    `quant_method.apply` is the product that the layer's forward computes on this rank, without collectives. A layer
    whose parameter was emptied has an infinite error.
    """
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    errors = {}
    layers: Iterable[tuple[str, Any]] = model.named_modules()
    for name, layer in layers:
        if not isinstance(layer, LinearBase | VocabParallelEmbedding):
            continue
        weight: Any = layer.weight
        if weight.ndim != 2:
            errors[name] = math.inf  # emptied: the layer computes with a copy
            continue
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, weight.shape[1], generator=generator).to(weight)
        expected = torch.nn.functional.linear(x, weight).float()
        error = (layer.quant_method.apply(layer, x).float() - expected).abs().max()
        errors[name] = float(error / expected.abs().max())
    return errors
