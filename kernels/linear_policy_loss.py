"""The LM head and the policy loss in one pass: no logits, no second forward.

    hidden, weight -> logits of a chunk -> logprob, entropy -> d loss / d logprob -> d logits -> d_hidden, d_weight

The policy loss is elementwise in the logprobs and its denominators are in the weights (policy_loss.py), so a
token's gradient is known as soon as its logits are: forward computes the gradients and backward only scales
them. 6NVH operations instead of the 8NVH of linear_logprob and policy_loss, which compute the logits twice.
Rows of weight 0 (prompts, padding, failed judges) are never computed. Rows whose advantage is 0, where no KL or
entropy term asks for them, take part in the metrics (2NVH) but not in the gradient.

A sequence-level ratio needs all tokens of a sequence before any gradient: there the two-step way is used.

Shapes: N tokens, H hidden size, V_local rows of the weight on this rank, R rows computed, P ranks.
"""

import torch
import torch.distributed as dist
from ralign.kernels.linear_logprob import GradientSums, Head, linear_logprob_ref, make_head, operand
from ralign.kernels.policy_loss import (
    METRICS,
    Objective,
    check_objective,
    loss_and_gradient,
    merge_metrics,
    policy_loss_ref,
)
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
    **objective,
):
    """Plain torch, differentiable by autograd, one shard only; holds N × V. The loss alone."""
    picked = torch.where(weights != 0, targets, 0)
    logprobs, entropy = linear_logprob_ref(
        hidden, weight, picked, temperature=temperature, valid_vocab=valid_vocab
    )
    if old_logprobs is None:
        old_logprobs = logprobs.detach()
    if objective.get("entropy_coef"):
        objective["entropy"] = entropy
    return policy_loss_ref(logprobs, old_logprobs, advantages, weights, **objective)


def split_rows(
    weights: torch.Tensor, advantages: torch.Tensor, *, needs_all: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """weights, advantages [N] -> rows that get a gradient, rows that only count in the metrics; both int64.

    needs_all: a KL or entropy term gives every row a gradient. The host waits for the device if they are there.
    """
    counted = weights != 0
    learns = counted if needs_all else counted & (advantages != 0)
    return learns.nonzero()[:, 0], (counted & ~learns).nonzero()[:, 0]


class _LinearPolicyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, per_token, rows, head: Head, objective: Objective):
        full, matrix = head.gathered(hidden), head.matrix(weight)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, entropy = torch.zeros(2, targets.numel(), dtype=dtype, device=hidden.device)
        wants = [bool(x) for x in ctx.needs_input_grad[:2]]
        sums = GradientSums(full, weight, head, *wants)
        reports = []
        for learns, part in _chunks(rows, head.chunk_tokens):
            chunk, target = operand(full[part]), targets[part]
            z = head.logits(chunk, matrix)
            merged = head.merged_stats(z, target)
            logprobs[part], entropy[part] = merged[2], merged[3]
            tokens = {name: None if x is None else x[part] for name, x in per_token.items()}
            result = loss_and_gradient(merged[2], merged[3], tokens, objective, head.implementation)
            reports.append(result.report)
            if learns and any(wants):
                d_z = head.d_logits(z, target, merged, result.d_logprobs, result.d_entropy, matrix.dtype)
                sums.add(part, chunk, matrix, d_z)
                del d_z
            del z  # before the next chunk's logits are made
        report = merge_metrics(reports, dtype, hidden.device)
        ctx.save_for_backward(*sums.finish())
        ctx.mark_non_differentiable(logprobs, entropy, report)
        return report[METRICS.index("loss")].clone(), logprobs, entropy, report

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss, *_):
        # Multiplied on the device: asking whether d_loss is 1 would wait for it.
        grads = [None if grad is None else grad * d_loss.to(grad.dtype) for grad in ctx.saved_tensors]
        return *grads, None, None, None, None, None


def _chunks(rows, chunk_tokens):
    """(whether the rows get a gradient, rows [R]) a chunk."""
    for learns, part in zip((True, False), rows, strict=True):
        if part.numel():
            yield from ((learns, chunk) for chunk in part.split(chunk_tokens))


def linear_policy_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    *,
    temperature: float = 1.0,
    valid_vocab: int,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
    sequence_parallel: bool = False,
    rows: tuple[torch.Tensor, torch.Tensor] | None = None,
    chunk_tokens: int | None = None,
    rollout_logprobs: torch.Tensor | None = None,
    ref_logprobs: torch.Tensor | None = None,
    implementation: str = "auto",
    **objective,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """`policy_loss` of `linear_logprob`, differentiable in hidden and weight, in 6NVH operations.

    hidden [N, H] (with sequence_parallel [N/P, H]), weight [V_local, H], targets [N] int64, temperature,
    valid_vocab, vocab_start, group, sequence_parallel, chunk_tokens: as in `linear_logprob`.
    old_logprobs: [N]; None: the policy is its own old policy, the ratio exactly 1.
    advantages, weights, rollout_logprobs, ref_logprobs: [N], the same on every rank, as in `policy_loss`; the
        target of a token of weight 0 is not looked at.
    rows: (with a gradient, metrics only), from `split_rows`, where the caller has them; None: looked up, for
        which the host waits for the device.
    objective: clip_low, clip_high, dual_clip, tis_cap, kl_coef, kl_kind, entropy_coef, kind of `policy_loss`.

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
    options = Objective(**objective)
    per_token = {
        "old_logprobs": old_logprobs,
        "advantages": advantages,
        "weights": weights,
        "rollout_logprobs": rollout_logprobs,
        "ref_logprobs": ref_logprobs,
    }
    check_objective(options, targets.shape, per_token, has_entropy=True)
    if rows is None:
        rows = split_rows(weights, advantages, needs_all=bool(options.kl_coef or options.entropy_coef))
    loss, logprobs, entropy, report = _LinearPolicyLoss.apply(
        hidden, weight, targets, per_token, rows, head, options
    )
    return loss, logprobs, entropy, options.named_metrics(report, per_token, has_entropy=True)
