import os

import pytest
import torch
from ralign.kernels.linear_logprob import linear_logprob
from ralign.kernels.logprob import IGNORE, logprob, logprob_ref

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def from_logits(logits, targets, **options):
    return logprob(logits, targets, **options)


def from_identity_head(logits, targets, **options):
    """Passes the same logits through the LM head: the hidden states are the logits, the weight is the identity."""
    eye = torch.eye(logits.shape[1], dtype=logits.dtype)
    return linear_logprob(logits, eye, targets, chunk_tokens=3, **options)


OPS = pytest.mark.parametrize("op", [from_logits, from_identity_head])


def values_and_gradient(op, logits, targets, **options):
    logits = logits.clone().requires_grad_()
    logprobs, entropy = op(logits, targets, **options)
    upstream = torch.linspace(-1, 2, len(targets), dtype=logprobs.dtype)
    (logprobs * upstream + entropy * upstream.flip(0)).sum().backward()
    return logprobs.detach(), entropy.detach(), logits.grad


def reference(logits, targets, *, temperature, valid_vocab):
    return values_and_gradient(logprob_ref, logits, targets, temperature=temperature, valid_vocab=valid_vocab)


def assert_as_good_as_torch(op, logits, targets, *, temperature=1.0, valid_vocab):
    """The error against float64 is at most twice that of plain torch in fp32, plus a floor of the last digit."""
    options = {"temperature": temperature, "valid_vocab": valid_vocab}
    truth = reference(logits.double(), targets, **options)
    plain = reference(logits, targets, **options)
    ours = values_and_gradient(op, logits, targets, **options)
    for name, exact, torchs, mine in zip(("logprob", "entropy", "gradient"), truth, plain, ours, strict=True):
        assert not mine[~exact.isnan()].isnan().any(), name
        finite = exact.isfinite()
        assert torch.equal(mine[~finite].double().nan_to_num(7), exact[~finite].nan_to_num(7)), name
        allowed = 2 * (torchs - exact)[finite].abs().amax() + 2 * EPS * (1 + exact[finite].abs().amax())
        assert (mine - exact)[finite].abs().amax() <= allowed, name


@OPS
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 7), (5, 1000, 997), (33, 259, 256)])
@pytest.mark.parametrize("offset", [-1000.0, -20.0, 0.0, 200.0])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradient(op, shape, offset, temperature):
    num_rows, num_columns, valid_vocab = shape
    torch.manual_seed(num_columns)
    logits = torch.randn(num_rows, num_columns) * 3 + offset
    targets = torch.randint(0, valid_vocab, (num_rows,))
    targets[num_rows // 2 :: 4] = IGNORE
    assert_as_good_as_torch(op, logits, targets, temperature=temperature, valid_vocab=valid_vocab)


@pytest.mark.parametrize("offset", [-20.0, 0.0, 200.0])
def test_values_and_gradient_of_bf16_logits(offset):
    """Neither error includes the rounding of the logits: the reference reads the rounded logits."""
    logits = (torch.randn(33, 259) * 3 + offset).bfloat16()
    targets = torch.randint(0, 256, (33,))
    targets[::4] = IGNORE
    assert_as_good_as_torch(from_logits, logits, targets, temperature=0.6, valid_vocab=256)


@OPS
@pytest.mark.parametrize("p", [0.99, 0.999, 1 - 1e-6])
def test_gradient_of_a_confident_true_class(op, p):
    logits = torch.zeros(3, 101)
    logits[:, 5] = torch.logit(torch.tensor(p, dtype=torch.float64)) + torch.tensor(100.0).log()
    assert_as_good_as_torch(op, logits, torch.tensor([5, 5, 6]), valid_vocab=101)


def test_bf16_gradient_of_a_confident_true_class_is_rounded_once():
    logits = torch.zeros(1, 101, dtype=torch.bfloat16)
    logits[0, 5] = 11.5
    exact = reference(logits.double(), torch.tensor([5]), temperature=1.0, valid_vocab=101)[2]
    ours = values_and_gradient(logprob, logits, torch.tensor([5]), valid_vocab=101)[2]
    # Half a unit in the last place of bf16, and the error of fp32. The interpreter truncates: one unit.
    assert (ours / exact - 1).abs().amax() <= (2**-7 if INTERPRETED else 2**-8)


def test_logits_of_minus_infinity():
    logits = torch.randn(4, 9)
    logits[0, 3:] = -torch.inf
    logits[1, :8] = -torch.inf
    logits[2, 4] = -torch.inf
    targets = torch.tensor([1, 8, 4, 0])  # the target of row 2 is an impossible token
    assert_as_good_as_torch(from_logits, logits, targets, valid_vocab=9)


@OPS
def test_padded_columns_have_no_effect(op):
    logits = torch.randn(6, 11)
    logits[:, 8:] = 50.0
    targets = torch.tensor([0, 7, 3, IGNORE, 2, 2])
    padded = values_and_gradient(op, logits, targets, valid_vocab=8)
    plain = values_and_gradient(op, logits[:, :8], targets, valid_vocab=8)
    for a, b in zip(padded, (*plain[:2], torch.nn.functional.pad(plain[2], (0, 3))), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@OPS
def test_ignored_rows_are_zero_even_if_they_hold_nan(op):
    logits = torch.randn(5, 13)
    logits[[1, 4]] = torch.nan
    targets = torch.tensor([3, IGNORE, 12, 0, IGNORE])
    for result in values_and_gradient(op, logits, targets, valid_vocab=13):
        assert (result[[1, 4]] == 0).all() and result.isfinite().all() and (result[[0, 2, 3]] != 0).any()
    for result in values_and_gradient(op, logits, torch.full((5,), IGNORE), valid_vocab=13):
        assert (result == 0).all()


@OPS
def test_the_logprob_of_a_target_outside_the_vocabulary_is_nan(op):
    logprobs, _ = op(torch.randn(4, 8), torch.tensor([0, 6, -1, 5]), valid_vocab=6)
    assert logprobs.isnan().tolist() == [False, True, True, False]


def test_strided_logits():
    logits = torch.randn(50, 14)[::2, ::2].t()  # [7, 25], neither dimension contiguous
    assert not logits.is_contiguous()
    assert_as_good_as_torch(from_logits, logits, torch.arange(7), valid_vocab=25)


@OPS
@pytest.mark.parametrize("used", [0, 1])
def test_one_output_used_alone(op, used):
    logits = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 5, IGNORE])
    assert torch.autograd.gradcheck(lambda x: op(x, targets, valid_vocab=6, temperature=0.7)[used], (logits,))


@OPS
def test_invalid_arguments_are_rejected(op):
    logits, targets = torch.randn(3, 6), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="int32"):
        op(logits, targets.int(), valid_vocab=6)
    with pytest.raises(ValueError, match=r"\[2\]"):
        op(logits, targets[:2], valid_vocab=6)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        op(logits, targets, valid_vocab=6, temperature=0.0)
    with pytest.raises(ValueError, match="valid_vocab=7"):
        op(logits, targets, valid_vocab=7)
