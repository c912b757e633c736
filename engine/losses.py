"""Loss functions of a packed micro-batch. Denominators are those of the global batch and are in `weights`."""

from collections.abc import Callable

from ralign.engine.config import AlgoConfig
from ralign.engine.packing import PackedBatch
from ralign.kernels.policy_loss import policy_loss
from torch import Tensor


def supervised_loss(
    logprobs: Tensor, entropy: Tensor, batch: PackedBatch
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean negative log-likelihood of the response tokens of the global batch (this micro-batch's share)."""
    weights = batch.per_token["weights"]
    return -(logprobs * weights).sum(), {"num_tokens": (weights != 0).sum()}


def reinforce_loss(
    algo: AlgoConfig,
) -> Callable[[Tensor, Tensor, PackedBatch], tuple[Tensor, dict[str, Tensor]]]:
    """The clipped policy loss with this run's settings.

    The batch brings `weights`, `advantages` and `rollout_logprobs` per token; `old_logprobs` when the samples
    serve more than one update (else the policy is its own old policy, and the ratio is exactly 1);
    `ref_logprobs` when there is a KL term.
    """

    def loss(logprobs: Tensor, entropy: Tensor, batch: PackedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        per_token = batch.per_token
        return policy_loss(
            logprobs,
            per_token.get("old_logprobs", logprobs.detach()),
            per_token["advantages"],
            per_token["weights"],
            clip_low=algo.clip_low,
            clip_high=algo.clip_high,
            dual_clip=algo.dual_clip,
            rollout_logprobs=per_token["rollout_logprobs"],
            tis_cap=algo.tis_cap,
            ref_logprobs=per_token.get("ref_logprobs"),
            kl_coef=algo.kl_coef,
            kl_kind=algo.kl_kind,
            entropy=entropy,
            entropy_coef=algo.entropy_coef,
        )

    return loss
