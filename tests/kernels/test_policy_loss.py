import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ralign.kernels.objectives import CISPO, CLIP, PolicyLossSettings
from ralign.kernels.policy_loss import KL_KINDS, policy_loss, policy_loss_ref
from ralign.kernels.policy_loss_data import K3_MAX_SLOPE


def one(ratio, advantage, **options):
    """Returns loss, gradient and metrics of one token of weight 1 with the given ratio."""
    logprobs = torch.tensor([-1.0 + math.log(ratio)], dtype=torch.float64, requires_grad=True)
    ones = torch.ones(1, dtype=torch.float64)
    loss, metrics = policy_loss(logprobs, -ones, advantage * ones, ones, **options)
    loss.backward()
    return loss.item(), logprobs.grad.item(), {name: value.item() for name, value in metrics.items()}


# ratio, advantage, loss, gradient, the bound that applies; clip 0.2 and 0.28, dual clip 3.
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


def k3(log_ratio):
    """Returns value and gradient of the k3 term of one token."""
    reference = torch.tensor([-1.0 - log_ratio], dtype=torch.float64)
    return one(1.0, 0.0, ref_logprobs=reference, kl_coef=1.0, kl_kind="k3")[:2]


@pytest.mark.parametrize("k", [-2.3, -1.0, -0.05, 0.0, 0.05, 1.0, 40.0])
def test_k3_is_the_papers_up_to_its_greatest_slope(k):
    assert k3(k) == pytest.approx((math.exp(-k) - 1 + k, 1 - math.exp(-k)), rel=1e-6, abs=1e-12)


def test_k3_continues_as_a_line_for_a_diverged_token():
    edge = -math.log(1 + K3_MAX_SLOPE)
    assert K3_MAX_SLOPE == 10
    at_edge, slope = k3(edge)
    assert (at_edge, slope) == pytest.approx((10 + edge, -10))
    for beyond in (1e-9, 1.0, 1000 + edge):
        value, gradient = k3(edge - beyond)
        assert (value, gradient) == pytest.approx((at_edge + 10 * beyond, -10)) and math.isfinite(value)
    assert abs(k3(edge + 1e-9)[0] - k3(edge - 1e-9)[0]) < 1e-6


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
    log_ratio = -1 - rollout.item()
    assert metrics["rollout_kl_sum"] == pytest.approx(-log_ratio)
    assert metrics["rollout_k3_sum"] == pytest.approx(math.exp(log_ratio) - 1 - log_ratio)
    assert metrics["rollout_ratio_max"] == pytest.approx(math.exp(abs(log_ratio)))
    loss, _, metrics = one(1.0, 2.0, **options)
    assert loss == pytest.approx(-2 + 0.5) and "tis_sum" not in metrics


def penalised(ratio, logprobs, advantages, settings):
    """An objective from outside: a penalty in place of clipping, so that tokens of advantage 0 have a gradient."""
    return ratio * advantages - (ratio - 1).square() / (2 * settings.clip_high)


def reinforce(ratio, logprobs, advantages, settings):
    """An objective from outside: the gradient comes through the logprob alone."""
    return ratio.detach() * advantages * logprobs


def batch(num_tokens, seed=0, dtype=torch.float64):
    options = {"generator": torch.Generator("cpu").manual_seed(seed), "dtype": dtype, "device": "cpu"}
    names = "logprobs old_logprobs advantages weights rollout_logprobs ref_logprobs entropy".split()
    tensors = {name: torch.randn(num_tokens, **options) / 2 for name in names}
    tensors["weights"] = torch.rand(num_tokens, **options) + 0.1
    return {name: x.to(torch.get_default_device()) for name, x in tensors.items()}


LEVELS = ("token", "sequence", "geometric")
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
    order = torch.randperm(50, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    order = order.to(torch.get_default_device())
    bounds = [0, *sorted(set(cuts)), 50]
    parts = [order[i:j] for i, j in zip(bounds, bounds[1:], strict=False)]
    results = [policy_loss(**{name: x[part] for name, x in whole.items()}, **OPTIONS) for part in parts]
    torch.testing.assert_close(sum(result[0] for result in results), loss)
    for name, value in metrics.items():
        merge = {"_min": min, "_max": max}.get(name[-4:], sum)
        torch.testing.assert_close(merge([result[1][name] for result in results]), value)


def test_tokens_of_weight_zero_are_ignored():
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
    assert loss == 0 and metrics.pop("ratio_min") == math.inf
    assert metrics.pop("ratio_max") == metrics.pop("rollout_ratio_max") == -math.inf
    assert all(value == 0 for value in metrics.values())


def test_on_policy_ratio_is_exactly_one():
    tokens = batch(1000, dtype=torch.float32)
    tokens["old_logprobs"] = tokens["logprobs"].clone()
    metrics = policy_loss(**tokens, **OPTIONS)[1]
    assert metrics["ratio_min"] == metrics["ratio_max"] == 1 and metrics["ratio_sum"] == 1000


def test_the_gradient_of_a_diverged_token_is_kept():
    """A ratio of e^30 at a negative advantage has its full gradient; e^200 gives an infinite loss."""
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
        ({"mask_level": "token"}, "mask_level=token needs rollout_logprobs"),
        ({"mask_level": "token", "mask_low": 2.0}, "0 < mask_low < mask_high, got 2.0 and 2.0"),
        ({"mask_level": "group"}, "mask_level must be one of token, sequence, geometric, got 'group'"),
        ({"ratio_level": "sequence"}, "ratio_level must be one of token, geometric, got 'sequence'"),
        ({"ratio_level": "geometric"}, "ratio_level=geometric needs whole sequences, cu_seqlens"),
        ({"tis_cap": 2.0, "tis_level": "sequence"}, "tis_level=sequence needs whole sequences, cu_seqlens"),
        ({"kl_coef": 0.1}, "kl_coef=0.1 needs ref_logprobs"),
        ({"entropy_coef": 0.1}, "entropy_coef=0.1 needs entropy"),
        ({"entropy": torch.zeros(3)}, r"\[3\]"),
        ({"objective": "ppo"}, "objective must be a callable such as CLIP, got 'ppo'"),
        ({"objective": CISPO, "dual_clip": 3.0}, "cispo .* dual_clip must be None, got 3.0"),
        ({"objective": penalised, "implementation": "triton"}, "penalised.* has no Triton kernel"),
        ({"objective": lambda ratio, *_: ratio.mean()}, r"one surrogate a token, \[2\], got \[\]"),
        ({"objective": lambda ratio, *_: ratio.detach()}, "no gradient in ratio or logprobs"),
    ],
)
def test_invalid_arguments_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        policy_loss(*torch.zeros(4, 2), **options)


def test_sequence_ratio_by_hand():
    """Two counted tokens of log-ratios 0.1 and 0.3: both have the ratio e^0.2, and half its gradient each."""
    logprobs = torch.tensor([-0.9, -0.7, 5.0, -1.0], dtype=torch.float64, requires_grad=True)
    old = torch.full((4,), -1.0, dtype=torch.float64)
    advantages, weights = (torch.tensor(x, dtype=torch.float64) for x in ([2, 2, 2, -1], [0.5, 0.5, 0, 1]))
    cu_seqlens = torch.tensor([0, 3, 4], dtype=torch.int32)
    options = {"clip_high": 0.5, "ratio_level": "geometric", "cu_seqlens": cu_seqlens}
    loss, metrics = policy_loss(logprobs, old, advantages, weights, **options)
    loss.backward()
    ratio = math.exp(0.2)
    assert loss.item() == pytest.approx(-2 * ratio + 1)
    assert logprobs.grad.tolist() == pytest.approx([-ratio, -ratio, 0, 1])
    assert metrics["ratio_sum"].item() == pytest.approx(2 * ratio + 1) and metrics["clip_high_sum"] == 0
    options["clip_high"] = 0.1
    loss, metrics = policy_loss(logprobs, old, advantages, weights, **options)
    assert loss.item() == pytest.approx(-2 * 1.1 + 1) and metrics["clip_high_sum"] == 2
    assert torch.autograd.grad(loss, logprobs)[0].tolist() == pytest.approx([0, 0, 0, 1])


def with_sequences(tokens):
    """Four sequences, tokens of weight 0 in one of them, and ten tokens of padding; returns cu_seqlens."""
    bounds = [0, 7, 8, 300, 390]
    tokens["weights"][50:60] = 0
    tokens["weights"][390:] = 0
    return torch.tensor(bounds, dtype=torch.int32)


def assert_equals_autograd_of_the_reference(tokens, options):
    leaves = [tokens["logprobs"].requires_grad_(), tokens["entropy"].requires_grad_()]
    losses = [policy_loss(**tokens, **options)[0], policy_loss_ref(**tokens, **options)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*[torch.autograd.grad(3 * loss, leaves) for loss in losses])


@pytest.mark.parametrize("objective", [CLIP, CISPO], ids=lambda objective: objective.name)
@pytest.mark.parametrize("sequences", [True, False])
def test_objectives_and_ratio_levels_equal_autograd_of_the_papers_formula(objective, sequences):
    tokens = batch(400)
    cu_seqlens = with_sequences(tokens)
    # The tokens of a sequence share an advantage, as the closed form of clip requires.
    for i, j in zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:], strict=False):
        tokens["advantages"][i:j] = tokens["advantages"][i].clone()
    options = OPTIONS | {"objective": objective, "dual_clip": 1.5 if objective is CLIP else None}
    options |= {"cu_seqlens": cu_seqlens, "ratio_level": "geometric"} if sequences else {}
    assert_equals_autograd_of_the_reference(tokens, options)


@pytest.mark.parametrize("objective", [penalised, reinforce])
@pytest.mark.parametrize("sequences", [True, False])
def test_an_objective_from_outside_equals_autograd_of_its_formula(objective, sequences):
    """Each token has its own advantage, with a sequence-level ratio, too."""
    tokens = batch(400)
    tokens["advantages"][::5] = 0
    cu_seqlens = with_sequences(tokens)
    options = OPTIONS | {"objective": objective}
    options |= {"cu_seqlens": cu_seqlens, "ratio_level": "geometric"} if sequences else {}
    assert_equals_autograd_of_the_reference(tokens, options)


@pytest.mark.parametrize(("ratio", "advantage"), [(1.0, 2.0), (1.1, -2.0), (0.5, 0.0)])
def test_an_objective_from_outside_by_hand(ratio, advantage):
    """surrogate = r A − 2.5 (r − 1)², with clip_high = 0.2; its derivative in the logprob is r (A − 5 (r − 1))."""
    loss, gradient, metrics = one(ratio, advantage, objective=penalised)
    assert loss == pytest.approx(-(ratio * advantage - 2.5 * (ratio - 1) ** 2))
    assert gradient == pytest.approx(-ratio * (advantage - 5 * (ratio - 1)))
    assert metrics["ratio_sum"] == pytest.approx(ratio)


def test_clip_as_a_plain_function_equals_the_closed_form():
    def clip(ratio, logprobs, advantages, settings):
        clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
        return torch.minimum(ratio * advantages, clipped * advantages)

    tokens = batch(400)
    tokens["weights"][::7] = 0
    leaf = tokens["logprobs"].requires_grad_()
    results = [policy_loss(**tokens, **OPTIONS, objective=objective) for objective in (clip, CLIP)]
    torch.testing.assert_close(*results)
    assert all(results[0][1][name] > 0 for name in ("clip_low_sum", "clip_high_sum", "dual_clip_sum"))
    torch.testing.assert_close(*[torch.autograd.grad(loss, leaf) for loss, _ in results])
    far = torch.tensor([200.0], requires_grad=True)  # beyond the bound, an infinite ratio has no gradient
    loss, _ = policy_loss(far, torch.zeros(1), torch.ones(1), torch.ones(1), objective=clip)
    assert loss.item() == pytest.approx(-1.2) and torch.autograd.grad(loss, far)[0] == 0


def test_an_objective_may_be_undefined_at_tokens_of_weight_zero():
    """They have a logprob of 0, where this objective is NaN."""

    def log_objective(ratio, logprobs, advantages, settings):
        return advantages * (-logprobs).log()

    logprobs = torch.tensor([-0.5, torch.nan, -2.0], requires_grad=True)
    advantages, weights = torch.tensor([1.0, torch.nan, -1.0]), torch.tensor([1.0, 0.0, 1.0])
    loss, _ = policy_loss(logprobs, logprobs.detach(), advantages, weights, objective=log_objective)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4))
    assert logprobs.grad.tolist() == pytest.approx([2.0, 0.0, -0.5])


def test_which_settings_give_tokens_of_advantage_zero_a_gradient():
    assert not any(PolicyLossSettings(objective=objective).needs_all for objective in (CLIP, CISPO))
    assert PolicyLossSettings(objective=penalised).needs_all
    assert PolicyLossSettings(kl_coef=0.1).needs_all and PolicyLossSettings(entropy_coef=0.1).needs_all


def test_sums_over_many_programs():
    """An odd number of tokens, more than one Triton program takes."""
    tokens = batch(20_001, dtype=torch.float32)
    loss, metrics = policy_loss(**tokens, **OPTIONS)
    exact, exact_metrics = policy_loss(**{name: x.double() for name, x in tokens.items()}, **OPTIONS)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-4)
    for name, value in metrics.items():
        torch.testing.assert_close(value, exact_metrics[name].float(), rtol=1e-4, atol=1e-2)
    assert metrics["num_tokens"] == 20_001


def test_a_nan_is_not_capped_away():
    tokens = batch(8)
    tokens["rollout_logprobs"][3] = torch.nan
    assert policy_loss(**tokens, **OPTIONS)[0].isnan()


def mismatched(log_ratios, dtype=torch.float64):
    """Tokens of logprob −1, advantage 2 and weight 1/4, on-policy but for the engine; old − rollout is given."""
    logprobs = torch.full((len(log_ratios),), -1.0, dtype=dtype)
    ones = torch.ones_like(logprobs)
    return {
        "logprobs": logprobs.clone().requires_grad_(),
        "old_logprobs": logprobs,
        "advantages": 2 * ones,
        "weights": ones / 4,
        "rollout_logprobs": logprobs - torch.tensor(log_ratios, dtype=dtype),
    }


SEQUENCES = [0, 3, 4]
BY_HAND = {  # weights of four tokens, the third of which does not count
    "token": [math.exp(0.1), math.exp(0.3), 0, math.exp(-1)],
    "sequence": [math.exp(0.4), math.exp(0.4), 0, math.exp(-1)],
    "geometric": [math.exp(0.2), math.exp(0.2), 0, math.exp(-1)],
}


@pytest.mark.parametrize("level", LEVELS)
def test_importance_weights_of_each_level_by_hand(level):
    tokens = mismatched([0.1, 0.3, 9.0, -1.0])
    tokens["weights"][2] = 0
    options = {"cu_seqlens": torch.tensor(SEQUENCES, dtype=torch.int32), "tis_level": level}
    for cap, num_capped in ((9.0, 0), (1.05, 2)):
        expected = [min(weight, cap) for weight in BY_HAND[level]]
        loss, metrics = policy_loss(**tokens, **options, tis_cap=cap)
        gradient = torch.autograd.grad(loss, tokens["logprobs"])[0]
        assert gradient.tolist() == pytest.approx([-weight / 2 for weight in expected])
        assert loss.item() == pytest.approx(-sum(expected) / 2)
        assert metrics["tis_sum"].item() == pytest.approx(sum(expected))
        assert metrics["tis_capped_sum"] == num_capped


@pytest.mark.parametrize("level", LEVELS)
def test_masked_tokens_lose_the_policy_term_alone(level):
    """The bounds keep e^0.25 and less: the second token, the first sequence by its sum, or nothing of it is masked."""
    tokens = mismatched([0.1, 0.3, 9.0, -1.0])
    tokens["weights"][2] = 0
    masked = {"token": [1, 3], "sequence": [0, 1, 3], "geometric": [3]}[level]
    options = {
        "cu_seqlens": torch.tensor(SEQUENCES, dtype=torch.int32),
        "mask_level": level,
        "mask_low": math.exp(-0.5),
        "mask_high": math.exp(0.25),
    }
    loss, metrics = policy_loss(**tokens, **options)
    kept = [float(i not in (*masked, 2)) for i in range(4)]
    assert torch.autograd.grad(loss, tokens["logprobs"])[0].tolist() == pytest.approx([-x / 2 for x in kept])
    assert loss.item() == pytest.approx(-sum(kept) / 2)  # by the same weights: denominators stay
    assert metrics["mask_sum"] == len(masked) and metrics["num_tokens"] == 3
    reference = torch.full((4,), -1.5, dtype=torch.float64)
    options |= {"ref_logprobs": reference, "kl_coef": 1.0, "kl_kind": "k1", "tis_cap": 1.05}
    loss, metrics = policy_loss(**tokens, **options)
    assert loss.item() == pytest.approx(-1.05 * sum(kept) / 2 + 3 * 0.5 / 4)
    assert metrics["mask_sum"] == len(masked)


MASKS = {"token": (0.5, 2.0), "sequence": (1e-4, 1.5), "geometric": (0.8, 1.02)}


@pytest.mark.parametrize("mask_level", [None, *LEVELS])
@pytest.mark.parametrize("tis_level", [None, *LEVELS])
def test_importance_and_mask_equal_autograd_of_the_papers_formula(tis_level, mask_level):
    tokens = batch(400)
    cu_seqlens = with_sequences(tokens)
    for i, j in zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:], strict=False):
        tokens["advantages"][i:j] = tokens["advantages"][i].clone()
    options = OPTIONS | {"cu_seqlens": cu_seqlens, "tis_cap": tis_level and 1.3, "mask_level": mask_level}
    options |= {"tis_level": tis_level} if tis_level else {}
    if mask_level:
        options["mask_low"], options["mask_high"] = MASKS[mask_level]
        metrics = policy_loss(**tokens, **options)[1]
        assert 0 < metrics["mask_sum"] < metrics["num_tokens"]
    for ratio_level in ("token", "geometric"):
        for objective in (CLIP, CISPO, penalised):
            options |= {"ratio_level": ratio_level, "objective": objective}
            options["dual_clip"] = None if objective is CISPO else 1.5
            assert_equals_autograd_of_the_reference(tokens, options)


@pytest.mark.parametrize("level", LEVELS)
def test_whole_sequences_add_up_over_micro_batches(level):
    whole = batch(390)
    bounds = with_sequences(whole).tolist()
    options = OPTIONS | {"tis_level": level, "mask_level": level, "ratio_level": "geometric"}
    options["mask_low"], options["mask_high"] = MASKS[level]
    loss, metrics = policy_loss(**whole, **options, cu_seqlens=torch.tensor(bounds, dtype=torch.int32))
    results = []
    for i, j in reversed([*zip(bounds, bounds[1:], strict=False)]):
        # Each sequence comes first, after an uncounted one that has nothing finite, and before padding.
        nothing = {name: torch.full((3,), torch.nan, dtype=torch.float64) for name in whole}
        nothing["weights"] = torch.zeros(3, dtype=torch.float64)
        part = {name: torch.cat([nothing[name], x[i:j], nothing[name]]) for name, x in whole.items()}
        own = torch.tensor([0, 3, 3 + j - i], dtype=torch.int32)
        results.append(policy_loss(**part, **options, cu_seqlens=own))
    torch.testing.assert_close(sum(result[0] for result in results), loss)
    for name, value in metrics.items():
        merge = {"_min": min, "_max": max}.get(name[-4:], sum)
        torch.testing.assert_close(merge([result[1][name] for result in results]), value)


@pytest.mark.parametrize("level", LEVELS)
def test_extreme_ratios_are_capped_and_masked(level):
    """e^200 and e^−200 overflow and vanish in fp32; so may the policy's own ratio in a masked token."""
    tokens = mismatched([200.0, -200.0, 0.0, 0.0], torch.float32)
    cu_seqlens = torch.tensor([0, 1, 2, 4], dtype=torch.int32)
    options = {"cu_seqlens": cu_seqlens, "tis_level": level, "tis_cap": 2.0}
    loss, metrics = policy_loss(**tokens, **options)
    assert torch.autograd.grad(loss, tokens["logprobs"])[0].tolist() == [-1.0, 0.0, -0.5, -0.5]
    assert loss == -2 and metrics["tis_sum"] == 4 and metrics["tis_capped_sum"] == 1
    assert metrics["rollout_ratio_max"] == math.inf and metrics["rollout_k3_sum"].isfinite()
    tokens["logprobs"] = torch.tensor([500.0, 500.0, -1.0, -1.0], requires_grad=True)
    tokens["advantages"] = torch.tensor([-2.0, -2.0, -2.0, -2.0])
    for objective in (CLIP, penalised):
        for ratio_level in ("token", "geometric"):
            more = options | {"mask_level": level, "objective": objective, "ratio_level": ratio_level}
            loss, metrics = policy_loss(**tokens, **more)
            gradient = torch.autograd.grad(loss, tokens["logprobs"])[0]
            assert loss == 1 and gradient.tolist() == [0.0, 0.0, 0.5, 0.5] and metrics["mask_sum"] == 2


@pytest.mark.parametrize("name", ["logprobs", "old_logprobs", "rollout_logprobs"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_nan_is_not_masked_away(level, name):
    for tis_cap in (None, 1.3):
        tokens = batch(8)
        tokens[name][3] = torch.nan
        options = OPTIONS | {"cu_seqlens": torch.tensor([0, 8], dtype=torch.int32), "tis_level": level}
        options |= {"tis_cap": tis_cap, "mask_level": level}
        assert policy_loss(**tokens, **options)[0].isnan()


def test_levels_of_long_sequences():
    """Sequences longer than a Triton program reads at a time, over many programs; a repetition gives the same bits."""
    tokens = batch(20_001, dtype=torch.float32)
    tokens["rollout_logprobs"] = tokens["old_logprobs"] + (tokens["rollout_logprobs"] / 100)
    cu_seqlens = torch.tensor([0, 3, 5003, 5003, 20_001], dtype=torch.int32)
    tokens["advantages"] = torch.full((20_001,), 0.5)
    options = OPTIONS | {"cu_seqlens": cu_seqlens, "ratio_level": "geometric", "tis_level": "sequence"}
    options |= {"mask_level": "geometric", "mask_low": 0.9999, "tis_cap": 5.0}
    loss, metrics = policy_loss(**tokens, **options)
    doubles = {name: x.double() for name, x in tokens.items()}
    exact, exact_metrics = policy_loss(**doubles, **options)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-3)
    for name, value in metrics.items():
        torch.testing.assert_close(value, exact_metrics[name].float(), rtol=1e-4, atol=2e-2)
    assert 0 < metrics["mask_sum"] < 20_001
    assert policy_loss(**tokens, **options)[0] == loss


def test_a_level_that_is_off_needs_no_sequences():
    tokens = batch(20)
    torch.testing.assert_close(
        policy_loss(**tokens, **OPTIONS | {"tis_cap": None}, tis_level="sequence"),
        policy_loss(**tokens, **OPTIONS | {"tis_cap": None}),
    )
