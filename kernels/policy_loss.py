"""The policy loss of one token, with KL, entropy and importance-sampling terms, and its gradient.

    d = logprob − old_logprob      ratio = exp(d)      surrogate = objective(ratio, logprob, advantage) (objectives.py)
    dual clip, for a negative advantage: surrogate is at least dual_clip · advantage
    loss = Σ weight · (−importance · surrogate + kl_coef · kl − entropy_coef · entropy)

    kl, with k = logprob − ref_logprob:      k1 = k      k2 = k² / 2      k3 = exp(−k) − 1 + k

importance, a constant without gradient, corrects for the engine, whose logprobs differ from the trainer's, m = old −
rollout: importance = tis · mask, with tis = min(exp(m at tis_level), tis_cap), and mask = 1 where mask_low ≤ exp(m at
mask_level) ≤ mask_high, else 0. A value at a level is: "token", of each token; "sequence", the sum over the counted
tokens of its sequence; "geometric", their mean. A masked token has no policy term; its KL and entropy terms stay, and
so do all denominators, which are in the weights.

With ratio_level="geometric" the ratio is the sequence's (GSPO): d is its mean over the sequence's n counted tokens, and
∂ratio/∂logprob = ratio / n for each of them, masked ones too. The closed form of clip requires that the tokens of a
sequence share their advantage.

Sources: PPO (arXiv:1707.06347), dual clip (arXiv:1912.09729), GSPO (arXiv:2507.18071), TIS (Yao et al. 2025, "Your
efficient RL framework secretly brings you off-policy RL training"), the mask of tokens (IcePop, arXiv:2510.18855: with
tis_cap = mask_high) and of sequences (Liu et al. 2025, "When speed kills stability"), k1, k2, k3 (Schulman 2020,
"Approximating KL divergence"). The KL is a term of the loss and is differentiated as written. On-policy, only k2's
gradient is an unbiased estimate of the reverse KL's gradient; k1's gradient has mean 0, and k3's estimates the forward
KL's.

k3 continues as a line where its slope would exceed K3_MAX_SLOPE = 10 in size, at −k > ln 11: value and slope are
continuous, and one diverged token has a gradient of kl_coef · weight · 10, neither exp(−k) nor 0. No other log-ratio
is bounded: a clamp would silently zero the gradient of a diverged token. A token of weight 0 is ignored, whatever its
inputs hold. An infinite ratio that no bound limits gives an infinite loss, and NaN gives NaN: no cap, mask or clip
hides it.

The implementations are policy_loss_triton.py and policy_loss_torch.py.

Shapes: N tokens; S sequences. All arithmetic is in fp32 (float64 for float64 logprobs).
"""

import math
from typing import Literal, get_args

import torch
from ralign.kernels.implementation import uses_triton
from ralign.kernels.objectives import CLIP, ClippedObjective, Level, PolicyLossSettings, PolicyObjective
from ralign.kernels.policy_loss_data import K3_MAX_SLOPE, METRICS, LossAndGradient, PerToken, named_metrics
from ralign.kernels.policy_loss_torch import loss_and_gradient_torch
from ralign.kernels.policy_loss_triton import loss_and_gradient_triton
from torch import Tensor
from torch.autograd.function import once_differentiable

KL_KINDS = ("k1", "k2", "k3")
LEVELS = {"ratio_level": ("token", "geometric"), "tis_level": get_args(Level), "mask_level": get_args(Level)}


def policy_loss_ref(
    logprobs, old_logprobs, advantages, weights, *, rollout_logprobs=None, ref_logprobs=None, entropy=None,
    cu_seqlens=None, **settings,
):  # fmt: skip
    """The loss alone, as the papers write it, in plain torch, differentiable by autograd."""
    settings = PolicyLossSettings(**settings)

    def at_level(values, level):
        return values if level == "token" else _of_sequences_ref(values, weights != 0, cu_seqlens, level)

    ratio = at_level(logprobs - old_logprobs, settings.ratio_level).exp()
    surrogate = settings.objective(ratio, logprobs, advantages, settings)
    if settings.dual_clip is not None:
        bounded = torch.maximum(surrogate, settings.dual_clip * advantages)
        surrogate = torch.where(advantages < 0, bounded, surrogate)
    if settings.tis_cap is not None:
        tis = at_level(old_logprobs - rollout_logprobs, settings.tis_level).exp()
        surrogate = surrogate * tis.clamp(max=settings.tis_cap).detach()
    if settings.mask_level is not None:
        mismatch = at_level(old_logprobs - rollout_logprobs, settings.mask_level).exp()
        surrogate = surrogate * ((mismatch >= settings.mask_low) & (mismatch <= settings.mask_high))
    per_token = -surrogate
    if ref_logprobs is not None:
        k = logprobs - ref_logprobs
        near = k.clamp(min=-math.log1p(K3_MAX_SLOPE))
        k3 = torch.exp(-near) - 1 + near - K3_MAX_SLOPE * (k - near)
        per_token = per_token + settings.kl_coef * {"k1": k, "k2": k.square() / 2, "k3": k3}[settings.kl_kind]
    if entropy is not None:
        per_token = per_token - settings.entropy_coef * entropy
    return torch.where(weights != 0, weights * per_token, 0).sum()


def _of_sequences_ref(values, counted, cu_seqlens, level):
    """The sum or the mean of the counted values of each sequence, at each of its tokens; 0 after the sequences."""
    bounds = cu_seqlens.tolist()
    result = torch.zeros_like(values)
    for i, j in zip(bounds, bounds[1:], strict=False):
        own = values[i:j][counted[i:j]]
        if own.numel():
            result[i:j] = own.sum() if level == "sequence" else own.mean()
    return result


def loss_and_gradient(
    logprobs: Tensor,
    entropy: Tensor | None,
    tokens: PerToken,
    settings: PolicyLossSettings,
    implementation: str,
    cu_seqlens: Tensor | None = None,
) -> LossAndGradient:
    """`policy_loss` without autograd: the gradient is elementwise, so it is computed together with the loss.

    logprobs: [N]. entropy: [N] or None. The other arguments are those of `policy_loss`; cu_seqlens is read where
    `settings.needs_sequences`.
    Raises ValueError for implementation="triton" with an objective that has no kernel.
    """
    has_kernel = isinstance(settings.objective, ClippedObjective)
    if implementation == "triton" and not has_kernel:
        raise ValueError(f"objective {settings.objective!r} has no Triton kernel: implementation='triton'")
    use_triton = uses_triton(implementation, logprobs) and has_kernel
    run = loss_and_gradient_triton if use_triton else loss_and_gradient_torch
    return run(logprobs, entropy, tokens, settings, cu_seqlens)


def check_arguments(
    settings: PolicyLossSettings,
    shape: torch.Size,
    tokens: PerToken,
    entropy_shape: torch.Size | None,
    *,
    has_sequences: bool,
) -> None:
    """Raises ValueError for arguments of the loss that do not fit. shape: of the logprobs."""
    shapes = [shape, *(x.shape for x in tokens if x is not None)]
    shapes += [] if entropy_shape is None else [entropy_shape]
    if len(shape) != 1 or shape[0] == 0 or any(other != shape for other in shapes):
        raise ValueError(
            f"all per-token tensors must be [N] alike with N >= 1, got {[list(other) for other in shapes]}"
        )
    low, high, dual = settings.clip_low, settings.clip_high, settings.dual_clip
    if not (0 <= low <= 1 and high >= 0) or (dual is not None and not dual > 1):
        raise ValueError(
            f"expected clip_low in [0, 1], clip_high >= 0 and dual_clip > 1, got {low}, {high} and {dual}"
        )
    if settings.kl_kind not in KL_KINDS:
        raise ValueError(f"kl_kind must be one of {', '.join(KL_KINDS)}, got {settings.kl_kind!r}")
    if not callable(settings.objective):
        raise ValueError(f"objective must be a callable such as CLIP, got {settings.objective!r}")
    if isinstance(settings.objective, ClippedObjective):
        settings.objective.check(settings)
    low, high = settings.mask_low, settings.mask_high
    if settings.mask_level is not None and not 0 < low < high:
        raise ValueError(f"expected 0 < mask_low < mask_high, got {low} and {high}")
    for name, level in settings.levels.items():
        if level not in LEVELS[name]:
            raise ValueError(f"{name} must be one of {', '.join(LEVELS[name])}, got {level!r}")
        if level != "token" and not has_sequences:
            raise ValueError(f"{name}={level} needs whole sequences, cu_seqlens")
    for name, value, needed, given in (
        ("tis_cap", settings.tis_cap, "rollout_logprobs", tokens.rollout_logprobs is not None),
        ("mask_level", settings.mask_level, "rollout_logprobs", tokens.rollout_logprobs is not None),
        ("kl_coef", settings.kl_coef, "ref_logprobs", tokens.ref_logprobs is not None),
        ("entropy_coef", settings.entropy_coef, "entropy", entropy_shape is not None),
    ):
        if value and not given:
            raise ValueError(f"{name}={value} needs {needed}")


class _PolicyLoss(torch.autograd.Function):
    """Forward computes the gradient, backward only scales it."""

    @staticmethod
    def forward(ctx, logprobs, entropy, tokens, settings, cu_seqlens, implementation):
        result = loss_and_gradient(logprobs, entropy, tokens, settings, implementation, cu_seqlens)
        ctx.save_for_backward(result.d_logprobs, result.d_entropy)
        ctx.dtypes = logprobs.dtype, None if entropy is None else entropy.dtype
        ctx.mark_non_differentiable(result.report)
        return result.report[METRICS.index("loss")].clone(), result.report

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss, _):
        grads = [
            None if grad is None else (d_loss * grad).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *grads, None, None, None, None


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    objective: PolicyObjective = CLIP,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    ratio_level: Literal["token", "geometric"] = "token",
    rollout_logprobs: Tensor | None = None,
    tis_cap: float | None = None,
    tis_level: Level = "token",
    mask_level: Level | None = None,
    mask_low: float = 0.5,
    mask_high: float = 2.0,
    ref_logprobs: Tensor | None = None,
    kl_coef: float = 0.0,
    kl_kind: str = "k1",
    entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
    cu_seqlens: Tensor | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Policy loss of N tokens, differentiable in logprobs and entropy, and its metrics.

    logprobs, old_logprobs, advantages: [N] float: of the current policy, of the policy at the start of the
        batch, and of each token (that of its sample, or its own).
    weights: [N] float, mask and normaliser in one (as 1 / tokens of the global batch); a token of weight 0 is ignored.
        Losses of micro-batches and ranks add up to the loss of the global batch.
    objective: CLIP, CISPO or any other `PolicyObjective`; see objectives.py.
    clip_low, clip_high: bounds of the ratio, 1 − clip_low and 1 + clip_high.
    dual_clip: > 1, lower bound of the surrogate where the advantage is negative, in advantages; None: no bound.
    ratio_level: "token": each token has its own ratio; "geometric": its sequence's geometric mean (GSPO).
    rollout_logprobs: [N], from the generator. Without tis_cap and mask_level, they only enter the metrics.
    tis_cap, tis_level: with a cap, the policy term alone is multiplied by min(exp(old − rollout), tis_cap), of each
        token, or with the sum ("sequence") or the mean ("geometric") of its sequence's log-ratios; None: off.
    mask_level, mask_low, mask_high: tokens have no policy term where that ratio, at mask_level and not capped, is
        below mask_low > 0 or above mask_high; None: off. KL and entropy terms and the denominators stay.
    ref_logprobs, kl_coef, kl_kind: [N], of the frozen reference; "k1", "k2" or "k3".
    entropy, entropy_coef: [N], added as a bonus.
    cu_seqlens: [S + 1] int32 or int64, bounds of whole sequences in the N tokens, from 0; tokens after the last have
        weight 0. Needed by every level but "token", and not read without one.
    implementation: "auto", "torch" or "triton"; see implementation.py. An objective without a kernel runs in torch
        under "auto".

    Returns the loss (scalar, nats, fp32; float64 for float64 logprobs) and metrics, fp32 scalars on the same
    device without gradient. The metrics are sums over the tokens of non-zero weight, so they add over micro-batches
    and ranks: num_tokens, ratio_sum, clip_low_sum, clip_high_sum, dual_clip_sum, approx_kl_sum (old − new); and,
    given their inputs, rollout_kl_sum (rollout − old), rollout_k3_sum (the same divergence by k3, as above: never
    negative, and a line beyond a ratio of 11), tis_sum and tis_capped_sum (masked tokens included), mask_sum (masked
    tokens), kl_sum, entropy_sum. The clip sums
    count the tokens beyond a bound; for an objective without a closed form, the tokens of negative (low) and positive
    (high) advantage whose surrogate has a derivative of 0. Only ratio_min, ratio_max and rollout_ratio_max, the
    largest exp|old − rollout| of a token, are extremes (+inf and −inf without tokens). Does not synchronise with the
    device. Saved for backward: the gradient [N].
    Raises ValueError for arguments that do not fit. The formulas are at the head of this file.
    """
    settings = PolicyLossSettings(
        objective=objective, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip, ratio_level=ratio_level,
        tis_cap=tis_cap, tis_level=tis_level, mask_level=mask_level, mask_low=mask_low, mask_high=mask_high,
        kl_coef=kl_coef, kl_kind=kl_kind, entropy_coef=entropy_coef,
    )  # fmt: skip
    tokens = PerToken(old_logprobs, advantages, weights, rollout_logprobs, ref_logprobs)
    entropy_shape = None if entropy is None else entropy.shape
    check_arguments(settings, logprobs.shape, tokens, entropy_shape, has_sequences=cu_seqlens is not None)
    loss, report = _PolicyLoss.apply(logprobs, entropy, tokens, settings, cu_seqlens, implementation)
    return loss, named_metrics(report, settings, tokens, has_entropy=entropy is not None)
