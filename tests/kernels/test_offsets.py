"""Rows more than 2³¹ elements apart: a 32-bit offset would overflow."""

import pytest
import torch
from ralign.kernels.logprob import logprob, logprob_ref
from ralign.kernels.rms_norm import rms_norm, rms_norm_ref

ROW_STRIDE = 2**31 + 8  # elements


@pytest.fixture
def far_apart(tmp_path):
    """Makes a tensor [2, n] fp32 whose rows start 8 GiB apart, in a sparse file of which two pages exist."""

    def make(num_columns):
        storage = torch.from_file(str(tmp_path / "sparse"), shared=True, size=ROW_STRIDE + num_columns)
        x = storage.as_strided((2, num_columns), (ROW_STRIDE, 1))
        x.copy_(torch.randn(2, num_columns))
        return x

    return make


@pytest.mark.skipif(torch.cuda.is_available(), reason="maps a file into host memory")
def test_logprob_and_its_gradient_in_place(far_apart):
    logits = far_apart(100)
    expected = logits.clone().requires_grad_()
    targets = torch.tensor([3, 99])
    theirs = logprob_ref(expected, targets)
    torch.autograd.backward(theirs, [torch.ones(2)] * 2)
    logits.requires_grad_()
    ours = logprob(logits, targets, valid_vocab=100, overwrite_logits=True)
    torch.testing.assert_close(ours, theirs)
    torch.autograd.backward(ours, [torch.ones(2)] * 2)
    torch.testing.assert_close(logits.detach(), expected.grad)  # the gradient overwrites the logits


@pytest.mark.skipif(torch.cuda.is_available(), reason="maps a file into host memory")
def test_rms_norm(far_apart):
    x = far_apart(64)
    weight = torch.randn(64)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), rms_norm_ref(x.clone(), weight, 1e-6))
