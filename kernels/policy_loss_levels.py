"""Importance weights and masks of the policy loss in Triton, at each level; formulas at the head of policy_loss.py.

For a level of the sequence, a kernel before that of the loss computes the sums and means of the sequences. Sums are
reduced in a fixed order: the same inputs give the same bits.

Shapes: N tokens; S sequences.
"""

from typing import Any

import torch
import triton.language as tl
from ralign.kernels.implementation import jit
from ralign.kernels.objectives import PolicyLossSettings
from torch import Tensor

_BLOCK = 1024  # tokens a program reads at a time


def level_arguments(settings: PolicyLossSettings) -> dict[str, Any]:
    """The arguments that `importance` and the kernels have in common."""
    return {
        "RATIO_LEVEL": settings.ratio_level,
        "TIS_LEVEL": "off" if settings.tis_cap is None else settings.tis_level,
        "TIS_CAP": settings.tis_cap or 0.0,
        "MASK_LEVEL": settings.mask_level or "off",
        "MASK_LOW": settings.mask_low,
        "MASK_HIGH": settings.mask_high,
    }


@jit
def mismatch_of(old, rollout_pointer, offsets, mask, ACC: tl.constexpr):
    """Returns old − rollout, 0 where masked out."""
    return tl.where(mask, old - tl.load(rollout_pointer + offsets, mask=mask, other=0.0).to(ACC), 0.0)


@jit
def importance(
    tis_log, mask_log, mask,
    TIS_LEVEL: tl.constexpr, TIS_CAP: tl.constexpr, MASK_LEVEL: tl.constexpr, MASK_LOW: tl.constexpr,
    MASK_HIGH: tl.constexpr,
):  # fmt: skip
    """Returns the factor of the policy term, the capped weight, which weights are capped and which tokens masked.

    tis_log, mask_log: old − rollout at the two levels, of which each can be "off"."""
    capped = tl.where(mask, 1.0, 0.0).to(tis_log.dtype)
    is_capped = tl.zeros_like(mask)
    is_masked = is_capped
    if TIS_LEVEL != "off":
        tis = tl.where(mask, tl.exp(tis_log), 0.0)
        is_capped = tis > TIS_CAP
        capped = tl.where(is_capped, TIS_CAP, tis)  # NaN stays
    factor = capped
    if MASK_LEVEL != "off":
        ratio = tl.exp(mask_log)
        is_masked = mask & ((ratio < MASK_LOW) | (ratio > MASK_HIGH))
        factor = tl.where(ratio != ratio, ratio, factor)  # NaN must reach the loss
        factor = tl.where(is_masked, 0.0, factor)
    return factor, capped, is_capped, is_masked


@jit
def _at_level(value, total, count, LEVEL: tl.constexpr):
    """value: of each token. total, count: over the sequence."""
    if LEVEL == "sequence":
        value = tl.zeros_like(value) + total
    elif LEVEL == "geometric":
        value = tl.zeros_like(value) + total / count
    return value


@jit
def _sequence_kernel(
    logprobs, old_logprobs, advantages, weights, rollout_logprobs, cu_seqlens,
    log_ratios, mean_coefs, tis_logs, mask_logs,
    RATIO_LEVEL: tl.constexpr, TIS_LEVEL: tl.constexpr, TIS_CAP: tl.constexpr, MASK_LEVEL: tl.constexpr,
    MASK_LOW: tl.constexpr, MASK_HIGH: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One sequence a program: what its counted tokens have in common, written to all its tokens.

    log_ratios, mean_coefs: means of the log-ratio and of coef; written for RATIO_LEVEL "geometric" alone. tis_logs,
    mask_logs: old − rollout at the two levels; each is written for a level of the sequence alone."""
    USES_ROLLOUT: tl.constexpr = TIS_LEVEL != "off" or MASK_LEVEL != "off"
    begin = tl.load(cu_seqlens + tl.program_id(0))
    end = tl.load(cu_seqlens + tl.program_id(0) + 1)
    count = tl.zeros((), ACC)
    log_ratio = tl.zeros((), ACC)
    total = tl.zeros((), ACC)
    for start in range(begin, end, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = tl.load(weights + offsets, mask=offsets < end, other=0.0) != 0
        old = tl.load(old_logprobs + offsets, mask=mask, other=0.0).to(ACC)
        p = tl.load(logprobs + offsets, mask=mask, other=0.0).to(ACC)
        count += tl.sum(tl.where(mask, 1.0, 0.0).to(ACC), 0)
        log_ratio += tl.sum(tl.where(mask, p - old, 0.0), 0)
        if USES_ROLLOUT:
            total += tl.sum(mismatch_of(old, rollout_logprobs, offsets, mask, ACC), 0)
    count = tl.maximum(count, 1.0)
    coef_sum = tl.zeros((), ACC)
    for start in range(begin, end, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        inside = offsets < end
        w = tl.load(weights + offsets, mask=inside, other=0.0).to(ACC)
        mask = w != 0
        coef = -w * tl.load(advantages + offsets, mask=mask, other=0.0).to(ACC)
        if USES_ROLLOUT:
            old = tl.load(old_logprobs + offsets, mask=mask, other=0.0).to(ACC)
            mismatch = mismatch_of(old, rollout_logprobs, offsets, mask, ACC)
            tis_log = _at_level(mismatch, total, count, TIS_LEVEL)
            mask_log = _at_level(mismatch, total, count, MASK_LEVEL)
            factor, capped, is_capped, is_masked = importance(
                tis_log, mask_log, mask, TIS_LEVEL, TIS_CAP, MASK_LEVEL, MASK_LOW, MASK_HIGH
            )
            coef *= factor
            if TIS_LEVEL == "sequence" or TIS_LEVEL == "geometric":
                tl.store(tis_logs + offsets, tis_log, mask=inside)
            if MASK_LEVEL == "sequence" or MASK_LEVEL == "geometric":
                tl.store(mask_logs + offsets, mask_log, mask=inside)
        coef_sum += tl.sum(tl.where(mask, coef, 0.0), 0)
    if RATIO_LEVEL == "geometric":
        for start in range(begin, end, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            zeros = tl.zeros((BLOCK,), ACC)
            tl.store(log_ratios + offsets, zeros + log_ratio / count, mask=offsets < end)
            tl.store(mean_coefs + offsets, zeros + coef_sum / count, mask=offsets < end)


def values_of_sequences(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    rollout_logprobs: Tensor | None,
    cu_seqlens: Tensor,
    levels: dict[str, Any],
    dtype: torch.dtype,
) -> list[Tensor]:
    """The results of `_sequence_kernel`, [N] of `dtype` each; those that are not needed are 0.

    The first five are [N], contiguous; cu_seqlens: [S + 1]; levels: from `level_arguments`."""
    results = list(logprobs.new_zeros(4, logprobs.numel(), dtype=dtype))
    rollout = logprobs if rollout_logprobs is None else rollout_logprobs
    _sequence_kernel[(cu_seqlens.numel() - 1,)](
        logprobs, old_logprobs, advantages, weights, rollout, cu_seqlens, *results, **levels,
        ACC=tl.float64 if dtype == torch.float64 else tl.float32, BLOCK=_BLOCK,
    )  # fmt: skip
    return results
