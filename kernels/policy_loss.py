"""The clipped policy objective of one token, its KL, entropy and importance-sampling terms, and its gradient.

    d = logprob − old_logprob      ratio = exp(d)
    effective ratio   advantage ≥ 0: min(ratio, 1 + clip_high)
                      advantage < 0: max(ratio, 1 − clip_low), then at most dual_clip
    tis = min(exp(old_logprob − rollout_logprob), tis_cap), a constant
    loss = Σ weight · (−tis · effective ratio · advantage + kl_coef · kl − entropy_coef · entropy)

    kl, with k = logprob − ref_logprob:      k1 = k      k2 = k² / 2      k3 = exp(−k) − 1 + k

Sources: PPO (arXiv:1707.06347), dual clip (arXiv:1912.09729), separate bounds (DAPO, arXiv:2503.14476),
TIS (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"), k1, k2, k3
(Schulman 2020, "Approximating KL divergence"). The KL is a term of the loss and is differentiated as written:
on-policy only k2's gradient is, without bias, the reverse KL's; k1's has mean 0, k3's is the forward KL's.

No log-ratio is clamped: a clamp would make a diverged token's gradient 0 without a word. A token of weight 0
takes no part, whatever its inputs hold; an infinite ratio that no bound meets shows as an infinite loss.

Shapes: N tokens; S samples. All arithmetic in fp32 (float64 for float64 logprobs).
"""

import torch
from torch.autograd.function import once_differentiable

KL_KINDS = ("k1", "k2", "k3")
NORMALISATIONS = ("token", "sequence")


def token_weights(
    num_response_tokens: torch.Tensor,
    valid: torch.Tensor,
    *,
    kind: str,
    total: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """The weight of each response token of a sample: the loss's mask and normaliser in one number.

    num_response_tokens: [S] int64. valid: [S] bool; False (a failed judge): weight 0.
    kind: "token": 1 / total, with total the valid response tokens of the global batch: tokens count alike.
        "sequence": 1 / (total · num_response_tokens), with total the valid sequences of the global batch:
        sequences count alike.
    total: the denominator over the global batch (all micro-batches and ranks); None: these samples are the
        global batch. Dr. GRPO's constant is kind="token" with total = sequences × longest response allowed.

    Returns [S] fp32, to be copied to the sample's response tokens (0 on all others). A total of 0 gives 0.
    """
    if kind not in NORMALISATIONS:
        raise ValueError(f"kind must be one of {', '.join(NORMALISATIONS)}, got {kind!r}")
    lens = torch.where(valid, num_response_tokens, 0)
    if total is None:
        total = lens.sum() if kind == "token" else (lens > 0).sum()
    denominator = total * (torch.ones_like(lens) if kind == "token" else lens)
    return torch.where(lens > 0, 1 / denominator.double(), 0).masked_fill(denominator == 0, 0).float()


def policy_loss_ref(
    logprobs, old_logprobs, advantages, weights, *, clip_low=0.2, clip_high=0.2, dual_clip=None,
    rollout_logprobs=None, tis_cap=None, ref_logprobs=None, kl_coef=0.0, kl_kind="k1", entropy=None,
    entropy_coef=0.0,
):  # fmt: skip
    """The loss alone, as the papers write it, in plain torch, differentiable by autograd."""
    ratio = (logprobs - old_logprobs).exp()
    objective = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    if tis_cap is not None:
        objective = objective * (old_logprobs - rollout_logprobs).exp().clamp(max=tis_cap).detach()
    total = -(weights * objective).sum()
    if ref_logprobs is not None:
        k = logprobs - ref_logprobs
        kl = {"k1": k, "k2": k.square() / 2, "k3": torch.exp(-k) - 1 + k}[kl_kind]
        total = total + kl_coef * (weights * kl).sum()
    if entropy is not None:
        total = total - entropy_coef * (weights * entropy).sum()
    return total


def _kl(k, kind):
    """The estimate and its derivative with respect to k."""
    if kind == "k1":
        return k, torch.ones_like(k)
    if kind == "k2":
        return k.square() / 2, k
    rest = torch.expm1(-k)
    return rest + k, -rest


def _clipped(ratio, advantages, clip_low, clip_high, dual_clip):
    """Effective ratio, and which tokens met the high, the low and the dual bound."""
    positive, negative = advantages > 0, advantages < 0
    high = positive & (ratio > 1 + clip_high)
    low = negative & (ratio < 1 - clip_low)
    effective = torch.where(negative, ratio.clamp(min=1 - clip_low), ratio.clamp(max=1 + clip_high))
    if dual_clip is None:
        return effective, high, low, torch.zeros_like(low)
    dual = negative & (ratio > dual_clip)
    return torch.where(dual, dual_clip, effective), high, low, dual


def _importance(old_logprobs, rollout_logprobs, mask, cap, metrics):
    """The truncated importance weight of each token, 1 where none is asked for."""
    mismatch = old_logprobs - rollout_logprobs
    metrics["rollout_kl_sum"] = -mismatch.sum()
    if cap is None:
        return torch.ones_like(mismatch)
    tis = torch.where(mask, mismatch.exp(), 0)
    metrics["tis_capped_sum"] = (tis > cap).sum()
    tis = tis.clamp(max=cap)
    metrics["tis_sum"] = tis.sum()
    return tis


def _loss_and_gradient(
    logprobs, old_logprobs, advantages, weights, rollout_logprobs, ref_logprobs, entropy,
    *, clip_low, clip_high, dual_clip, tis_cap, kl_coef, kl_kind, entropy_coef,
):  # fmt: skip
    """Loss [], d_logprobs [N], d_entropy [N] or None, metrics. The gradient is elementwise: known at once."""
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    mask = weights != 0

    def read(x):
        return torch.where(mask, x.detach(), 0).to(dtype)

    p, old, a, w = read(logprobs), read(old_logprobs), read(advantages), read(weights)
    ratio = (p - old).exp()
    effective, high, low, dual = _clipped(ratio, a, clip_low, clip_high, dual_clip)
    metrics = {
        "num_tokens": mask.sum(),
        "ratio_sum": torch.where(mask, ratio, 0).sum(),
        "ratio_min": torch.where(mask, ratio, torch.inf).amin(),
        "ratio_max": torch.where(mask, ratio, -torch.inf).amax(),
        "clip_low_sum": low.sum(),
        "clip_high_sum": high.sum(),
        "dual_clip_sum": dual.sum(),
        "approx_kl_sum": (old - p).sum(),
    }
    pull = -w * a
    if rollout_logprobs is not None:
        pull = pull * _importance(old, read(rollout_logprobs), mask, tis_cap, metrics)
    loss = pull * effective
    d_logprobs = torch.where((a == 0) | high | low | dual, 0, loss)
    d_entropy = None
    if ref_logprobs is not None:
        kl, d_kl = _kl(p - read(ref_logprobs), kl_kind)
        metrics["kl_sum"] = kl.sum()
        loss = loss + kl_coef * w * kl
        d_logprobs = d_logprobs + kl_coef * w * d_kl
    if entropy is not None:
        h = read(entropy)
        metrics["entropy_sum"] = h.sum()
        loss = loss - entropy_coef * w * h
        d_entropy = -entropy_coef * w if entropy_coef else None
    return loss.sum(), d_logprobs, d_entropy, {name: x.to(torch.float32) for name, x in metrics.items()}


class _WithGradient(torch.autograd.Function):
    """A loss whose gradient is already known; backward only scales it."""

    @staticmethod
    def forward(ctx, logprobs, entropy, loss, d_logprobs, d_entropy):
        ctx.save_for_backward(d_logprobs, d_entropy)
        ctx.dtypes = logprobs.dtype, None if entropy is None else entropy.dtype
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss):
        grads = [
            None if grad is None else (d_loss * grad).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *grads, None, None, None


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    rollout_logprobs: torch.Tensor | None = None,
    tis_cap: float | None = None,
    ref_logprobs: torch.Tensor | None = None,
    kl_coef: float = 0.0,
    kl_kind: str = "k1",
    entropy: torch.Tensor | None = None,
    entropy_coef: float = 0.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Clipped policy loss of N tokens, differentiable in logprobs and entropy, and its metrics.

    logprobs, old_logprobs, advantages: [N] float, of the current policy, of the policy at the start of the
        batch, and of each token (its sample's, copied).
    weights: [N] float, mask and normaliser in one (see token_weights); a token of weight 0 takes no part.
        Losses of micro-batches and ranks add to the loss of the global batch.
    clip_low, clip_high: the ratio counts within [1 − clip_low, 1 + clip_high].
    dual_clip: > 1, bounds the ratio where the advantage is negative; None: no bound.
    rollout_logprobs, tis_cap: [N], the engine's; with a cap the policy term (alone) is multiplied by
        min(exp(old − rollout), tis_cap); without one they are only compared.
    ref_logprobs, kl_coef, kl_kind: [N], the frozen reference's; "k1", "k2" or "k3".
    entropy, entropy_coef: [N], added as a bonus.

    Returns the loss (scalar, nats, fp32; float64 for float64 logprobs) and metrics, fp32 scalars on the same
    device without gradient. They are sums over the tokens of non-zero weight, so they add over micro-batches
    and ranks: num_tokens, ratio_sum, clip_low_sum, clip_high_sum, dual_clip_sum, approx_kl_sum (old − new);
    with the inputs they need: rollout_kl_sum (rollout − old), tis_sum, tis_capped_sum, kl_sum, entropy_sum.
    Only ratio_min and ratio_max are extremes (+inf and −inf without tokens). Never waits for the device.
    Saved for backward: the gradient [N]. Raises ValueError for arguments that do not fit. Formula: the head
    of this file.
    """
    per_token = (logprobs, old_logprobs, advantages, weights, rollout_logprobs, ref_logprobs, entropy)
    shapes = [list(x.shape) for x in per_token if x is not None]
    if logprobs.ndim != 1 or logprobs.numel() == 0 or any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"all per-token tensors must be [N] alike with N >= 1, got {shapes}")
    if not (0 <= clip_low <= 1 and clip_high >= 0) or (dual_clip is not None and not dual_clip > 1):
        given = f"{clip_low}, {clip_high} and {dual_clip}"
        raise ValueError(f"clip_low in [0, 1], clip_high >= 0 and dual_clip > 1 wanted, got {given}")
    if kl_kind not in KL_KINDS:
        raise ValueError(f"kl_kind must be one of {', '.join(KL_KINDS)}, got {kl_kind!r}")
    for name, value, needed, tensor in (
        ("tis_cap", tis_cap, "rollout_logprobs", rollout_logprobs),
        ("kl_coef", kl_coef, "ref_logprobs", ref_logprobs),
        ("entropy_coef", entropy_coef, "entropy", entropy),
    ):
        if value and tensor is None:
            raise ValueError(f"{name}={value} needs {needed}")
    loss, d_logprobs, d_entropy, metrics = _loss_and_gradient(
        *per_token,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        tis_cap=tis_cap,
        kl_coef=kl_coef,
        kl_kind=kl_kind,
        entropy_coef=entropy_coef,
    )
    return _WithGradient.apply(logprobs, entropy, loss, d_logprobs, d_entropy), metrics
