"""vLLM on the trainer's memory: a model loader that makes vLLM's parameters views of Megatron's.

The loader is vLLM's public hook. It builds the model without memory (`torch.empty` gives meta tensors while the modules
are built), then replaces each parameter by the given tensor. No byte is copied, neither then nor at an update.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

LOAD_FORMAT = "ralign_shared"
EMPTY_FORMAT = "ralign_empty"
HEAD = "lm_head.weight"


class _EmptyOnMeta(TorchFunctionMode):
    """`torch.empty` without memory: vLLM allocates every large parameter with it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def register_shared_loader(parameters: dict[str, Tensor]) -> str:
    """Register the loader for these tensors (vLLM's name -> local shard); returns its `load_format`."""

    @register_model_loader(LOAD_FORMAT)
    class SharedLoader(BaseModelLoader):
        def download_model(self, model_config) -> None:
            pass

        def create_model(self, *args, **kwargs) -> nn.Module:
            with _EmptyOnMeta():
                return super().create_model(*args, **kwargs)

        def load_weights(self, model: nn.Module, model_config) -> None:
            adopt(model, parameters)

    return LOAD_FORMAT


def register_empty_loader() -> str:
    """A `load_format` that gives vLLM parameters of its own, all zero, for the gather path to fill.

    vLLM ties a head again that it untied: it compares head and embedding after loading, and here both are zero.
    """

    @register_model_loader(EMPTY_FORMAT)
    class EmptyLoader(BaseModelLoader):
        def download_model(self, model_config) -> None:
            pass

        def load_weights(self, model: nn.Module, model_config) -> None:
            for parameter in model.parameters():
                parameter.data.zero_()

    return EMPTY_FORMAT


def adopt(model: nn.Module, parameters: dict[str, Tensor]) -> None:
    """Replace every parameter of a vLLM model by the tensor of the same name; shapes and dtypes must agree."""
    if HEAD not in parameters:
        _tie_head(model)
    names = [name for name, _ in model.named_parameters()]
    missing, unknown = set(names) - set(parameters), set(parameters) - set(names)
    assert not missing and not unknown, (
        f"layouts differ: only vLLM has {missing}, only Megatron has {unknown}"
    )
    views = {id(old): _view(name, old, parameters[name]) for name, old in model.named_parameters()}
    for module in model.modules():  # a tied output layer holds the embedding's parameter a second time
        for leaf, old in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            setattr(module, leaf, views[id(old)])
    for name, tensor in _state(model):
        assert tensor.device.type != "meta", f"vLLM tensor {name} was never given memory"


def _tie_head(model: Any) -> None:
    """Make the engine's head its embedding, as in the policy.

    vLLM unties them if the model's files hold a head although the config ties it, as in some published models (loading
    the policy compares the two).
    """
    embedding = model.model.embed_tokens
    if model.lm_head is not embedding:  # vLLM 0.26: a tied Qwen2's head is the embedding itself
        model.lm_head = model.lm_head.tie_weights(embedding)


def _view(name: str, old: nn.Parameter, tensor: Tensor) -> nn.Parameter:
    assert old.shape == tensor.shape and old.dtype == tensor.dtype, (
        f"{name}: vLLM expects {tuple(old.shape)} {old.dtype}, Megatron holds {tuple(tensor.shape)} {tensor.dtype}"
    )
    view = nn.Parameter(tensor, requires_grad=False)
    vars(view).update(vars(old))
    return view


def _state(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
