"""Every access to vLLM's internals: what is not its public interface, with the version in which it was read.

vLLM may move these in any release. `require` and `replaced` then say which access is missing and what it is for,
before an engine is built; tests/engine/generator/test_vllm_internals.py holds them against the installed version.
"""

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

READ_IN = "0.32.0"

# Module, attribute (dotted inside the module), what it is for. All modules import on every machine.
CPU_GEMM = (
    "vllm.model_executor.layers.utils",
    "dispatch_cpu_unquantized_gemm",
    "how a linear layer on CPU reads its weight",
)
SHM_NAME = (
    "vllm.distributed.device_communicators.cpu_communicator",
    "_CPUSHMDistributed.make_group_name",
    "the name of the memory that tensor-parallel ranks on CPU exchange through",
)
Access = tuple[str, str, str]


class MissingInternal(RuntimeError):
    """The installed vLLM has no such internal."""


def require(access: Access) -> Any:
    """The internal that `access` names.

    Raises:
        MissingInternal: the installed vLLM has none, in one sentence.
    """
    module, names, purpose = access
    try:
        found: Any = importlib.import_module(module)
        for name in names.split("."):
            found = vars(found)[name] if isinstance(found, type) else getattr(found, name)
    except (ImportError, AttributeError, KeyError) as error:
        import vllm

        raise MissingInternal(
            f"vLLM {vllm.__version__} has no {module}.{names} ({purpose}), which ralign replaces; it was read in "
            f"vLLM {READ_IN}"
        ) from error
    return found


@contextmanager
def replaced(access: Access, replacement: Any) -> Iterator[Any]:
    """While open, the internal is `replacement`; yields the original.

    Raises:
        MissingInternal: as `require` does.
    """
    original = require(access)
    module, names, _ = access
    *path, last = names.split(".")
    owner: Any = importlib.import_module(module)
    for name in path:
        owner = getattr(owner, name)
    setattr(owner, last, replacement)
    try:
        yield original
    finally:
        setattr(owner, last, original)


def linear_reads_its_weight(layer: torch.nn.Module, remove_weight: bool) -> None:
    """In place of `CPU_GEMM`: the layer's product reads the parameter itself, at every call.

    vLLM chooses here, by the CPU and by what is installed, a kernel that packs a private copy of the weight (oneDNN,
    the sgl kernel on CPUs with AMX, zentorch) and may empty the parameter: the engine would go on with the weights of
    its start, whatever the trainer writes.
    """
    layer.cpu_linear = torch.nn.functional.linear


def kv_cache_storages(llm: Any) -> list[torch.UntypedStorage]:
    """The storages of the engine's KV cache, each once; layers may share one. Both model runners keep this list."""
    caches = llm.llm_engine.model_executor.driver_worker.worker.model_runner.kv_caches
    tensors = [x for cache in caches for x in (cache if isinstance(cache, list | tuple) else [cache])]
    storages: dict[int, torch.UntypedStorage] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages.setdefault(storage._cdata, storage)
    return list(storages.values())


def named_request(name: str) -> str:
    """A request's id as the engine's outputs carry it: the engine appends a random part to those it returns."""
    return name.split("-")[0]


def detach_shutdown(llm: Any) -> None:
    """Take back the engine's shutdown at its deletion, which would end the job's process groups, too."""
    llm.llm_engine.engine_core._finalizer.detach()


@torch.no_grad()
def layer_errors(model: torch.nn.Module) -> dict[str, float]:
    """Of every layer that multiplies by a matrix: how far its product is from its parameter's, over the largest entry.

    `quant_method.apply` is the product that the layer's forward computes on this rank, without collectives.
    """
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    errors = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LinearBase | VocabParallelEmbedding):
            continue
        weight = layer.weight
        if weight.ndim != 2:
            errors[name] = math.inf  # emptied: what it computes with lies elsewhere
            continue
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, weight.shape[1], generator=generator).to(weight)
        expected = torch.nn.functional.linear(x, weight).float()
        error = (layer.quant_method.apply(layer, x).float() - expected).abs().max()
        errors[name] = float(error / expected.abs().max())
    return errors
