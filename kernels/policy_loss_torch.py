"""The policy loss and its gradient in plain torch; the formulas are at the head of policy_loss.py.

It runs on the CPU, on CUDA for diagnosis, and on every device for an objective without a closed form: autograd takes
the derivative of its surrogate, token by token. Its tokens count as clipped where that derivative is 0.

Shapes: N tokens; S sequences.
"""

import math

import torch
from ralign.kernels.objectives import ClippedObjective, PolicyLossSettings, TokenTerms
from ralign.kernels.policy_loss_data import K3_MAX_SLOPE, METRICS, LossAndGradient, PerToken
from torch import Tensor


def _kl(k: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Returns the estimate and its derivative in k."""
    if kind == "k1":
        return k, torch.ones_like(k)
    if kind == "k2":
        return k.square() / 2, k
    edge = math.log1p(K3_MAX_SLOPE)
    near = (-k).clamp(max=edge)
    rest = torch.expm1(near)
    return rest - near + K3_MAX_SLOPE * (-k - edge).clamp(min=0), -rest


def _at_level(values: Tensor, mask: Tensor, cu_seqlens: Tensor | None, level: str) -> Tensor:
    """values [N] -> for another level than "token" the sum or mean over the counted tokens of each token's sequence.

    Tokens outside all sequences get 0."""
    if level == "token":
        return values
    assert cu_seqlens is not None
    num_after = values.numel() - cu_seqlens[-1:]  # tokens after all sequences
    lengths = torch.cat([cu_seqlens.diff(), num_after])

    def sums(x: Tensor) -> Tensor:  # segment_reduce adds in a fixed order on CUDA, index_add_ does not
        return torch.segment_reduce(x, "sum", lengths=lengths, axis=0, unsafe=True)

    result = sums(torch.where(mask, values, 0))
    if level == "geometric":
        result = result / sums(mask.to(values.dtype)).clamp(min=1)
    result[-1] = 0
    return result.repeat_interleave(lengths, output_size=values.numel())


def _importance(
    mismatch: Tensor, mask: Tensor, settings: PolicyLossSettings, cu_seqlens: Tensor | None
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Returns the factor of each policy term [N], None where it is 1, and its metrics.

    mismatch: [N], old − rollout, 0 where masked out."""
    factor, metrics = None, {}
    if settings.tis_cap is not None:
        tis = torch.where(mask, _at_level(mismatch, mask, cu_seqlens, settings.tis_level).exp(), 0)
        factor = tis.clamp(max=settings.tis_cap)
        metrics |= {"tis_sum": factor.sum(), "tis_capped_sum": (tis > settings.tis_cap).sum()}
    if settings.mask_level is not None:
        ratio = _at_level(mismatch, mask, cu_seqlens, settings.mask_level).exp()
        masked = mask & ((ratio < settings.mask_low) | (ratio > settings.mask_high))
        metrics["mask_sum"] = masked.sum()
        factor = torch.ones_like(ratio) if factor is None else factor
        factor = torch.where(masked, 0, torch.where(ratio.isnan(), ratio, factor))  # NaN must reach the loss
    return factor, metrics


def _surrogate_and_derivatives(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, settings: PolicyLossSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the surrogate [N] and its derivatives in ratio and logprobs [N], by autograd."""
    objective = settings.objective
    with torch.enable_grad():
        ratio, logprobs = (x.detach().requires_grad_() for x in (ratio, logprobs))
        surrogate = objective(ratio, logprobs, advantages, settings)
        if surrogate.shape != ratio.shape:
            raise ValueError(
                f"objective {objective!r} must return one surrogate a token, {list(ratio.shape)}, "
                f"got {list(surrogate.shape)}"
            )
        if not surrogate.requires_grad:
            raise ValueError(f"the surrogate of objective {objective!r} has no gradient in ratio or logprobs")
        d_ratio, d_logprobs = torch.autograd.grad(
            surrogate.sum(), (ratio, logprobs), allow_unused=True, materialize_grads=True
        )
    return surrogate.detach(), d_ratio, d_logprobs


def _terms_by_autograd(
    ratio: Tensor,
    logprobs: Tensor,
    advantages: Tensor,
    scale: Tensor,
    mask: Tensor,
    settings: PolicyLossSettings,
    cu_seqlens: Tensor | None,
) -> TokenTerms:
    """Terms of an objective without a closed form. scale: [N], −weight · importance. mask: [N], the counted tokens."""
    surrogate, d_ratio, d_logprobs = _surrogate_and_derivatives(ratio, logprobs, advantages, settings)
    dual = torch.zeros_like(mask)
    if settings.dual_clip is not None:
        bound = settings.dual_clip * advantages
        dual = (advantages < 0) & (surrogate < bound)
        surrogate = torch.where(dual, bound, surrogate)
        d_ratio, d_logprobs = (torch.where(dual, 0, x) for x in (d_ratio, d_logprobs))
    constant = (d_ratio == 0) & (d_logprobs == 0) & ~dual
    # A clipped or masked token keeps a gradient of 0 where its ratio is infinite.
    idle = scale == 0
    d_log_ratio = torch.where((d_ratio == 0) | idle, 0, scale * d_ratio * ratio)
    if settings.ratio_level != "token":
        d_log_ratio = torch.where(mask, _at_level(d_log_ratio, mask, cu_seqlens, settings.ratio_level), 0)
    return TokenTerms(
        torch.where(mask & ~(idle & surrogate.isinf()), scale * surrogate, 0),
        d_log_ratio + torch.where(idle, 0, scale * d_logprobs),
        constant & (advantages < 0),
        constant & (advantages > 0),
        dual,
    )


def _policy_terms(
    p: Tensor,
    old: Tensor,
    a: Tensor,
    w: Tensor,
    importance: Tensor | None,
    mask: Tensor,
    settings: PolicyLossSettings,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, TokenTerms]:
    """Returns the ratio [N] and the objective's terms. p, old: logprobs, a: advantages, w: weights; all [N]."""
    level = settings.ratio_level
    ratio = torch.where(mask, _at_level(p - old, mask, cu_seqlens, level), 0).exp()
    scale = -w if importance is None else -w * importance
    if not isinstance(settings.objective, ClippedObjective):
        return ratio, _terms_by_autograd(ratio, p, a, scale, mask, settings, cu_seqlens)
    coef = scale * a
    mean_coef = _at_level(coef, mask, cu_seqlens, level)
    return ratio, settings.objective.terms(ratio, p, a, coef, mean_coef, settings)


def loss_and_gradient_torch(
    logprobs: Tensor,
    entropy: Tensor | None,
    tokens: PerToken,
    settings: PolicyLossSettings,
    cu_seqlens: Tensor | None,
) -> LossAndGradient:
    """Arguments as in `loss_and_gradient`."""
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    mask = tokens.weights != 0

    def read(x: Tensor) -> Tensor:
        return torch.where(mask, x.detach(), 0).to(dtype)

    p, a, w = read(logprobs), read(tokens.advantages), read(tokens.weights)
    old = p if tokens.old_logprobs is None else read(tokens.old_logprobs)
    report = dict.fromkeys(METRICS, torch.zeros((), dtype=dtype, device=p.device))
    importance = None
    if tokens.rollout_logprobs is not None:
        mismatch = old - read(tokens.rollout_logprobs)
        importance, metrics = _importance(mismatch, mask, settings, cu_seqlens)
        report |= metrics | {
            "rollout_kl_sum": -mismatch.sum(),
            "rollout_k3_sum": _kl(-mismatch, "k3")[0].sum(),
            "rollout_ratio_max": torch.where(mask, mismatch.abs().exp(), -torch.inf).amax(),
        }
    ratio, terms = _policy_terms(p, old, a, w, importance, mask, settings, cu_seqlens)
    loss, grad, d_entropy = terms.loss, terms.d_logprobs, None
    if tokens.ref_logprobs is not None:
        kl, d_kl = _kl(p - read(tokens.ref_logprobs), settings.kl_kind)
        report["kl_sum"] = kl.sum()
        loss = loss + settings.kl_coef * w * kl
        grad = grad + settings.kl_coef * w * d_kl
    if entropy is not None:
        h = read(entropy)
        report["entropy_sum"] = h.sum()
        loss = loss - settings.entropy_coef * w * h
        d_entropy = -settings.entropy_coef * w if settings.entropy_coef else None
    report |= {
        "loss": loss.sum(),
        "num_tokens": mask.sum(),
        "ratio_sum": torch.where(mask, ratio, 0).sum(),
        "ratio_min": torch.where(mask, ratio, torch.inf).amin(),
        "ratio_max": torch.where(mask, ratio, -torch.inf).amax(),
        "clip_low_sum": (terms.clip_low & mask).sum(),
        "clip_high_sum": (terms.clip_high & mask).sum(),
        "dual_clip_sum": (terms.dual_clip & mask).sum(),
        "approx_kl_sum": (old - p).sum(),
    }
    values = torch.stack([report[name].to(dtype) for name in METRICS])
    return LossAndGradient(torch.where(mask, grad, 0), d_entropy, values)
