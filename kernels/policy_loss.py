"""The clipped policy objective of one token, its KL, entropy and importance-sampling terms, and its gradient.

    d = logprob − old_logprob      ratio = exp(d)
    effective ratio   advantage ≥ 0: min(ratio, 1 + clip_high)
                      advantage < 0: max(ratio, 1 − clip_low), then at most dual_clip
    tis = min(exp(old_logprob − rollout_logprob), tis_cap), a constant
    clip    policy = −tis · effective ratio · advantage
    cispo   policy = −tis · clip(ratio, 1 − clip_low, 1 + clip_high) · advantage · logprob, all but logprob constant
    loss = Σ weight · (policy + kl_coef · kl − entropy_coef · entropy)

    kl, with k = logprob − ref_logprob:      k1 = k      k2 = k² / 2      k3 = exp(−k) − 1 + k

With cu_seqlens the ratio is the sequence's: d is its mean over the n counted tokens of the sequence (GSPO), and
∂ratio/∂logprob = ratio / n for each of them.

Sources: PPO (arXiv:1707.06347), dual clip (arXiv:1912.09729), separate bounds (DAPO, arXiv:2503.14476), GSPO
(arXiv:2507.18071), CISPO (MiniMax-M1, arXiv:2506.13585), TIS (Yao et al. 2025, "Your efficient RL framework
secretly brings you off-policy RL training"), k1, k2, k3 (Schulman 2020, "Approximating KL divergence"). The KL is
a term of the loss and is differentiated as written: on-policy only k2's gradient is, without bias, the reverse
KL's; k1's has mean 0, k3's is the forward KL's.

No log-ratio is clamped: a clamp would make a diverged token's gradient 0 without a word. A token of weight 0
takes no part, whatever its inputs hold; an infinite ratio that no bound meets shows as an infinite loss.

On CUDA one Triton kernel reads each token once and writes its gradient; sums are reduced in a fixed order, first
in a program, then over programs, without atomics: the same inputs give the same bits.

Shapes: N tokens; S sequences. All arithmetic in fp32 (float64 for float64 logprobs).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from ralign.kernels.implementation import uses_triton
from torch.autograd.function import once_differentiable

KL_KINDS = ("k1", "k2", "k3")
KINDS = ("clip", "cispo")
METRICS = (
    "loss", "num_tokens", "ratio_sum", "ratio_min", "ratio_max", "clip_low_sum", "clip_high_sum", "dual_clip_sum",
    "approx_kl_sum", "rollout_kl_sum", "tis_sum", "tis_capped_sum", "kl_sum", "entropy_sum",
)  # fmt: skip
_RATIO_MIN, _RATIO_MAX = METRICS.index("ratio_min"), METRICS.index("ratio_max")
_REPORT_SIZE = 16  # METRICS, up to a power of two
_BLOCK = 1024  # tokens a Triton program reads at a time
_TOKENS_PER_PROGRAM = 8192  # up to so many, one launch does it all


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """The settings of the loss; meanings in `policy_loss`."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    tis_cap: float | None = None
    kl_coef: float = 0.0
    kl_kind: str = "k1"
    entropy_coef: float = 0.0
    kind: str = "clip"

    def named_metrics(self, report, per_token, *, has_entropy) -> dict[str, torch.Tensor]:
        """report [len(METRICS)] -> those that the given inputs make, by name, fp32 scalars."""
        absent = {"loss"}
        if per_token.get("rollout_logprobs") is None:
            absent |= {"rollout_kl_sum"}
        if self.tis_cap is None:
            absent |= {"tis_sum", "tis_capped_sum"}
        if per_token.get("ref_logprobs") is None:
            absent |= {"kl_sum"}
        if not has_entropy:
            absent |= {"entropy_sum"}
        return {
            name: x for name, x in zip(METRICS, report.detach().float(), strict=True) if name not in absent
        }


class LossAndGradient(NamedTuple):
    """d_logprobs [N] and d_entropy [N] or None; report [len(METRICS)]."""

    d_logprobs: torch.Tensor
    d_entropy: torch.Tensor | None
    report: torch.Tensor


def policy_loss_ref(
    logprobs, old_logprobs, advantages, weights, *, clip_low=0.2, clip_high=0.2, dual_clip=None,
    rollout_logprobs=None, tis_cap=None, ref_logprobs=None, kl_coef=0.0, kl_kind="k1", entropy=None,
    entropy_coef=0.0, kind="clip", cu_seqlens=None,
):  # fmt: skip
    """The loss alone, as the papers write it, in plain torch, differentiable by autograd."""
    log_ratio = logprobs - old_logprobs
    if cu_seqlens is not None:
        bounds = cu_seqlens.tolist()
        counted = weights != 0
        means = [
            log_ratio[i:j][counted[i:j]].mean().expand(j - i)
            for i, j in zip(bounds, bounds[1:], strict=False)
        ]
        log_ratio = torch.cat([*means, log_ratio[bounds[-1] :]])
    ratio = log_ratio.exp()
    if kind == "cispo":
        objective = ratio.clamp(1 - clip_low, 1 + clip_high).detach() * advantages * logprobs
    else:
        objective = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    if tis_cap is not None:
        objective = objective * (old_logprobs - rollout_logprobs).exp().clamp(max=tis_cap).detach()
    per_token = -objective
    if ref_logprobs is not None:
        k = logprobs - ref_logprobs
        per_token = (
            per_token + kl_coef * {"k1": k, "k2": k.square() / 2, "k3": torch.exp(-k) - 1 + k}[kl_kind]
        )
    if entropy is not None:
        per_token = per_token - entropy_coef * entropy
    return torch.where(weights != 0, weights * per_token, 0).sum()


@triton.jit
def _importance(old, rollout_pointer, offsets, mask, TIS_CAP: tl.constexpr, ACC: tl.constexpr):
    """old − rollout, exp of it where it counts, and that up to the cap."""
    mismatch = tl.where(mask, old - tl.load(rollout_pointer + offsets, mask=mask, other=0.0).to(ACC), 0.0)
    tis = tl.where(mask, tl.exp(mismatch), 0.0)
    return mismatch, tis, tl.minimum(tis, TIS_CAP, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _sequence_kernel(
    logprobs, old_logprobs, advantages, weights, rollout_logprobs, cu_seqlens, log_ratios, mean_pulls,
    HAS_TIS: tl.constexpr, TIS_CAP: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One sequence a program: means over its counted tokens of log-ratio and pull, copied to each of its tokens."""
    begin = tl.load(cu_seqlens + tl.program_id(0))
    end = tl.load(cu_seqlens + tl.program_id(0) + 1)
    count = tl.zeros((), ACC)
    log_ratio = tl.zeros((), ACC)
    pull = tl.zeros((), ACC)
    for start in range(begin, end, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        w = tl.load(weights + offsets, mask=offsets < end, other=0.0).to(ACC)
        mask = w != 0
        p = tl.load(logprobs + offsets, mask=mask, other=0.0).to(ACC)
        old = tl.load(old_logprobs + offsets, mask=mask, other=0.0).to(ACC)
        share = -w * tl.load(advantages + offsets, mask=mask, other=0.0).to(ACC)
        if HAS_TIS:
            mismatch, tis, capped = _importance(old, rollout_logprobs, offsets, mask, TIS_CAP, ACC)
            share *= capped
        count += tl.sum(tl.where(mask, 1.0, 0.0).to(ACC), 0)
        log_ratio += tl.sum(tl.where(mask, p - old, 0.0), 0)
        pull += tl.sum(tl.where(mask, share, 0.0), 0)
    count = tl.maximum(count, 1.0)
    for start in range(begin, end, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        zeros = tl.zeros((BLOCK,), ACC)
        tl.store(log_ratios + offsets, zeros + log_ratio / count, mask=offsets < end)
        tl.store(mean_pulls + offsets, zeros + pull / count, mask=offsets < end)


@triton.jit
def _put(report, METRIC: tl.constexpr, value, SIZE: tl.constexpr):
    """Adds a scalar to one place of the report."""
    return report + tl.where(tl.arange(0, SIZE) == METRIC, value, 0.0)


@triton.jit
def _policy_loss_kernel(
    logprobs, old_logprobs, advantages, weights, rollout_logprobs, ref_logprobs, entropies, log_ratios, mean_pulls,
    d_logprobs, d_entropies, partials, num_tokens,
    CLIP_LOW: tl.constexpr, CLIP_HIGH: tl.constexpr, DUAL_CLIP: tl.constexpr, TIS_CAP: tl.constexpr,
    KL_COEF: tl.constexpr, KL_KIND: tl.constexpr, ENTROPY_COEF: tl.constexpr, CISPO: tl.constexpr,
    SEQUENCE: tl.constexpr, HAS_DUAL: tl.constexpr, HAS_ROLLOUT: tl.constexpr, HAS_TIS: tl.constexpr,
    HAS_REF: tl.constexpr, HAS_ENTROPY: tl.constexpr, ACC: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
):  # fmt: skip
    report = tl.zeros((SIZE,), ACC)
    ratio_min = tl.full((), float("inf"), ACC)
    ratio_max = tl.full((), float("-inf"), ACC)
    for block in range(0, NUM_BLOCKS):
        offsets = (tl.program_id(0) * NUM_BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        inside = offsets < num_tokens
        w = tl.load(weights + offsets, mask=inside, other=0.0).to(ACC)
        mask = w != 0
        p = tl.load(logprobs + offsets, mask=mask, other=0.0).to(ACC)
        old = tl.load(old_logprobs + offsets, mask=mask, other=0.0).to(ACC)
        a = tl.load(advantages + offsets, mask=mask, other=0.0).to(ACC)
        pull = -w * a
        if HAS_ROLLOUT:
            mismatch, tis, capped = _importance(old, rollout_logprobs, offsets, mask, TIS_CAP, ACC)
            report = _put(report, 9, -tl.sum(mismatch, 0), SIZE)
            if HAS_TIS:
                pull *= capped
                report = _put(report, 10, tl.sum(capped, 0), SIZE)
                report = _put(report, 11, tl.sum(tl.where(tis > TIS_CAP, 1.0, 0.0).to(ACC), 0), SIZE)
        log_ratio = p - old
        slope = pull
        if SEQUENCE:
            log_ratio = tl.load(log_ratios + offsets, mask=mask, other=0.0)
            slope = tl.load(mean_pulls + offsets, mask=mask, other=0.0)
        ratio = tl.exp(log_ratio)
        if CISPO:
            high = mask & (ratio > 1 + CLIP_HIGH)
            low = mask & (ratio < 1 - CLIP_LOW)
            bounded = tl.where(low, 1 - CLIP_LOW, tl.where(high, 1 + CLIP_HIGH, ratio))
            grad = pull * bounded
            loss = grad * p
            dual = mask & (ratio < 0)
        else:
            high = (a > 0) & (ratio > 1 + CLIP_HIGH)
            low = (a < 0) & (ratio < 1 - CLIP_LOW)
            dual = (a < 0) & (ratio < 0)
            bounded = tl.where(
                low, 1 - CLIP_LOW, tl.where((a == 0) & (ratio > 1 + CLIP_HIGH), 1 + CLIP_HIGH, ratio)
            )
            bounded = tl.where(high, 1 + CLIP_HIGH, bounded)
            if HAS_DUAL:
                dual = (a < 0) & (ratio > DUAL_CLIP)
                bounded = tl.where(dual, DUAL_CLIP, bounded)
            loss = pull * bounded
            grad = tl.where((a == 0) | high | low | dual, 0.0, slope * ratio)
        if HAS_REF:
            k = tl.where(mask, p - tl.load(ref_logprobs + offsets, mask=mask, other=0.0).to(ACC), 0.0)
            if KL_KIND == 1:
                kl = k
                d_kl = tl.full((BLOCK,), 1.0, ACC)
            elif KL_KIND == 2:
                kl = k * k / 2
                d_kl = k
            else:
                # exp(−k) − 1 loses its digits near 0; there the series has them.
                series = -k * (1 - k / 2 * (1 - k / 3 * (1 - k / 4 * (1 - k / 5))))
                rest = tl.where(tl.abs(k) < 0.0625, series, tl.exp(-k) - 1)
                kl = rest + k
                kl = tl.where(tl.abs(k) < 0.0625, k * k / 2 * (1 - k / 3 * (1 - k / 4 * (1 - k / 5))), kl)
                d_kl = -rest
            report = _put(report, 12, tl.sum(kl, 0), SIZE)
            loss += KL_COEF * w * kl
            grad += KL_COEF * w * d_kl
        if HAS_ENTROPY:
            h = tl.load(entropies + offsets, mask=mask, other=0.0).to(ACC)
            report = _put(report, 13, tl.sum(h, 0), SIZE)
            loss -= ENTROPY_COEF * w * h
            tl.store(d_entropies + offsets, -ENTROPY_COEF * w, mask=inside)
        tl.store(d_logprobs + offsets, tl.where(mask, grad, 0.0), mask=inside)
        report = _put(report, 0, tl.sum(tl.where(mask, loss, 0.0), 0), SIZE)
        report = _put(report, 1, tl.sum(tl.where(mask, 1.0, 0.0).to(ACC), 0), SIZE)
        report = _put(report, 2, tl.sum(tl.where(mask, ratio, 0.0), 0), SIZE)
        report = _put(report, 5, tl.sum(tl.where(low, 1.0, 0.0).to(ACC), 0), SIZE)
        report = _put(report, 6, tl.sum(tl.where(high, 1.0, 0.0).to(ACC), 0), SIZE)
        report = _put(report, 7, tl.sum(tl.where(dual, 1.0, 0.0).to(ACC), 0), SIZE)
        report = _put(report, 8, tl.sum(old - p, 0), SIZE)
        ratio_min = tl.minimum(ratio_min, tl.min(tl.where(mask, ratio, float("inf")), 0))
        ratio_max = tl.maximum(ratio_max, tl.max(tl.where(mask, ratio, float("-inf")), 0))
    report = _put(report, 3, ratio_min, SIZE)
    report = _put(report, 4, ratio_max, SIZE)
    tl.store(partials + tl.program_id(0) * SIZE + tl.arange(0, SIZE), report)


def _loss_and_gradient_triton(logprobs, entropy, tokens, objective, cu_seqlens) -> LossAndGradient:
    num_tokens, dtype = logprobs.numel(), torch.promote_types(logprobs.dtype, torch.float32)
    acc = tl.float64 if dtype == torch.float64 else tl.float32
    p, old, a, w, rollout, ref, h = (
        None if x is None else x.detach().contiguous()
        for x in (logprobs, *(tokens[name] for name in _PER_TOKEN), entropy)
    )
    old = p if old is None else old
    log_ratios = mean_pulls = p  # pointers that are never read
    if cu_seqlens is not None:
        log_ratios, mean_pulls = p.new_zeros(2, num_tokens, dtype=dtype)
        _sequence_kernel[(cu_seqlens.numel() - 1,)](
            p, old, a, w, p if rollout is None else rollout, cu_seqlens, log_ratios, mean_pulls,
            HAS_TIS=objective.tis_cap is not None, TIS_CAP=objective.tis_cap or 0.0, ACC=acc, BLOCK=_BLOCK,
        )  # fmt: skip
    d_logprobs = torch.empty(num_tokens, dtype=dtype, device=p.device)
    d_entropy = torch.empty_like(d_logprobs) if h is not None else d_logprobs
    num_programs = triton.cdiv(num_tokens, _TOKENS_PER_PROGRAM)
    partials = torch.empty(num_programs, _REPORT_SIZE, dtype=dtype, device=p.device)
    _policy_loss_kernel[(num_programs,)](
        p, old, a, w, p if rollout is None else rollout, p if ref is None else ref, p if h is None else h,
        log_ratios, mean_pulls, d_logprobs, d_entropy, partials, num_tokens,
        CLIP_LOW=objective.clip_low, CLIP_HIGH=objective.clip_high, DUAL_CLIP=objective.dual_clip or 0.0,
        TIS_CAP=objective.tis_cap or 0.0, KL_COEF=objective.kl_coef, KL_KIND=1 + KL_KINDS.index(objective.kl_kind),
        ENTROPY_COEF=objective.entropy_coef, CISPO=objective.kind == "cispo", SEQUENCE=cu_seqlens is not None,
        HAS_DUAL=objective.dual_clip is not None, HAS_ROLLOUT=rollout is not None,
        HAS_TIS=objective.tis_cap is not None, HAS_REF=ref is not None, HAS_ENTROPY=h is not None, ACC=acc,
        SIZE=_REPORT_SIZE, BLOCK=_BLOCK, NUM_BLOCKS=triton.cdiv(min(num_tokens, _TOKENS_PER_PROGRAM), _BLOCK),
        num_warps=8,
    )  # fmt: skip
    report = merge_metrics(list(partials[:, : len(METRICS)]), dtype, p.device)
    return LossAndGradient(d_logprobs, d_entropy if objective.entropy_coef else None, report)


_PER_TOKEN = ("old_logprobs", "advantages", "weights", "rollout_logprobs", "ref_logprobs")


def merge_metrics(reports: list[torch.Tensor], dtype, device) -> torch.Tensor:
    """Reports [len(METRICS)] of parts of a batch, in order -> the whole's: sums, but for the two extremes."""
    if len(reports) == 1:
        return reports[0]
    nothing = torch.zeros(len(METRICS), dtype=dtype, device=device)
    nothing[_RATIO_MIN], nothing[_RATIO_MAX] = torch.inf, -torch.inf
    stacked = torch.stack([nothing, *reports])
    total = stacked.sum(dim=0)
    total[_RATIO_MIN], total[_RATIO_MAX] = stacked[:, _RATIO_MIN].amin(), stacked[:, _RATIO_MAX].amax()
    return total


def _kl(k, kind):
    """The estimate and its derivative with respect to k."""
    if kind == "k1":
        return k, torch.ones_like(k)
    if kind == "k2":
        return k.square() / 2, k
    rest = torch.expm1(-k)
    return rest + k, -rest


def _clipped(ratio, advantages, objective):
    """Effective ratio, and which tokens met the high, the low and the dual bound."""
    high_bound, low_bound = 1 + objective.clip_high, 1 - objective.clip_low
    if objective.kind == "cispo":
        nowhere = torch.zeros_like(ratio, dtype=torch.bool)
        return ratio.clamp(low_bound, high_bound), ratio > high_bound, ratio < low_bound, nowhere
    positive, negative = advantages > 0, advantages < 0
    high = positive & (ratio > high_bound)
    low = negative & (ratio < low_bound)
    effective = torch.where(negative, ratio.clamp(min=low_bound), ratio.clamp(max=high_bound))
    if objective.dual_clip is None:
        return effective, high, low, torch.zeros_like(low)
    dual = negative & (ratio > objective.dual_clip)
    return torch.where(dual, objective.dual_clip, effective), high, low, dual


def _sequence_means(values, mask, cu_seqlens):
    """values [N] -> their mean over the counted tokens of each token's sequence; 0 outside all sequences."""
    num_seqs = cu_seqlens.numel() - 1
    tokens = torch.arange(values.numel(), device=values.device)
    seq = (torch.searchsorted(cu_seqlens.long(), tokens, right=True) - 1).clamp(max=num_seqs)
    sums = values.new_zeros(num_seqs + 1).index_add_(0, seq, torch.where(mask, values, 0))
    counts = values.new_zeros(num_seqs + 1).index_add_(0, seq, mask.to(values.dtype))
    return (sums / counts.clamp(min=1))[seq]


def _loss_and_gradient_torch(logprobs, entropy, tokens, objective, cu_seqlens) -> LossAndGradient:
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    mask = tokens["weights"] != 0

    def read(x):
        return torch.where(mask, x.detach(), 0).to(dtype)

    p, a, w = read(logprobs), read(tokens["advantages"]), read(tokens["weights"])
    old = p if tokens["old_logprobs"] is None else read(tokens["old_logprobs"])
    zero = torch.zeros((), dtype=dtype, device=p.device)
    report = dict.fromkeys(METRICS, zero)
    pull = -w * a
    if tokens["rollout_logprobs"] is not None:
        mismatch = old - read(tokens["rollout_logprobs"])
        report["rollout_kl_sum"] = -mismatch.sum()
        if objective.tis_cap is not None:
            tis = torch.where(mask, mismatch.exp(), 0)
            report["tis_capped_sum"] = (tis > objective.tis_cap).sum()
            tis = tis.clamp(max=objective.tis_cap)
            report["tis_sum"] = tis.sum()
            pull = pull * tis
    log_ratio, slope = p - old, pull
    if cu_seqlens is not None:
        log_ratio = torch.where(mask, _sequence_means(log_ratio, mask, cu_seqlens), 0)
        slope = _sequence_means(pull, mask, cu_seqlens)
    ratio = log_ratio.exp()
    effective, high, low, dual = _clipped(ratio, a, objective)
    if objective.kind == "cispo":
        grad = pull * effective
        loss = grad * p
    else:
        loss = pull * effective
        grad = torch.where((a == 0) | high | low | dual, 0, slope * ratio)
    d_entropy = None
    if tokens["ref_logprobs"] is not None:
        kl, d_kl = _kl(p - read(tokens["ref_logprobs"]), objective.kl_kind)
        report["kl_sum"] = kl.sum()
        loss = loss + objective.kl_coef * w * kl
        grad = grad + objective.kl_coef * w * d_kl
    if entropy is not None:
        h = read(entropy)
        report["entropy_sum"] = h.sum()
        loss = loss - objective.entropy_coef * w * h
        d_entropy = -objective.entropy_coef * w if objective.entropy_coef else None
    report |= {
        "loss": loss.sum(),
        "num_tokens": mask.sum(),
        "ratio_sum": torch.where(mask, ratio, 0).sum(),
        "ratio_min": torch.where(mask, ratio, torch.inf).amin(),
        "ratio_max": torch.where(mask, ratio, -torch.inf).amax(),
        "clip_low_sum": (low & mask).sum(),
        "clip_high_sum": (high & mask).sum(),
        "dual_clip_sum": (dual & mask).sum(),
        "approx_kl_sum": (old - p).sum(),
    }
    return LossAndGradient(
        torch.where(mask, grad, 0), d_entropy, torch.stack([report[name].to(dtype) for name in METRICS])
    )


def loss_and_gradient(
    logprobs, entropy, tokens, objective: Objective, implementation: str, cu_seqlens=None
) -> LossAndGradient:
    """`policy_loss` without autograd: the gradient is elementwise, so it is known at once.

    tokens: old_logprobs (None: logprobs), advantages, weights, rollout_logprobs and ref_logprobs, [N] or None."""
    run = _loss_and_gradient_triton if uses_triton(implementation, logprobs) else _loss_and_gradient_torch
    return run(logprobs, entropy, tokens, objective, cu_seqlens)


def check_objective(objective: Objective, shape, per_token, *, has_entropy) -> None:
    """What the loss asks of its arguments."""
    shapes = [list(x.shape) for x in per_token.values() if x is not None]
    if len(shape) != 1 or shape[0] == 0 or any(other != list(shape) for other in shapes):
        raise ValueError(f"all per-token tensors must be [N] alike with N >= 1, got {[list(shape), *shapes]}")
    low, high, dual = objective.clip_low, objective.clip_high, objective.dual_clip
    if not (0 <= low <= 1 and high >= 0) or (dual is not None and not dual > 1):
        raise ValueError(
            f"clip_low in [0, 1], clip_high >= 0 and dual_clip > 1 wanted, got {low}, {high} and {dual}"
        )
    for name, options in (("kl_kind", KL_KINDS), ("kind", KINDS)):
        if getattr(objective, name) not in options:
            raise ValueError(f"{name} must be one of {', '.join(options)}, got {getattr(objective, name)!r}")
    if objective.kind == "cispo" and dual is not None:
        raise ValueError(f"cispo bounds every ratio on both sides: dual_clip must be None, got {dual}")
    for name, needed, given in (
        ("tis_cap", "rollout_logprobs", per_token["rollout_logprobs"] is not None),
        ("kl_coef", "ref_logprobs", per_token["ref_logprobs"] is not None),
        ("entropy_coef", "entropy", has_entropy),
    ):
        value = getattr(objective, name)
        if value and not given:
            raise ValueError(f"{name}={value} needs {needed}")


class _PolicyLoss(torch.autograd.Function):
    """A loss whose gradient is already known; backward only scales it."""

    @staticmethod
    def forward(ctx, logprobs, entropy, tokens, objective, cu_seqlens, implementation):
        result = loss_and_gradient(logprobs, entropy, tokens, objective, implementation, cu_seqlens)
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
    kind: str = "clip",
    cu_seqlens: torch.Tensor | None = None,
    implementation: str = "auto",
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Clipped policy loss of N tokens, differentiable in logprobs and entropy, and its metrics.

    logprobs, old_logprobs, advantages: [N] float, of the current policy, of the policy at the start of the
        batch, and of each token (its sample's, copied).
    weights: [N] float, mask and normaliser in one (see token_weights.py); a token of weight 0 takes no part.
        Losses of micro-batches and ranks add to the loss of the global batch.
    clip_low, clip_high: the ratio counts within [1 − clip_low, 1 + clip_high].
    dual_clip: > 1, bounds the ratio where the advantage is negative; None: no bound.
    rollout_logprobs, tis_cap: [N], the engine's; with a cap the policy term (alone) is multiplied by
        min(exp(old − rollout), tis_cap); without one they are only compared.
    ref_logprobs, kl_coef, kl_kind: [N], the frozen reference's; "k1", "k2" or "k3".
    entropy, entropy_coef: [N], added as a bonus.
    kind: "clip", or "cispo", whose clipped ratio is a constant weight of logprob: no token loses its gradient.
    cu_seqlens: [S + 1] int32 or int64, bounds of whole sequences in the N tokens: the ratio is then the
        sequence's (GSPO). None: each token's own.
    implementation: "auto", "torch" or "triton"; see implementation.py.

    Returns the loss (scalar, nats, fp32; float64 for float64 logprobs) and metrics, fp32 scalars on the same
    device without gradient. They are sums over the tokens of non-zero weight, so they add over micro-batches
    and ranks: num_tokens, ratio_sum, clip_low_sum, clip_high_sum, dual_clip_sum, approx_kl_sum (old − new);
    with the inputs they need: rollout_kl_sum (rollout − old), tis_sum, tis_capped_sum, kl_sum, entropy_sum.
    Only ratio_min and ratio_max are extremes (+inf and −inf without tokens). Never waits for the device.
    Saved for backward: the gradient [N]. Raises ValueError for arguments that do not fit. Formula: the head
    of this file.
    """
    objective = Objective(
        clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip, tis_cap=tis_cap, kl_coef=kl_coef,
        kl_kind=kl_kind, entropy_coef=entropy_coef, kind=kind,
    )  # fmt: skip
    tokens = {
        "old_logprobs": old_logprobs,
        "advantages": advantages,
        "weights": weights,
        "rollout_logprobs": rollout_logprobs,
        "ref_logprobs": ref_logprobs,
    }
    given = tokens if entropy is None else tokens | {"entropy": entropy}
    check_objective(objective, logprobs.shape, given, has_entropy=entropy is not None)
    loss, report = _PolicyLoss.apply(logprobs, entropy, tokens, objective, cu_seqlens, implementation)
    return loss, objective.named_metrics(report, tokens, has_entropy=entropy is not None)
