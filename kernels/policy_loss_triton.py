"""The policy loss and its gradient in Triton; the formulas are at the head of policy_loss.py.

One kernel reads each token once and writes its gradient. Sums are reduced in a fixed order, first in a program, then
over programs, without atomics: the same inputs give the same bits. For a level of the sequence, a kernel before it
computes the sums and means of the sequences (policy_loss_levels.py).

Shapes: N tokens; S sequences.
"""

import math

import torch
import triton
import triton.language as tl
from ralign.kernels.implementation import jit
from ralign.kernels.objectives import ClippedObjective, PolicyLossSettings
from ralign.kernels.policy_loss_data import K3_MAX_SLOPE, METRICS, LossAndGradient, PerToken, merge_metrics
from ralign.kernels.policy_loss_levels import importance, level_arguments, mismatch_of, values_of_sequences
from torch import Tensor

_REPORT_SIZE = 32  # METRICS, up to a power of two
_BLOCK = 1024  # tokens a program reads at a time
_TOKENS_PER_PROGRAM = 8192  # up to this many, one launch computes the whole loss

_LOSS = tl.constexpr(METRICS.index("loss"))
_NUM_TOKENS = tl.constexpr(METRICS.index("num_tokens"))
_RATIO_SUM = tl.constexpr(METRICS.index("ratio_sum"))
_RATIO_MIN = tl.constexpr(METRICS.index("ratio_min"))
_RATIO_MAX = tl.constexpr(METRICS.index("ratio_max"))
_CLIP_LOW_SUM = tl.constexpr(METRICS.index("clip_low_sum"))
_CLIP_HIGH_SUM = tl.constexpr(METRICS.index("clip_high_sum"))
_DUAL_CLIP_SUM = tl.constexpr(METRICS.index("dual_clip_sum"))
_APPROX_KL_SUM = tl.constexpr(METRICS.index("approx_kl_sum"))
_ROLLOUT_KL_SUM = tl.constexpr(METRICS.index("rollout_kl_sum"))
_ROLLOUT_K3_SUM = tl.constexpr(METRICS.index("rollout_k3_sum"))
_ROLLOUT_RATIO_MAX = tl.constexpr(METRICS.index("rollout_ratio_max"))
_TIS_SUM = tl.constexpr(METRICS.index("tis_sum"))
_TIS_CAPPED_SUM = tl.constexpr(METRICS.index("tis_capped_sum"))
_MASK_SUM = tl.constexpr(METRICS.index("mask_sum"))
_KL_SUM = tl.constexpr(METRICS.index("kl_sum"))
_ENTROPY_SUM = tl.constexpr(METRICS.index("entropy_sum"))
_K3_SLOPE = tl.constexpr(K3_MAX_SLOPE)
_K3_EDGE = tl.constexpr(math.log1p(K3_MAX_SLOPE))


@jit
def _put(report, METRIC: tl.constexpr, value, SIZE: tl.constexpr):
    """Adds a scalar to one place of the report."""
    return report + tl.where(tl.arange(0, SIZE) == METRIC, value, 0.0)


@jit
def _put_sum(report, METRIC: tl.constexpr, values, SIZE: tl.constexpr):
    """Adds a sum over tokens to one place of the report."""
    return _put(report, METRIC, tl.sum(values, 0), SIZE)


@jit
def _clip_terms(
    ratio, a, coef, mean_coef,
    CLIP_LOW: tl.constexpr, CLIP_HIGH: tl.constexpr, HAS_DUAL: tl.constexpr, DUAL_CLIP: tl.constexpr,
):  # fmt: skip
    """`ClippedObjective.terms` of CLIP: loss, gradient, tokens at the low, high and dual bound."""
    high = (a > 0) & (ratio > 1 + CLIP_HIGH)
    low = (a < 0) & (ratio < 1 - CLIP_LOW)
    dual = (a < 0) & (ratio < 0)
    # Without a coefficient the loss is 0, also where the ratio is infinite.
    idle = (coef == 0) & (ratio > 1 + CLIP_HIGH)
    bounded = tl.where(low, 1 - CLIP_LOW, tl.where(idle | high, 1 + CLIP_HIGH, ratio))
    if HAS_DUAL:
        dual = (a < 0) & (ratio > DUAL_CLIP)
        bounded = tl.where(dual, DUAL_CLIP, bounded)
    loss = coef * bounded
    grad = tl.where((mean_coef == 0) | high | low | dual, 0.0, mean_coef * ratio)
    return loss, grad, low, high, dual


@jit
def _cispo_terms(ratio, p, coef, mask, CLIP_LOW: tl.constexpr, CLIP_HIGH: tl.constexpr):
    """`ClippedObjective.terms` of CISPO: loss, gradient, tokens at the low, high and dual bound."""
    high = mask & (ratio > 1 + CLIP_HIGH)
    low = mask & (ratio < 1 - CLIP_LOW)
    bounded = tl.where(low, 1 - CLIP_LOW, tl.where(high, 1 + CLIP_HIGH, ratio))
    grad = coef * bounded
    loss = grad * p
    return loss, grad, low, high, mask & (ratio < 0)


@jit
def _kl(k, KL_KIND: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """Returns the estimate and its derivative in k."""
    if KL_KIND == "k1":
        kl = k
        d_kl = tl.full((BLOCK,), 1.0, ACC)
    elif KL_KIND == "k2":
        kl = k * k / 2
        d_kl = k
    else:
        # exp(−k) − 1 cancels near 0; the series does not. Beyond the edge, k3 is a line.
        near = tl.where(-k > _K3_EDGE, _K3_EDGE, -k)
        rest = tl.exp(near) - 1
        kl = rest - near + tl.where(-k > _K3_EDGE, _K3_SLOPE * (-k - _K3_EDGE), 0.0)
        series = 1 - k / 3 * (1 - k / 4 * (1 - k / 5))
        kl = tl.where(tl.abs(k) < 0.0625, k * k / 2 * series, kl)
        d_kl = tl.where(tl.abs(k) < 0.0625, k * (1 - k / 2 * series), -rest)
    return kl, d_kl


@jit
def _policy_loss_kernel(
    logprobs, old_logprobs, advantages, weights, rollout_logprobs, ref_logprobs, entropies, log_ratios, mean_coefs,
    tis_logs, mask_logs, d_logprobs, d_entropies, partials, num_tokens,
    RATIO_LEVEL: tl.constexpr, TIS_LEVEL: tl.constexpr, TIS_CAP: tl.constexpr, MASK_LEVEL: tl.constexpr,
    MASK_LOW: tl.constexpr, MASK_HIGH: tl.constexpr, CLIP_LOW: tl.constexpr, CLIP_HIGH: tl.constexpr,
    DUAL_CLIP: tl.constexpr, KL_COEF: tl.constexpr, KL_KIND: tl.constexpr, ENTROPY_COEF: tl.constexpr,
    DETACH_RATIO: tl.constexpr, HAS_DUAL: tl.constexpr, HAS_ROLLOUT: tl.constexpr, HAS_REF: tl.constexpr,
    HAS_ENTROPY: tl.constexpr, ACC: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, NUM_BLOCKS: tl.constexpr,
):  # fmt: skip
    report = tl.zeros((SIZE,), ACC)
    ratio_min = tl.full((), float("inf"), ACC)
    ratio_max = tl.full((), float("-inf"), ACC)
    rollout_ratio_max = ratio_max
    for block in range(0, NUM_BLOCKS):
        offsets = (tl.program_id(0) * NUM_BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        inside = offsets < num_tokens
        w = tl.load(weights + offsets, mask=inside, other=0.0).to(ACC)
        mask = w != 0
        p = tl.load(logprobs + offsets, mask=mask, other=0.0).to(ACC)
        old = tl.load(old_logprobs + offsets, mask=mask, other=0.0).to(ACC)
        a = tl.load(advantages + offsets, mask=mask, other=0.0).to(ACC)
        coef = -w * a
        if HAS_ROLLOUT:
            mismatch = mismatch_of(old, rollout_logprobs, offsets, mask, ACC)
            tis_log = mismatch
            mask_log = mismatch
            if TIS_LEVEL == "sequence" or TIS_LEVEL == "geometric":
                tis_log = tl.load(tis_logs + offsets, mask=mask, other=0.0)
            if MASK_LEVEL == "sequence" or MASK_LEVEL == "geometric":
                mask_log = tl.load(mask_logs + offsets, mask=mask, other=0.0)
            factor, capped, is_capped, is_masked = importance(
                tis_log, mask_log, mask, TIS_LEVEL, TIS_CAP, MASK_LEVEL, MASK_LOW, MASK_HIGH
            )
            coef *= factor
            report = _put_sum(report, _ROLLOUT_KL_SUM, -mismatch, SIZE)
            report = _put_sum(report, _ROLLOUT_K3_SUM, _kl(-mismatch, "k3", ACC, BLOCK)[0], SIZE)
            largest = tl.max(tl.where(mask, tl.exp(tl.abs(mismatch)), float("-inf")), 0)
            rollout_ratio_max = tl.maximum(rollout_ratio_max, largest)
            if TIS_LEVEL != "off":
                report = _put_sum(report, _TIS_SUM, capped, SIZE)
                report = _put_sum(report, _TIS_CAPPED_SUM, is_capped.to(ACC), SIZE)
            if MASK_LEVEL != "off":
                report = _put_sum(report, _MASK_SUM, is_masked.to(ACC), SIZE)
        log_ratio = p - old
        mean_coef = coef
        if RATIO_LEVEL == "geometric":
            log_ratio = tl.load(log_ratios + offsets, mask=mask, other=0.0)
            mean_coef = tl.load(mean_coefs + offsets, mask=mask, other=0.0)
        ratio = tl.exp(log_ratio)
        if DETACH_RATIO:
            loss, grad, low, high, dual = _cispo_terms(ratio, p, coef, mask, CLIP_LOW, CLIP_HIGH)
        else:
            loss, grad, low, high, dual = _clip_terms(
                ratio, a, coef, mean_coef, CLIP_LOW, CLIP_HIGH, HAS_DUAL, DUAL_CLIP
            )
        if HAS_REF:
            k = tl.where(mask, p - tl.load(ref_logprobs + offsets, mask=mask, other=0.0).to(ACC), 0.0)
            kl, d_kl = _kl(k, KL_KIND, ACC, BLOCK)
            report = _put_sum(report, _KL_SUM, kl, SIZE)
            loss += KL_COEF * w * kl
            grad += KL_COEF * w * d_kl
        if HAS_ENTROPY:
            h = tl.load(entropies + offsets, mask=mask, other=0.0).to(ACC)
            report = _put_sum(report, _ENTROPY_SUM, h, SIZE)
            loss -= ENTROPY_COEF * w * h
            tl.store(d_entropies + offsets, -ENTROPY_COEF * w, mask=inside)
        tl.store(d_logprobs + offsets, tl.where(mask, grad, 0.0), mask=inside)
        report = _put_sum(report, _LOSS, tl.where(mask, loss, 0.0), SIZE)
        report = _put_sum(report, _NUM_TOKENS, mask.to(ACC), SIZE)
        report = _put_sum(report, _RATIO_SUM, tl.where(mask, ratio, 0.0), SIZE)
        report = _put_sum(report, _CLIP_LOW_SUM, low.to(ACC), SIZE)
        report = _put_sum(report, _CLIP_HIGH_SUM, high.to(ACC), SIZE)
        report = _put_sum(report, _DUAL_CLIP_SUM, dual.to(ACC), SIZE)
        report = _put_sum(report, _APPROX_KL_SUM, old - p, SIZE)
        ratio_min = tl.minimum(ratio_min, tl.min(tl.where(mask, ratio, float("inf")), 0))
        ratio_max = tl.maximum(ratio_max, tl.max(tl.where(mask, ratio, float("-inf")), 0))
    report = _put(report, _RATIO_MIN, ratio_min, SIZE)
    report = _put(report, _RATIO_MAX, ratio_max, SIZE)
    if HAS_ROLLOUT:
        report = _put(report, _ROLLOUT_RATIO_MAX, rollout_ratio_max, SIZE)
    tl.store(partials + tl.program_id(0) * SIZE + tl.arange(0, SIZE), report)


def loss_and_gradient_triton(
    logprobs: Tensor,
    entropy: Tensor | None,
    tokens: PerToken,
    settings: PolicyLossSettings,
    cu_seqlens: Tensor | None,
) -> LossAndGradient:
    """Arguments as in `loss_and_gradient`; the objective must be a ClippedObjective."""
    assert isinstance(settings.objective, ClippedObjective)
    num_tokens, dtype = logprobs.numel(), torch.promote_types(logprobs.dtype, torch.float32)
    acc = tl.float64 if dtype == torch.float64 else tl.float32
    p, h = logprobs.detach().contiguous(), None if entropy is None else entropy.detach().contiguous()
    old, a, w, rollout, ref = (None if x is None else x.detach().contiguous() for x in tokens)
    assert a is not None and w is not None
    old = p if old is None else old
    levels = level_arguments(settings)
    of_sequences = [p] * 4  # pointers that are never read
    if settings.needs_sequences:
        assert cu_seqlens is not None
        of_sequences = values_of_sequences(p, old, a, w, rollout, cu_seqlens, levels, dtype)
    d_logprobs = torch.empty(num_tokens, dtype=dtype, device=p.device)
    d_entropy = torch.empty_like(d_logprobs) if h is not None else d_logprobs
    num_programs = triton.cdiv(num_tokens, _TOKENS_PER_PROGRAM)
    partials = torch.empty(num_programs, _REPORT_SIZE, dtype=dtype, device=p.device)
    _policy_loss_kernel[(num_programs,)](
        p, old, a, w, p if rollout is None else rollout, p if ref is None else ref, p if h is None else h,
        *of_sequences, d_logprobs, d_entropy, partials, num_tokens, **levels,
        CLIP_LOW=settings.clip_low, CLIP_HIGH=settings.clip_high, DUAL_CLIP=settings.dual_clip or 0.0,
        KL_COEF=settings.kl_coef, KL_KIND=settings.kl_kind, ENTROPY_COEF=settings.entropy_coef,
        DETACH_RATIO=settings.objective.detaches_ratio, HAS_DUAL=settings.dual_clip is not None,
        HAS_ROLLOUT=rollout is not None, HAS_REF=ref is not None, HAS_ENTROPY=h is not None, ACC=acc,
        SIZE=_REPORT_SIZE, BLOCK=_BLOCK, NUM_BLOCKS=triton.cdiv(min(num_tokens, _TOKENS_PER_PROGRAM), _BLOCK),
        num_warps=8,
    )  # fmt: skip
    report = merge_metrics(list(partials[:, : len(METRICS)]), dtype, p.device)
    return LossAndGradient(d_logprobs, d_entropy if settings.entropy_coef else None, report)
