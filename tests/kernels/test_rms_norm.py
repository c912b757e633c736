import pytest
import torch
from ralign.kernels import rms_norm as module
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
    else:  # another order of summation, and the interpreter truncates both roundings to bf16
        units = 3 if dtype == torch.bfloat16 else 4
        assert ((ours - expected).abs() <= units * torch.finfo(dtype).eps * expected.abs()).all()


def value_and_gradients(op, x, weight, dy):
    y = op(x, weight, 1e-5)
    return y.detach(), *torch.autograd.grad(y, (x, weight), dy.to(x.dtype))


def assert_error_at_most_twice_plain_torch(x, weight, dy):
    x, weight = x.requires_grad_(), weight.requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    truth = value_and_gradients(rms_norm_ref, *exact, dy)
    plain, ours = (value_and_gradients(op, x, weight, dy) for op in (rms_norm_ref, rms_norm))
    for theirs, found, true in zip(plain, ours, truth, strict=True):
        assert found.dtype == x.dtype
        # Two units; in float64 six, since the truth is rounded, too, and the sums over rows differ in order.
        units = 6 if x.dtype == torch.float64 else 2
        floor = units * torch.finfo(x.dtype).eps * true.abs().amax()
        assert (found - true).abs().amax() <= 2 * (theirs - true).abs().amax() + floor


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_error_at_most_twice_plain_torch(shape, dtype):
    x, weight, dy = (
        torch.randn(shape).to(dtype),
        torch.randn(shape[-1]).to(dtype),
        torch.randn(shape).to(dtype),
    )
    assert_error_at_most_twice_plain_torch(x, weight, dy)


# Views [tokens, heads, size] of larger tensors, by the layout of their rows.
IN_PLACE = {
    "split heads": lambda mixed: mixed.split([5, 2, 2], dim=1)[0],
    "last heads of a split": lambda mixed: mixed.split([5, 2, 2], dim=1)[2],
    "one head": lambda mixed: mixed[:, 3:4],
    "one token": lambda mixed: mixed[3:4, :5],
    "every other token": lambda mixed: mixed[::2],
    "tokens and heads exchanged": lambda mixed: mixed.transpose(0, 1),
    "columns of wider rows": lambda mixed: mixed[..., 1:-2],
    "columns of split heads": lambda mixed: mixed[:, 2:7, :-3],
    "one token for all": lambda mixed: mixed[:1].expand(7, -1, -1),
    "two strides of four dimensions": lambda mixed: mixed[:, :5].unflatten(0, (7, 1)),
}
COPIED = {
    "three strides": lambda mixed: torch.stack([mixed] * 3)[:, ::2, ::2],
    "columns apart": lambda mixed: mixed[..., ::2],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [8, 37])
@pytest.mark.parametrize("layout", IN_PLACE | COPIED)
def test_views_are_as_exact_as_plain_torch(layout, size, dtype):
    """x and dy are views with different strides."""
    x = (IN_PLACE | COPIED)[layout](torch.randn(7, 9, size).to(dtype))
    dy = torch.randn(*x.shape[:-2], x.shape[-2] + 2, x.shape[-1]).to(dtype)[..., 2:, :]
    assert_error_at_most_twice_plain_torch(x, torch.randn(x.shape[-1]).to(dtype), dy)


class Recorder:
    """Replaces a kernel and records the addresses of its tensor arguments, by name."""

    def __init__(self, kernel, launches: bool):
        self.kernel, self.launches, self.addresses = kernel, launches, {}

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.launch(grid, *args, **kwargs)

    def launch(self, grid, *args, **kwargs):
        named = zip(self.kernel.arg_names, args, strict=False)
        self.addresses |= {name: x.data_ptr() for name, x in named if isinstance(x, torch.Tensor)}
        if self.launches:
            self.kernel[grid](*args, **kwargs)


@pytest.mark.parametrize("layout", IN_PLACE | COPIED)
def test_views_are_read_in_place(layout, implementation, monkeypatch):
    """The kernels receive the views, not copies. They are not launched where Triton cannot run."""
    forward, backward = (
        Recorder(kernel, launches=implementation == "triton")
        for kernel in (module._forward_kernel, module._backward_kernel)
    )
    monkeypatch.setattr(module, "_forward_kernel", forward)
    monkeypatch.setattr(module, "_backward_kernel", backward)
    monkeypatch.setattr(module, "uses_triton", lambda *_: True)
    view = (IN_PLACE | COPIED)[layout]
    x, dy = (view(torch.randn(7, 9, 16)) for _ in range(2))
    y = rms_norm(x.requires_grad_(), torch.randn(x.shape[-1]), 1e-5)
    torch.autograd.grad(y, x, dy)
    in_place = [forward.addresses["x"], backward.addresses["x"]] == [x.data_ptr()] * 2
    assert in_place == (backward.addresses["dy"] == dy.data_ptr()) == (layout in IN_PLACE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="maps a file into host memory")
@pytest.mark.parametrize("stride", [2**30 + 8, 2**31 + 8], ids=["32-bit stride", "64-bit stride"])
@pytest.mark.parametrize("shape", [(3, 2, 64), (2, 3, 64)])
def test_rows_more_than_32_bits_of_offset_apart(shape, stride, tmp_path):
    """Uses a sparse file, of which a few pages exist. The smaller stride overflows only multiplied by a row."""
    strides = (stride, 70, 1) if shape[0] == 3 else (70, stride, 1)
    storage = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2 * stride + 200)
    x = storage.as_strided(shape, strides)
    x.copy_(torch.randn(shape))
    assert_error_at_most_twice_plain_torch(x, torch.randn(64), dy=x.detach())


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


def test_invalid_arguments_are_rejected():
    with pytest.raises(ValueError, match=r"\[3, 4\] and \[5\]"):
        rms_norm(torch.randn(3, 4), torch.ones(5), 1e-5)
