"""The LM head and the policy loss in one pass: no logits, no second forward.

    hidden, weight -> logits of a chunk -> logprob, entropy -> d loss / d logprob -> d logits -> d_hidden, d_weight

The policy loss is elementwise in the logprobs and its denominators are in the weights (policy_loss.py), so the
gradient of a token is known as soon as its logits are: forward computes the gradients and backward only scales
them. This takes 6NVH operations instead of the 8NVH of linear_logprob and policy_loss, which compute the logits twice.
Rows of weight 0 (prompts, padding, failed judges) are never computed. Rows of advantage 0 enter the metrics (2NVH)
but not the gradient, unless a KL or entropy term or the objective can give them one.

A ratio, importance weight or mask of another level than "token" needs all tokens of a sequence before any gradient: use
linear_logprob and policy_loss there.

Shapes: N tokens, H hidden size, V_local rows of the weight on this rank, R rows computed, P ranks.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from ralign.kernels.linear_logprob import GradientSums, Head, linear_logprob_ref, make_head, operand
from ralign.kernels.objectives import PolicyLossSettings
from ralign.kernels.policy_loss import check_arguments, loss_and_gradient, policy_loss_ref
from ralign.kernels.policy_loss_data import METRICS, PerToken, merge_metrics, named_metrics
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_policy_loss_ref(
    hidden,
    weight,
    targets,
    old_logprobs,
    advantages,
    weights,
    *,
    temperature=1.0,
    valid_vocab=None,
    **options,
):
    """The loss alone, in plain torch, differentiable by autograd; one shard only; holds N × V.

    options: of `policy_loss_ref`."""
    picked = torch.where(weights != 0, targets, 0)
    logprobs, entropy = linear_logprob_ref(
        hidden, weight, picked, temperature=temperature, valid_vocab=valid_vocab
    )
    if old_logprobs is None:
        old_logprobs = logprobs.detach()
    if options.get("entropy_coef"):
        options["entropy"] = entropy
    return policy_loss_ref(logprobs, old_logprobs, advantages, weights, **options)


def split_rows(weights: Tensor, advantages: Tensor, *, needs_all: bool) -> tuple[Tensor, Tensor]:
    """weights, advantages [N] -> rows with a gradient, rows that only enter the metrics; both int64.

    needs_all: rows of advantage 0 can have a gradient (`PolicyLossSettings.needs_all`). On a CUDA device the host
    waits for the result.
    """
    counted = weights != 0
    learns = counted if needs_all else counted & (advantages != 0)
    return learns.nonzero()[:, 0], (counted & ~learns).nonzero()[:, 0]


class _LinearPolicyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden, weight, targets, tokens: PerToken, rows, head: Head, settings: PolicyLossSettings
    ):
        full, matrix = head.gathered(hidden), head.matrix(weight)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, entropy = torch.zeros(2, targets.numel(), dtype=dtype, device=hidden.device)
        needed = [bool(x) for x in ctx.needs_input_grad[:2]]
        sums = GradientSums(full, weight, head, *needed)
        reports = []
        for learns, part in _chunks(rows, head.chunk_tokens):
            chunk, target = operand(full[part]), targets[part]
            z = head.logits(chunk, matrix)
            merged = head.merged_stats(z, target)
            logprobs[part], entropy[part] = merged[2], merged[3]
            result = loss_and_gradient(merged[2], merged[3], tokens.at(part), settings, head.implementation)
            reports.append(result.report)
            if learns and any(needed):
                d_z = head.d_logits(z, target, merged, result.d_logprobs, result.d_entropy, matrix.dtype)
                sums.add(part, chunk, matrix, d_z)
                del d_z
            del z  # before the logits of the next chunk are allocated
        report = merge_metrics(reports, dtype, hidden.device)
        ctx.save_for_backward(*sums.finish())
        ctx.mark_non_differentiable(logprobs, entropy, report)
        return report[METRICS.index("loss")].clone(), logprobs, entropy, report

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss, *_):
        # Multiplied on the device even where d_loss is 1: a comparison would synchronise.
        grads = [None if grad is None else grad * d_loss.to(grad.dtype) for grad in ctx.saved_tensors]
        return *grads, None, None, None, None, None


def _chunks(rows: tuple[Tensor, Tensor], chunk_tokens: int) -> Iterator[tuple[bool, Tensor]]:
    """Yields, for each chunk, whether its rows have a gradient, and the rows [R]."""
    for learns, part in zip((True, False), rows, strict=True):
        if part.numel():
            yield from ((learns, chunk) for chunk in part.split(chunk_tokens))


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    *,
    temperature: float = 1.0,
    valid_vocab: int,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
    sequence_parallel: bool = False,
    rows: tuple[Tensor, Tensor] | None = None,
    chunk_tokens: int | None = None,
    rollout_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    implementation: str = "auto",
    **settings,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """`policy_loss` of `linear_logprob`, differentiable in hidden and weight, in 6NVH operations.

    hidden [N, H] (with sequence_parallel [N/P, H]), weight [V_local, H], targets [N] int64, temperature,
    valid_vocab, vocab_start, group, sequence_parallel, chunk_tokens: as in `linear_logprob`.
    old_logprobs: [N]; None: the policy is its own old policy, the ratio is exactly 1.
    advantages, weights, rollout_logprobs, ref_logprobs: [N], the same on every rank, as in `policy_loss`; the
        target of a token of weight 0 is not read.
    rows: (with a gradient, metrics only), from `split_rows` or equal to it; None: computed here, for which the host
        waits for the device.
    settings: objective, clip_low, clip_high, dual_clip, tis_cap, mask_level ("token" or None), mask_low, mask_high,
        kl_coef, kl_kind, entropy_coef of `policy_loss`.

    Returns the loss (scalar), logprobs and entropy [N] (0 for rows of weight 0; without gradient), all fp32
    (float64 for float64 inputs) and the same on every rank, and the metrics of `policy_loss`.
    Saved for backward: d_hidden and d_weight. Raises ValueError for arguments that do not fit. Formulas: the
    heads of logprob.py and policy_loss.py; this fusion extends Liger-Kernel's FusedLinearCrossEntropy
    (arXiv:2410.10989) to per-token coefficients.
    """
    head = make_head(
        hidden, weight, targets, temperature, valid_vocab, vocab_start, group, sequence_parallel, chunk_tokens,
        implementation,
    )  # fmt: skip
    chosen = PolicyLossSettings(**settings)
    tokens = PerToken(old_logprobs, advantages, weights, rollout_logprobs, ref_logprobs)
    check_arguments(chosen, targets.shape, tokens, targets.shape, has_sequences=False)
    if rows is None:
        rows = split_rows(weights, advantages, needs_all=chosen.needs_all)
    loss, logprobs, entropy, report = _LinearPolicyLoss.apply(
        hidden, weight, targets, tokens, rows, head, chosen
    )
    return loss, logprobs, entropy, named_metrics(report, chosen, tokens, has_entropy=True)
