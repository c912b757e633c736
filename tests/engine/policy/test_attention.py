"""Packed attention by SDPA and by a kernel. Without a GPU, a reference replaces the kernel."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from ralign.engine.policy import attention, flash_attention
from ralign.engine.policy.context import sequence_bounds

BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def _no_choice_is_kept():
    flash_attention.varlen_kernel.cache_clear()
    yield
    flash_attention.varlen_kernel.cache_clear()


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype, expected", [(BF16, "kernel"), (torch.float32, "by length")])
def test_fp32_on_a_gpu_goes_the_way_of_the_cpu(monkeypatch, dtype, expected):
    """The kernels compute in half precision alone."""
    monkeypatch.setattr(attention, "varlen_kernel", lambda *_: lambda *_: "kernel")
    monkeypatch.setattr(attention, "_attention_by_length", lambda *_: "by length")
    query = SimpleNamespace(device=torch.device("cuda"), dtype=dtype, shape=(1, 1, 128))
    packed = SimpleNamespace(cu_seqlens_q=0, cu_seqlens_kv=0, max_seqlen_q=0, max_seqlen_kv=0)
    assert attention.packed_attention(query, None, None, packed) == expected


def attend(attention_function, tensors, packed, dtype) -> list[torch.Tensor]:
    """Output and gradients in fp32, on the CPU; the loss weights every number differently."""
    query, key, value = (x.to(dtype, copy=True).requires_grad_() for x in tensors)
    out = attention_function(query, key, value, packed)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
    (out.float() * weights).sum().backward()
    return [x.detach().float().cpu() for x in (out, query.grad, key.grad, value.grad)]


def part_of_a_batch(lengths, ranks, rank, num_heads, num_groups, head_size, device="cpu"):
    """Query, key and value of a context-parallel rank, and their bounds. Some sequences end before its part, one or two
    are cut, some start after it. The longest sequence is that of the whole micro-batch."""
    generator = torch.Generator().manual_seed(0)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    share = int(cu_seqlens[-1]) // ranks
    own = slice(rank * share, (rank + 1) * share)
    queries, keys = (x.to(device) for x in sequence_bounds(cu_seqlens, own))
    longest = {"max_seqlen_q": max(lengths), "max_seqlen_kv": max(lengths)}
    packed = SimpleNamespace(cu_seqlens_q=queries, cu_seqlens_kv=keys, **longest)
    sizes = [(share, num_heads), (own.stop, num_groups), (own.stop, num_groups)]
    return [torch.randn(*size, head_size, generator=generator).to(device) for size in sizes], packed


def flash_attn_4_reference(
    q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, deterministic
):
    """The interface of flash-attn 4, one sequence at a time. Rows of no sequence are NaN, in the gradients as well."""
    assert causal and not deterministic
    output, lse = torch.full_like(q, float("nan")), torch.full(q.shape[:2], float("nan"))
    for x, bounds in ((q, cu_seqlens_q), (k, cu_seqlens_k), (v, cu_seqlens_k)):
        assert bounds.dtype == torch.int32 and bounds.is_contiguous()
        x.register_hook(partial(lambda last, gradient: poisoned(gradient, last), int(bounds[-1])))
    repeats = q.shape[1] // k.shape[1]
    bounds = zip(cu_seqlens_q[:-1], cu_seqlens_q[1:], cu_seqlens_k[:-1], cu_seqlens_k[1:], strict=True)
    for q_start, q_end, k_start, k_end in torch.tensor(list(bounds)).tolist():
        num_queries, num_keys = q_end - q_start, k_end - k_start
        assert num_queries <= max_seqlen_q and num_keys <= max_seqlen_k
        keys, values = (x[k_start:k_end].repeat_interleave(repeats, 1).float() for x in (k, v))
        scores = torch.einsum("qhd,khd->qhk", q[q_start:q_end].float(), keys) / q.shape[-1] ** 0.5
        sees = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
        scores = scores.masked_fill(~sees[:, None], float("-inf"))
        attended = torch.einsum("qhk,khd->qhd", scores.softmax(-1), values).to(q.dtype)
        output = output.index_put((torch.arange(q_start, q_end),), attended)
        lse[q_start:q_end] = scores.detach().logsumexp(-1)
    return output, lse.t()


def poisoned(gradient, last):
    gradient = gradient.clone()
    gradient[last:] = float("nan")
    return gradient


@pytest.mark.parametrize(("num_heads", "num_groups"), [(4, 4), (8, 2), (8, 1)])
@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 0), (2, 1), (4, 1), (4, 3)])
def test_packed_attention_by_flash_attn_4(ranks, rank, num_heads, num_groups, monkeypatch):
    """With the reference in its place, outputs and gradients are those of SDPA, on every context-parallel rank."""
    kernel = partial(flash_attention._call_flash_attn_4, flash_attn_4_reference)
    monkeypatch.setattr(attention, "varlen_kernel", lambda *_: kernel)
    monkeypatch.setattr(attention, "_has_kernel", lambda query: query.dtype == BF16)
    tensors, packed = part_of_a_batch([30, 1, 7, 52, 3, 27], ranks, rank, num_heads, num_groups, 64)
    expected = attend(attention.packed_attention, tensors, packed, torch.float32)
    plain = attend(attention._attention_by_length, tensors, packed, BF16)
    found = attend(attention.packed_attention, tensors, packed, BF16)
    for right, torchs, ours in zip(expected, plain, found, strict=True):
        assert (ours - right).norm() <= 2 * (torchs - right).norm()


def on_gpu(name, monkeypatch):
    """Takes the kernel of that name, or skips the test."""
    if name == "torch":
        monkeypatch.setattr(flash_attention, "_installed", lambda _: False)
    elif torch.cuda.get_device_capability()[0] not in (9, 10) or not flash_attention._installed(
        "flash-attn-4"
    ):
        pytest.skip("flash-attn 4 needs compute capability 9 or 10, and the package")
    return torch.device("cuda", torch.cuda.current_device())


ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
KERNELS = pytest.mark.parametrize("name", ["torch", "flash-attn-4"])
LENGTHS = [300, 1, 77, 512, 38, 96]


@pytest.mark.gpu
@ON_GPU
@KERNELS
@pytest.mark.parametrize("head_size", flash_attention.HEAD_SIZES)
@pytest.mark.parametrize(("num_heads", "num_groups"), [(4, 4), (8, 2), (8, 1), (10, 2)])
@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 0), (2, 1), (4, 3)])
def test_a_kernel_agrees_with_sdpa(name, ranks, rank, num_heads, num_groups, head_size, monkeypatch):
    """Also where a rank has only the middle or the end of a sequence; keys before its part have gradient 0."""
    device = on_gpu(name, monkeypatch)
    tensors, packed = part_of_a_batch(LENGTHS, ranks, rank, num_heads, num_groups, head_size, device)
    expected = attend(attention.packed_attention, tensors, packed, torch.float32)
    plain = attend(attention._attention_by_length, tensors, packed, BF16)
    found = attend(attention.packed_attention, tensors, packed, BF16)
    for right, torchs, ours in zip(expected, plain, found, strict=True):
        assert (ours - right).norm() <= 2 * (torchs - right).norm()


@pytest.mark.gpu
@ON_GPU
@KERNELS
@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 1)])
def test_deterministic_gradients_have_the_same_bits(name, ranks, rank, monkeypatch, deterministic):
    """Long sequences, so that many programs add to one gradient of a query."""
    device = on_gpu(name, monkeypatch)
    tensors, packed = part_of_a_batch([4000, 6000, 100, 6284], ranks, rank, 16, 2, 128, device)
    first, *others = (attend(attention.packed_attention, tensors, packed, BF16) for _ in range(5))
    for other in others:
        assert all(torch.equal(x, y) for x, y in zip(first, other, strict=True))


@pytest.mark.gpu
@ON_GPU
def test_views_of_a_projection_give_what_copies_give(monkeypatch):
    """As attention has them: value is a part of the projection's output, with its row stride."""
    device = on_gpu("flash-attn-4", monkeypatch)
    _, packed = part_of_a_batch(LENGTHS, 1, 0, 8, 2, 128, device)
    mixed = torch.randn(sum(LENGTHS), 12, 128, device=device, dtype=BF16)
    views = mixed.split([8, 2, 2], dim=1)
    copies = [x.contiguous() for x in views]
    assert torch.equal(
        attention.packed_attention(*views, packed), attention.packed_attention(*copies, packed)
    )
