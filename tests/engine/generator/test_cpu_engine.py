"""On any CPU the engine's layers read their parameters; stubs stand for the kernels that would pack a copy.

Which kernel vLLM takes depends on the CPU: oneDNN, or with AMX the sgl kernel, which also empties the parameter. Here
vLLM's own code is made to take each, as it would on such a CPU.
"""

import pytest
import torch
from ralign.engine.generator.cpu_engine import unpacked_weights
from torch import nn
from vllm import _custom_ops
from vllm.model_executor.layers import utils
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod


def sgl_kernel(monkeypatch) -> None:
    """As on a CPU with AMX."""
    monkeypatch.setattr(utils, "check_cpu_sgl_kernel", lambda n, k, dtype: True)
    monkeypatch.setattr(torch.ops._C, "convert_weight_packed", torch.clone, raising=False)
    monkeypatch.setattr(_custom_ops, "weight_packed_linear_cpu", lambda x, packed, n, bias: x @ packed.t())


def onednn(monkeypatch) -> None:
    monkeypatch.setattr(utils, "check_cpu_sgl_kernel", lambda n, k, dtype: False)
    monkeypatch.setattr(_custom_ops, "_supports_onednn", True)
    monkeypatch.setattr(_custom_ops, "create_onednn_mm", lambda weight, block: weight.clone())
    monkeypatch.setattr(_custom_ops, "onednn_mm", lambda packed, x, bias: x @ packed)


def loaded_layer(method) -> nn.Module:
    """A layer as vLLM leaves it when a model is loaded."""
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.randn(32, 64, dtype=torch.bfloat16), requires_grad=False)
    method.process_weights_after_loading(layer)
    return layer


def follows_its_parameter(layer: nn.Module) -> bool:
    """Whether the layer's product is the parameter's after a change in place."""
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    if layer.weight.numel() == 0:
        return False
    layer.weight.data.neg_()
    return torch.allclose(layer.cpu_linear(x, layer.weight, None), x @ layer.weight.t(), atol=0.1)


@pytest.mark.parametrize("method", [UnquantizedLinearMethod, UnquantizedEmbeddingMethod])
@pytest.mark.parametrize("kernel", [sgl_kernel, onednn])
def test_layers_read_their_parameters_whatever_the_cpu(kernel, method, monkeypatch):
    kernel(monkeypatch)
    assert not follows_its_parameter(loaded_layer(method())), (
        "the stub does not take vLLM to its packing kernel"
    )
    with unpacked_weights():
        layer = loaded_layer(method())
    assert follows_its_parameter(layer)
