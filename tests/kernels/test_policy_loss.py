import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ralign.kernels.policy_loss import KL_KINDS, policy_loss, policy_loss_ref, token_weights


def one(ratio, advantage, **options):
    """Loss, gradient and metrics of one token of weight 1 with the given ratio."""
    logprobs = torch.tensor([-1.0 + math.log(ratio)], dtype=torch.float64, requires_grad=True)
    ones = torch.ones(1, dtype=torch.float64)
    loss, metrics = policy_loss(logprobs, -ones, advantage * ones, ones, **options)
    loss.backward()
    return loss.item(), logprobs.grad.item(), {name: value.item() for name, value in metrics.items()}


# ratio, advantage, loss, gradient, the bound that was met; clip 0.2 and 0.28, dual clip 3.
TABLE = [
    (1.0, 2.0, -2.0, -2.0, None),
    (1.1, 2.0, -2.2, -2.2, None),
    (1.5, 2.0, -2.56, 0.0, "clip_high_sum"),
    (0.5, 2.0, -1.0, -1.0, None),
    (1.0, -2.0, 2.0, 2.0, None),
    (0.9, -2.0, 1.8, 1.8, None),
    (0.5, -2.0, 1.6, 0.0, "clip_low_sum"),
    (2.0, -2.0, 4.0, 4.0, None),
    (5.0, -2.0, 6.0, 0.0, "dual_clip_sum"),
    (5.0, 0.0, 0.0, 0.0, None),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "gradient", "bound"), TABLE)
def test_clipping_by_hand(ratio, advantage, loss, gradient, bound):
    ours = one(ratio, advantage, clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    assert ours[:2] == pytest.approx((loss, gradient))
    for name in ("clip_low_sum", "clip_high_sum", "dual_clip_sum"):
        assert ours[2][name] == (name == bound)
    assert ours[2]["ratio_sum"] == ours[2]["ratio_min"] == ours[2]["ratio_max"] == pytest.approx(ratio)
    assert ours[2]["approx_kl_sum"] == pytest.approx(-math.log(ratio))


@pytest.mark.parametrize(
    ("kind", "kl", "gradient"),
    [("k1", 0.5, 1.0), ("k2", 0.125, 0.5), ("k3", math.exp(-0.5) - 0.5, 1 - math.exp(-0.5))],
)
def test_kl_by_hand(kind, kl, gradient):
    reference = torch.tensor([-1.5], dtype=torch.float64)  # log-ratio to the reference 0.5
    ours = one(1.0, 0.0, ref_logprobs=reference, kl_coef=0.1, kl_kind=kind)
    assert ours[:2] == pytest.approx((0.1 * kl, 0.1 * gradient))
    assert ours[2]["kl_sum"] == pytest.approx(kl)


@pytest.mark.parametrize(("rollout", "weight", "capped"), [(-0.9, math.exp(-0.1), 0), (-2.0, 1.5, 1)])
def test_truncated_importance_sampling_by_hand(rollout, weight, capped):
    """Old logprob −1: exp(−1 − rollout), at most 1.5; the KL term is not weighted."""
    rollout, reference = (
        torch.tensor([rollout], dtype=torch.float64),
        torch.tensor([-1.5], dtype=torch.float64),
    )
    options = {"rollout_logprobs": rollout, "ref_logprobs": reference, "kl_coef": 1.0, "kl_kind": "k1"}
    loss, gradient, metrics = one(1.0, 2.0, tis_cap=1.5, **options)
    assert (loss, gradient) == pytest.approx((-2 * weight + 0.5, -2 * weight + 1.0))
    assert (metrics["tis_sum"], metrics["tis_capped_sum"]) == pytest.approx((weight, capped))
    assert metrics["rollout_kl_sum"] == pytest.approx(rollout.item() + 1)
    loss, _, metrics = one(1.0, 2.0, **options)
    assert loss == pytest.approx(-2 + 0.5) and "tis_sum" not in metrics


def batch(num_tokens, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    names = "logprobs old_logprobs advantages weights rollout_logprobs ref_logprobs entropy".split()
    tensors = {name: torch.randn(num_tokens, generator=generator, dtype=dtype) / 2 for name in names}
    tensors["weights"] = torch.rand(num_tokens, generator=generator, dtype=dtype) + 0.1
    return tensors


OPTIONS = {"dual_clip": 1.5, "tis_cap": 1.3, "kl_coef": 0.3, "entropy_coef": 0.1}


@pytest.mark.parametrize("kl_kind", KL_KINDS)
def test_value_and_gradient_equal_autograd_of_the_papers_formula(kl_kind):
    tokens = batch(400)
    leaves = [tokens["logprobs"].requires_grad_(), tokens["entropy"].requires_grad_()]
    ours, _ = policy_loss(**tokens, **OPTIONS, kl_kind=kl_kind)
    theirs = policy_loss_ref(**tokens, **OPTIONS, kl_kind=kl_kind)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(3 * loss, leaves) for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@given(cuts=st.lists(st.integers(1, 49), max_size=6), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_micro_batches_add_up_in_any_order(cuts, seed):
    whole = batch(50, seed)
    loss, metrics = policy_loss(**whole, **OPTIONS)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(seed))
    bounds = [0, *sorted(set(cuts)), 50]
    parts = [order[i:j] for i, j in zip(bounds, bounds[1:], strict=False)]
    results = [policy_loss(**{name: x[part] for name, x in whole.items()}, **OPTIONS) for part in parts]
    torch.testing.assert_close(sum(result[0] for result in results), loss)
    for name, value in metrics.items():
        merge = {"ratio_min": min, "ratio_max": max}.get(name, sum)
        torch.testing.assert_close(merge([result[1][name] for result in results]), value)


def test_tokens_of_weight_zero_take_no_part():
    tokens = batch(20)
    masked = {name: torch.cat([x, torch.full((5,), torch.nan, dtype=x.dtype)]) for name, x in tokens.items()}
    masked["weights"][20:] = 0
    leaf = masked["logprobs"].requires_grad_()
    loss, metrics = policy_loss(**masked, **OPTIONS)
    expected, expected_metrics = policy_loss(**tokens, **OPTIONS)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics, expected_metrics)
    loss.backward()
    assert (leaf.grad[20:] == 0).all() and leaf.grad.isfinite().all()


def test_nothing_but_masked_tokens():
    tokens = batch(4)
    tokens["weights"] = torch.zeros(4, dtype=torch.float64)
    loss, metrics = policy_loss(**tokens, **OPTIONS)
    assert loss == 0 and metrics.pop("ratio_min") == math.inf and metrics.pop("ratio_max") == -math.inf
    assert all(value == 0 for value in metrics.values())


def test_on_policy_ratio_is_exactly_one():
    tokens = batch(1000, dtype=torch.float32)
    tokens["old_logprobs"] = tokens["logprobs"].clone()
    metrics = policy_loss(**tokens, **OPTIONS)[1]
    assert metrics["ratio_min"] == metrics["ratio_max"] == 1 and metrics["ratio_sum"] == 1000


def test_a_diverged_token_is_seen_not_silenced():
    """A ratio of e^30 at a negative advantage pulls with all its weight; e^200 is an infinite loss."""
    far = torch.tensor([30.0, 200.0], requires_grad=True)
    zeros, ones = torch.zeros(2), torch.ones(2)
    loss, _ = policy_loss(far, zeros, torch.tensor([-1.0, 0.0]), ones)
    loss.backward()
    assert far.grad[0] == pytest.approx(math.exp(30)) and far.grad[1] == 0
    assert policy_loss(far, zeros, ones, ones)[0].item() == pytest.approx(-2.4)
    assert policy_loss(far, zeros, -ones, ones)[0] == math.inf
    assert policy_loss(far, zeros, -ones, ones, dual_clip=3.0)[0] == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_low": 1.5}, "got 1.5"),
        ({"dual_clip": 1.0}, "dual_clip > 1"),
        ({"kl_kind": "k4"}, "'k4'"),
        ({"tis_cap": 2.0}, "tis_cap=2.0 needs rollout_logprobs"),
        ({"kl_coef": 0.1}, "kl_coef=0.1 needs ref_logprobs"),
        ({"entropy_coef": 0.1}, "entropy_coef=0.1 needs entropy"),
        ({"entropy": torch.zeros(3)}, r"\[3\]"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        policy_loss(*torch.zeros(4, 2), **options)


@pytest.mark.parametrize(
    ("kind", "total", "expected"),
    [
        ("token", None, [1 / 6, 1 / 6, 0, 0]),
        ("token", 12, [1 / 12, 1 / 12, 0, 0]),
        ("sequence", None, [1 / 4, 1 / 8, 0, 0]),
        ("sequence", torch.tensor(8), [1 / 16, 1 / 32, 0, 0]),
        ("token", 0, [0, 0, 0, 0]),
    ],
)
def test_token_weights_by_hand(kind, total, expected):
    lens, valid = torch.tensor([2, 4, 3, 0]), torch.tensor([True, True, False, True])
    torch.testing.assert_close(
        token_weights(lens, valid, kind=kind, total=total), torch.tensor(expected).float()
    )


def test_weights_of_all_tokens_add_to_one():
    lens = torch.randint(1, 50, (30,))
    for kind in ("token", "sequence"):
        weights = token_weights(lens, lens > 5, kind=kind)
        torch.testing.assert_close((weights * lens).sum(), torch.tensor(1.0))
