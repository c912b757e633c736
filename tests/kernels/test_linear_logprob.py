import pytest
import torch
from ralign.kernels.linear_logprob import linear_logprob, linear_logprob_ref
from ralign.kernels.logprob import IGNORE
from torch.utils._python_dispatch import TorchDispatchMode


def inputs(num_tokens=19, hidden_size=8, vocab=53, dtype=torch.float64):
    generator, device = torch.Generator("cpu").manual_seed(0), torch.get_default_device()
    hidden, weight = (
        torch.randn(rows, hidden_size, generator=generator, dtype=torch.float64, device="cpu")
        for rows in (num_tokens, vocab)
    )
    targets = torch.randint(0, vocab - 3, (num_tokens,), generator=generator, device="cpu").to(device)
    targets[::5] = IGNORE
    return hidden.to(device, dtype).requires_grad_(), weight.to(device, dtype).requires_grad_(), targets


def gradients(op, hidden, weight, targets, **options):
    logprobs, entropy = op(hidden, weight, targets, **options)
    upstream = torch.linspace(-1, 2, len(targets), dtype=logprobs.dtype)
    loss = (logprobs * upstream + entropy * upstream.square()).sum()
    return torch.autograd.grad(loss, (hidden, weight))


@pytest.mark.parametrize("num_tokens", [1, 2, 19])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 1024])
def test_equals_the_reference_at_any_chunk_size(num_tokens, chunk_tokens):
    hidden, weight, targets = inputs(num_tokens)
    options = {"temperature": 0.7, "valid_vocab": 50}
    ours = linear_logprob(hidden, weight, targets, chunk_tokens=chunk_tokens, **options)
    ours += gradients(linear_logprob, hidden, weight, targets, chunk_tokens=chunk_tokens, **options)
    truth = linear_logprob_ref(hidden, weight, targets, **options)
    truth += gradients(linear_logprob_ref, hidden, weight, targets, **options)
    for mine, exact in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-12, atol=1e-12)


def test_gradcheck():
    hidden, weight, targets = inputs(num_tokens=6, hidden_size=3, vocab=7)
    targets = torch.tensor([0, 3, IGNORE, 1, 2, 3])

    def op(hidden, weight):
        return linear_logprob(hidden, weight, targets, temperature=0.7, valid_vocab=5, chunk_tokens=2)

    assert torch.autograd.gradcheck(op, (hidden, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_against_float64_at_most_twice_plain_torch(dtype):
    """Plain torch stores N × V and sums it in one product. Neither error includes the rounding of the inputs."""
    hidden, weight, targets = inputs(num_tokens=300, hidden_size=32, vocab=501, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    options = {"temperature": 0.8, "valid_vocab": 498}
    truth = gradients(linear_logprob_ref, *exact, targets, **options)
    plain = gradients(linear_logprob_ref, hidden, weight, targets, **options)
    ours = gradients(linear_logprob, hidden, weight, targets, chunk_tokens=1, **options)
    for exact, torchs, mine in zip(truth, plain, ours, strict=True):
        assert mine.dtype == dtype
        assert (mine - exact).abs().amax() <= 2 * (torchs - exact).abs().amax()


def test_only_the_needed_gradient_is_computed():
    hidden, weight, targets = inputs()
    both = gradients(linear_logprob, hidden, weight, targets, valid_vocab=50)
    for needed in (0, 1):
        leaves = [x.detach().requires_grad_(i == needed) for i, x in enumerate((hidden, weight))]
        logprobs, entropy = linear_logprob(*leaves, targets, valid_vocab=50)
        upstream = torch.linspace(-1, 2, len(targets), dtype=logprobs.dtype)
        (logprobs * upstream + entropy * upstream.square()).sum().backward()
        torch.testing.assert_close(leaves[needed].grad, both[needed])
        assert leaves[1 - needed].grad is None


def test_rows_of_padding_get_no_gradient_and_ignored_tokens_none():
    hidden, weight, targets = inputs()
    d_hidden, d_weight = gradients(linear_logprob, hidden, weight, targets, valid_vocab=50)
    assert (d_weight[50:] == 0).all() and (d_weight[:50] != 0).all()
    assert (d_hidden[::5] == 0).all() and (d_hidden[1] != 0).all()


class LargestTensor(TorchDispatchMode):
    """Records the largest result, in elements, of any operation."""

    def __init__(self):
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.num_elements = max(self.num_elements, x.numel())
        return out


@pytest.mark.parametrize(("op", "largest"), [(linear_logprob, 32 * 1000), (linear_logprob_ref, 500 * 1000)])
def test_the_logits_are_never_stored_whole(op, largest, implementation):
    hidden, weight, _ = inputs(num_tokens=500, hidden_size=16, vocab=1000, dtype=torch.float32)
    if implementation == "triton" and not torch.cuda.is_available():
        pytest.skip("the interpreter copies what a kernel touches")
    options = {"chunk_tokens": 32} if op is linear_logprob else {}
    with LargestTensor() as seen:
        gradients(op, hidden, weight, torch.arange(500), valid_vocab=1000, **options)
    assert seen.num_elements == largest


def test_without_entropy():
    hidden, weight, targets = inputs()
    logprobs, entropy = linear_logprob(hidden, weight, targets, valid_vocab=50, with_entropy=False)
    assert entropy is None
    torch.testing.assert_close(logprobs, linear_logprob_ref(hidden, weight, targets, valid_vocab=50)[0])


def test_invalid_arguments_are_rejected():
    hidden, weight, targets = inputs()
    with pytest.raises(ValueError, match="sequence_parallel needs the group"):
        linear_logprob(hidden, weight, targets, valid_vocab=50, sequence_parallel=True)
    with pytest.raises(ValueError, match="torch.float32"):
        linear_logprob(hidden, weight.float(), targets, valid_vocab=50)
    with pytest.raises(ValueError, match="chunk_tokens must be at least 1, got 0"):
        linear_logprob(hidden, weight, targets, valid_vocab=50, chunk_tokens=0)


@pytest.mark.parametrize("num_processes", [2, pytest.param(4, marks=pytest.mark.jobs)])
def test_vocab_and_sequence_parallel(num_processes, torchrun):
    """Logprobs, and the policy loss in one pass with the head, on process groups of gloo, or of NCCL on GPUs."""
    on_cpu = torch.get_default_device().type == "cpu"
    cases = torchrun("vocab_parallel", num_processes, "cpu" if on_cpu else "cuda", on_cpu=on_cpu)
    assert len(cases) == 15
    for name, case in cases.items():
        assert case["same_on_all_ranks"], name
        assert case["error"] < 1e-12, name
