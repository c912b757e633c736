"""The policy loss of one token, with KL, entropy and importance-sampling terms, and its gradient.

    d = logprob − old_logprob      ratio = exp(d)
    tis = min(exp(old_logprob − rollout_logprob), tis_cap), a constant
    surrogate = objective(ratio, logprob, advantage), clip and cispo in objectives.py
    dual clip, for a negative advantage: surrogate is at least dual_clip · advantage
    loss = Σ weight · (−tis · surrogate + kl_coef · kl − entropy_coef · entropy)

    kl, with k = logprob − ref_logprob:      k1 = k      k2 = k² / 2      k3 = exp(−k) − 1 + k

With cu_seqlens the ratio is the sequence's: d is its mean over the n counted tokens of the sequence (GSPO), and
∂ratio/∂logprob = ratio / n for each of them. The closed form of clip requires that the tokens of a sequence share
their advantage.

Sources: PPO (arXiv:1707.06347), dual clip (arXiv:1912.09729), GSPO (arXiv:2507.18071), TIS (Yao et al. 2025, "Your
efficient RL framework secretly brings you off-policy RL training"), k1, k2, k3 (Schulman 2020, "Approximating KL
divergence"). The KL is a term of the loss and is differentiated as written. On-policy, only k2's gradient is an
unbiased estimate of the reverse KL's gradient; k1's gradient has mean 0, and k3's estimates the forward KL's.

No log-ratio is clamped: a clamp would silently zero the gradient of a diverged token. A token of weight 0 is ignored,
whatever its inputs hold. An infinite ratio that no bound limits gives an infinite loss.

The implementations are policy_loss_triton.py and policy_loss_torch.py.

Shapes: N tokens; S sequences. All arithmetic is in fp32 (float64 for float64 logprobs).
"""

import torch
from ralign.kernels.implementation import uses_triton
from ralign.kernels.objectives import CLIP, ClippedObjective, PolicyLossSettings, PolicyObjective
from ralign.kernels.policy_loss_data import METRICS, LossAndGradient, PerToken, named_metrics
from ralign.kernels.policy_loss_torch import loss_and_gradient_torch
from ralign.kernels.policy_loss_triton import loss_and_gradient_triton
from torch import Tensor
from torch.autograd.function import once_differentiable

KL_KINDS = ("k1", "k2", "k3")


def policy_loss_ref(
    logprobs, old_logprobs, advantages, weights, *, rollout_logprobs=None, ref_logprobs=None, entropy=None,
    cu_seqlens=None, **settings,
):  # fmt: skip
    """The loss alone, as the papers write it, in plain torch, differentiable by autograd."""
    settings = PolicyLossSettings(**settings)
    log_ratio = logprobs - old_logprobs
    if cu_seqlens is not None:
        bounds = cu_seqlens.tolist()
        counted = weights != 0
        means = [
            log_ratio[i:j][counted[i:j]].mean().expand(j - i)
            for i, j in zip(bounds, bounds[1:], strict=False)
        ]
        log_ratio = torch.cat([*means, log_ratio[bounds[-1] :]])
    surrogate = settings.objective(log_ratio.exp(), logprobs, advantages, settings)
    if settings.dual_clip is not None:
        bounded = torch.maximum(surrogate, settings.dual_clip * advantages)
        surrogate = torch.where(advantages < 0, bounded, surrogate)
    if settings.tis_cap is not None:
        tis = (old_logprobs - rollout_logprobs).exp().clamp(max=settings.tis_cap)
        surrogate = surrogate * tis.detach()
    per_token = -surrogate
    if ref_logprobs is not None:
        k = logprobs - ref_logprobs
        kl = {"k1": k, "k2": k.square() / 2, "k3": torch.exp(-k) - 1 + k}[settings.kl_kind]
        per_token = per_token + settings.kl_coef * kl
    if entropy is not None:
        per_token = per_token - settings.entropy_coef * entropy
    return torch.where(weights != 0, weights * per_token, 0).sum()


def loss_and_gradient(
    logprobs: Tensor,
    entropy: Tensor | None,
    tokens: PerToken,
    settings: PolicyLossSettings,
    implementation: str,
    cu_seqlens: Tensor | None = None,
) -> LossAndGradient:
    """`policy_loss` without autograd: the gradient is elementwise, so it is computed together with the loss.

    logprobs: [N]. entropy: [N] or None. The other arguments are those of `policy_loss`.
    Raises ValueError for implementation="triton" with an objective that has no kernel.
    """
    has_kernel = isinstance(settings.objective, ClippedObjective)
    if implementation == "triton" and not has_kernel:
        raise ValueError(f"objective {settings.objective!r} has no Triton kernel: implementation='triton'")
    use_triton = uses_triton(implementation, logprobs) and has_kernel
    run = loss_and_gradient_triton if use_triton else loss_and_gradient_torch
    return run(logprobs, entropy, tokens, settings, cu_seqlens)


def check_arguments(
    settings: PolicyLossSettings, shape: torch.Size, tokens: PerToken, entropy_shape: torch.Size | None
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
    for name, value, needed, given in (
        ("tis_cap", settings.tis_cap, "rollout_logprobs", tokens.rollout_logprobs is not None),
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
    rollout_logprobs: Tensor | None = None,
    tis_cap: float | None = None,
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
    rollout_logprobs, tis_cap: [N], from the generator. With a cap, the policy term alone is multiplied by
        min(exp(old − rollout), tis_cap); without one, they only enter the metrics.
    ref_logprobs, kl_coef, kl_kind: [N], of the frozen reference; "k1", "k2" or "k3".
    entropy, entropy_coef: [N], added as a bonus.
    cu_seqlens: [S + 1] int32 or int64, bounds of whole sequences in the N tokens: the ratio is then the
        sequence's (GSPO). None: each token has its own.
    implementation: "auto", "torch" or "triton"; see implementation.py. An objective without a kernel runs in torch
        under "auto".

    Returns the loss (scalar, nats, fp32; float64 for float64 logprobs) and metrics, fp32 scalars on the same
    device without gradient. The metrics are sums over the tokens of non-zero weight, so they add over micro-batches
    and ranks: num_tokens, ratio_sum, clip_low_sum, clip_high_sum, dual_clip_sum, approx_kl_sum (old − new); and,
    given their inputs, rollout_kl_sum (rollout − old), tis_sum, tis_capped_sum, kl_sum, entropy_sum. The clip sums
    count the tokens beyond a bound; for an objective without a closed form, the tokens of negative (low) and positive
    (high) advantage whose surrogate has a derivative of 0. Only ratio_min and ratio_max are extremes (+inf and −inf
    without tokens). Does not synchronise with the device. Saved for backward: the gradient [N].
    Raises ValueError for arguments that do not fit. The formulas are at the head of this file.
    """
    settings = PolicyLossSettings(
        objective=objective, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip, tis_cap=tis_cap,
        kl_coef=kl_coef, kl_kind=kl_kind, entropy_coef=entropy_coef,
    )  # fmt: skip
    tokens = PerToken(old_logprobs, advantages, weights, rollout_logprobs, ref_logprobs)
    check_arguments(settings, logprobs.shape, tokens, None if entropy is None else entropy.shape)
    loss, report = _PolicyLoss.apply(logprobs, entropy, tokens, settings, cu_seqlens, implementation)
    return loss, named_metrics(report, settings, tokens, has_entropy=entropy is not None)
