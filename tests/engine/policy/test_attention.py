"""Which kernel packs attention on CUDA, and how it is called. Without a GPU the kernels are stood in for."""

import inspect
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from ralign.engine.policy import attention
from ralign.engine.policy.context import sequence_bounds
from torch.nn.attention import varlen


@pytest.fixture(autouse=True)
def _no_choice_is_kept():
    attention.varlen_kernel.cache_clear()
    yield
    attention.varlen_kernel.cache_clear()


def call(kernel) -> object:
    packed = SimpleNamespace(cu_seqlens_q="cu_q", cu_seqlens_kv="cu_k", max_seqlen_q=7, max_seqlen_kv=9)
    return kernel("query", "key", "value", *vars(packed).values())


def torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    return "torch", window_size


def torch_2_12(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False
):
    return "torch", window_size, enable_gqa


def install_flash_attn(monkeypatch) -> None:
    """A compiled flash-attn 2."""
    package, compiled = ModuleType("flash_attn"), ModuleType("flash_attn_2_cuda")
    compiled.__spec__ = SimpleNamespace()
    package.flash_attn_varlen_func = lambda *args, causal: ("flash-attn", args[3:], causal)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn_2_cuda", compiled)


def test_torchs_kernel_where_keys_may_have_fewer_heads(monkeypatch):
    install_flash_attn(monkeypatch)
    monkeypatch.setattr(varlen, "varlen_attn", torch_2_12)
    assert call(attention.varlen_kernel()) == ("torch", (-1, 0), True)


def test_flash_attn_where_torchs_does_not_say_so(monkeypatch):
    install_flash_attn(monkeypatch)
    monkeypatch.setattr(varlen, "varlen_attn", torch_2_11)
    assert call(attention.varlen_kernel()) == ("flash-attn", ("cu_q", "cu_k", 7, 9), True)


def test_torchs_kernel_where_nothing_else_is_installed(monkeypatch):
    # A package of that name without the compiled kernels (flash-attn 4 is one) is not what is wanted.
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setattr(varlen, "varlen_attn", torch_2_11)
    assert call(attention.varlen_kernel()) == ("torch", (-1, 0))


def test_the_installed_torch_takes_the_call():
    kernel = attention.varlen_kernel()
    bound = inspect.signature(kernel.func).bind(*range(7), **kernel.keywords)
    assert bound.arguments["window_size"] == (-1, 0)


@pytest.mark.parametrize("dtype, expected", [(torch.bfloat16, "kernel"), (torch.float32, "by length")])
def test_fp32_on_a_gpu_goes_the_way_of_the_cpu(monkeypatch, dtype, expected):
    """The kernels compute in half precision alone."""
    monkeypatch.setattr(attention, "varlen_kernel", lambda: lambda *_: "kernel")
    monkeypatch.setattr(attention, "_attention_by_length", lambda *_: "by length")
    query = SimpleNamespace(device=torch.device("cuda"), dtype=dtype)
    packed = SimpleNamespace(cu_seqlens_q=0, cu_seqlens_kv=0, max_seqlen_q=0, max_seqlen_kv=0)
    assert attention.packed_attention(query, None, None, packed) == expected


def attend(attention_function, tensors, packed, dtype) -> list[torch.Tensor]:
    """Output and gradients in fp32, on the CPU; the loss weights every number differently."""
    query, key, value = (x.to(dtype, copy=True).requires_grad_() for x in tensors)
    out = attention_function(query, key, value, packed)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
    (out.float() * weights).sum().backward()
    return [x.detach().float().cpu() for x in (out, query.grad, key.grad, value.grad)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("ranks, rank", [(1, 0), (2, 0), (2, 1)])
def test_the_kernel_agrees_with_sdpa(ranks, rank):
    """Groups of 4 heads to a key, also where a rank has only the middle or the end of a sequence."""
    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(0)
    lengths = torch.tensor([300, 1, 77, 512, 38, 96])
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int().to(device)
    share = int(lengths.sum()) // ranks
    own = slice(rank * share, (rank + 1) * share)
    queries, keys = sequence_bounds(cu_seqlens, own)
    longest = {"max_seqlen_q": 512, "max_seqlen_kv": 512}
    packed = SimpleNamespace(cu_seqlens_q=queries, cu_seqlens_kv=keys, **longest)
    shapes = [(share, 8, 128), (own.stop, 2, 128), (own.stop, 2, 128)]
    tensors = [torch.randn(shape, device=device, generator=generator) for shape in shapes]
    expected = attend(attention.packed_attention, tensors, packed, torch.float32)
    plain = attend(attention._attention_by_length, tensors, packed, torch.bfloat16)
    found = attend(attention.packed_attention, tensors, packed, torch.bfloat16)
    for right, torchs, ours in zip(expected, plain, found, strict=True):
        assert (ours - right).norm() <= 2 * (torchs - right).norm()
