import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ralign.kernels.linear_logprob import linear_logprob
from ralign.kernels.linear_policy_loss import linear_policy_loss, linear_policy_loss_ref, split_rows
from ralign.kernels.logprob import IGNORE
from ralign.kernels.objectives import CISPO
from ralign.kernels.policy_loss import policy_loss
from torch.utils.flop_counter import FlopCounterMode

VOCAB = 50
CLIPPED = {"clip_high": 0.28, "dual_clip": 1.5, "tis_cap": 1.3}
MASKED = CLIPPED | {"mask_level": "token", "mask_low": 0.8, "mask_high": 1.2}
REGULARISED = CLIPPED | {"kl_coef": 0.3, "kl_kind": "k3", "entropy_coef": 0.1}


def penalised(ratio, logprobs, advantages, settings):
    """An objective from outside that gives tokens of advantage 0 a gradient."""
    return ratio * advantages - (ratio - 1).square() / settings.clip_high - ratio * logprobs.square()


def tokens(num_tokens=19, hidden_size=8, dtype=torch.float64, seed=0):
    """Returns hidden, weight, targets, old logprobs, advantages, weights; and rollout and reference logprobs."""
    g = torch.Generator("cpu").manual_seed(seed)
    device = torch.get_default_device()

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64, device="cpu").to(device, dtype)

    hidden, weight = (
        normal(num_tokens, hidden_size).requires_grad_(),
        normal(VOCAB + 3, hidden_size).requires_grad_(),
    )
    targets = torch.randint(0, VOCAB, (num_tokens,), generator=g, device="cpu").to(device)
    with torch.no_grad():
        logprobs = linear_logprob(hidden, weight, targets, valid_vocab=VOCAB, temperature=0.8)[0]
    old, rollout, reference = (logprobs.to(dtype) + normal(num_tokens) / 3 for _ in range(3))
    advantages, weights = normal(num_tokens), normal(num_tokens).abs() + 0.1
    weights[::4] = 0
    advantages[1::4] = 0
    targets[::8] = IGNORE
    return [hidden, weight, targets, old, advantages, weights], {
        "rollout_logprobs": rollout,
        "ref_logprobs": reference,
    }


def two_steps(
    hidden, weight, targets, old, advantages, weights, *, valid_vocab, temperature, chunk_tokens, **options
):
    logprobs, entropy = linear_logprob(
        hidden, weight, targets, valid_vocab=valid_vocab, temperature=temperature, chunk_tokens=chunk_tokens
    )
    old = logprobs.detach() if old is None else old
    loss, metrics = policy_loss(logprobs, old, advantages, weights, entropy=entropy, **options)
    return loss, logprobs, entropy, metrics


def gradients(op, args, **options):
    loss, *rest = op(*args, **options)
    return [loss.detach(), *torch.autograd.grad(3 * loss, args[:2])], rest


@pytest.mark.parametrize("chunk_tokens", [1, 4, None])
@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize(
    "settings",
    [CLIPPED, REGULARISED, {"objective": CISPO}, CLIPPED | {"objective": penalised}, MASKED],
    ids=["clip", "regularised", "cispo", "from outside", "masked"],
)
def test_equals_the_two_steps_it_replaces(chunk_tokens, on_policy, settings):
    args, per_token = tokens()
    if on_policy:
        args[3] = None
    options = {
        "valid_vocab": VOCAB,
        "temperature": 0.8,
        "chunk_tokens": chunk_tokens,
        **per_token,
        **settings,
    }
    ours, (logprobs, entropy, metrics) = gradients(linear_policy_loss, args, **options)
    theirs, (their_logprobs, their_entropy, their_metrics) = gradients(two_steps, args, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    counted = args[5] != 0
    torch.testing.assert_close(logprobs[counted], their_logprobs[counted])
    torch.testing.assert_close(entropy[counted], their_entropy[counted])
    torch.testing.assert_close(metrics, their_metrics)
    assert (logprobs[~counted] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_against_float64_at_most_twice_plain_torch(dtype):
    args, per_token = tokens(num_tokens=200, hidden_size=32, dtype=dtype)
    options = {"valid_vocab": VOCAB, "temperature": 0.8, **REGULARISED}
    exact_args = [x if x.dtype == torch.int64 else x.detach().double() for x in args]
    exact_args[:2] = [x.requires_grad_() for x in exact_args[:2]]
    exact_tokens = {name: x.double() for name, x in per_token.items()}
    truth, _ = gradients(
        lambda *a, **k: (linear_policy_loss_ref(*a, **k),), exact_args, **exact_tokens, **options
    )
    plain, _ = gradients(lambda *a, **k: (linear_policy_loss_ref(*a, **k),), args, **per_token, **options)
    ours, _ = gradients(linear_policy_loss, args, chunk_tokens=64, **per_token, **options)
    for exact, torchs, mine in zip(truth, plain, ours, strict=True):
        floor = 4 * torch.finfo(mine.dtype).eps * exact.abs().amax()
        assert (mine - exact).abs().amax() <= 2 * (torchs - exact).abs().amax() + floor


def test_a_quarter_fewer_operations_and_no_gradient_for_rows_of_advantage_zero():
    args, per_token = tokens(num_tokens=64)
    num_elements = args[0].shape[1] * VOCAB

    def num_products(op, **options):
        with FlopCounterMode(display=False) as flops:
            gradients(op, args, valid_vocab=VOCAB, temperature=1.0, chunk_tokens=64, **per_token, **options)
        return flops.get_total_flops() / (2 * num_elements)

    counted, learning = (args[5] != 0).sum().item(), ((args[5] != 0) & (args[4] != 0)).sum().item()
    kept = (args[2] != IGNORE).sum().item()
    assert num_products(two_steps, **REGULARISED) == 4 * kept
    assert num_products(linear_policy_loss, **REGULARISED) == 3 * counted
    assert num_products(linear_policy_loss, **CLIPPED) == 3 * learning + (counted - learning)


@given(seed=st.integers(0, 50), masked=st.integers(1, 9))
@settings(max_examples=15, deadline=None)
def test_order_and_masked_rows_change_nothing(seed, masked):
    args, per_token = tokens(seed=seed)
    options = {"valid_vocab": VOCAB, "temperature": 0.8, **REGULARISED}
    before, _ = gradients(linear_policy_loss, args, **per_token, **options)
    order = torch.randperm(19 + masked, device="cpu", generator=torch.Generator("cpu").manual_seed(seed))
    order = order.to(args[0].device)

    def grown(x):
        return torch.cat([x, torch.full((masked, *x.shape[1:]), 0.0, dtype=x.dtype).to(x)])[order]

    hidden, weight, targets, old, advantages, weights = args
    more = [grown(hidden.detach()).requires_grad_(), weight, *map(grown, (targets, old, advantages, weights))]
    after, _ = gradients(
        linear_policy_loss, more, **{name: grown(x) for name, x in per_token.items()}, **options
    )
    d_hidden = torch.empty_like(after[1])
    d_hidden[order] = after[1]
    torch.testing.assert_close([after[0], d_hidden[:19], after[2]], before, rtol=1e-10, atol=1e-12)


def test_split_rows():
    weights, advantages = torch.tensor([0, 1, 1, 0.5, 0]), torch.tensor([1, 0, 2, -1, 0.0])
    learning, idle = split_rows(weights, advantages, needs_all=False)
    assert learning.tolist() == [2, 3] and idle.tolist() == [1]
    learning, idle = split_rows(weights, advantages, needs_all=True)
    assert learning.tolist() == [1, 2, 3] and idle.tolist() == []


def test_all_weights_zero():
    args, per_token = tokens()
    args[5] = torch.zeros_like(args[5])
    (loss, *grads), (*_, metrics) = gradients(
        linear_policy_loss, args, valid_vocab=VOCAB, **per_token, **CLIPPED
    )
    assert loss == 0 and all((grad == 0).all() for grad in grads)
    assert metrics["num_tokens"] == 0 and metrics["ratio_min"] == torch.inf


def test_invalid_arguments_are_rejected():
    args, _ = tokens()
    with pytest.raises(ValueError, match="tis_cap=2.0 needs rollout_logprobs"):
        linear_policy_loss(*args, valid_vocab=VOCAB, tis_cap=2.0)
    for level in ({"ratio_level": "geometric"}, {"mask_level": "sequence"}):
        with pytest.raises(ValueError, match="needs whole sequences"):
            linear_policy_loss(*args, valid_vocab=VOCAB, rollout_logprobs=args[3], **level)
    with pytest.raises(ValueError, match="'ppo'"):
        linear_policy_loss(*args, valid_vocab=VOCAB, objective="ppo")
    with pytest.raises(ValueError, match=r"\[3\]"):
        linear_policy_loss(*args[:5], torch.ones(3), valid_vocab=VOCAB)
