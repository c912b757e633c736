import pytest
import torch
from ralign.kernels.rms_norm import rms_norm, rms_norm_ref
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

SHAPES = pytest.mark.parametrize("shape", [(1, 5), (5, 33), (2, 3, 4, 130)])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [Qwen3RMSNorm, LlamaRMSNorm])
def test_forward_has_the_bits_of_transformers(shape, dtype, norm, implementation):
    theirs = norm(shape[-1], eps=1e-6).to(dtype)
    torch.nn.init.normal_(theirs.weight)
    x = (torch.randn(shape) * 10).to(dtype)
    ours = rms_norm(x, theirs.weight, 1e-6)
    expected = theirs(x)
    assert ours.dtype == dtype
    if implementation == "torch":
        assert torch.equal(ours, expected)
    else:  # another order of summation; and the interpreter truncates to bf16, at both of the roundings
        units = 3 if dtype == torch.bfloat16 else 4
        assert ((ours - expected).abs() <= units * torch.finfo(dtype).eps * expected.abs()).all()


def gradients(op, x, weight, dy):
    return torch.autograd.grad(op(x, weight, 1e-5), (x, weight), dy.to(x.dtype))


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_error_at_most_twice_plain_torch(shape, dtype):
    x = torch.randn(shape).to(dtype).requires_grad_()
    weight = torch.randn(shape[-1]).to(dtype).requires_grad_()
    dy = torch.randn(shape).to(dtype)
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    truth = gradients(rms_norm_ref, *exact, dy)
    for plain, ours, true in zip(
        gradients(rms_norm_ref, x, weight, dy), gradients(rms_norm, x, weight, dy), truth, strict=True
    ):
        assert ours.dtype == dtype
        floor = 2 * torch.finfo(dtype).eps * true.abs().amax()
        assert (ours - true).abs().amax() <= 2 * (plain - true).abs().amax() + floor


def test_gradcheck():
    x, weight = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(2, 3, 5), (5,)])
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-5), (x, weight))


def test_strided_input_and_rows_of_zero():
    x = torch.randn(6, 4).t().requires_grad_()
    weight = torch.randn(6)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), rms_norm(x.contiguous(), weight, 1e-5))
    zeros = torch.zeros(2, 6, requires_grad=True)
    rms_norm(zeros, weight, 1e-5).sum().backward()
    assert zeros.grad.isfinite().all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\[3, 4\] and \[5\]"):
        rms_norm(torch.randn(3, 4), torch.ones(5), 1e-5)
