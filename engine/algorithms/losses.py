"""Loss functions of a packed micro-batch.

The weight of a token is its mask and its normaliser in one number, over the global batch (`token_weights`): nothing
else divides. The policy's losses have two forms with equal results: from logprobs and entropy, and, a quarter cheaper,
from hidden states and the LM head's weight in one pass (`from_hidden`, where `folds` is true).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ralign.engine.algorithms.mismatch import tail_counts
from ralign.engine.config.algo import AlgoConfig
from ralign.engine.config.registry import OBJECTIVES
from ralign.engine.data.packing import PackedBatch, Sample, to_device
from ralign.engine.policy.megatron_model import Metrics
from ralign.kernels.linear_policy_loss import linear_policy_loss
from ralign.kernels.objectives import CISPO, PolicyLossSettings
from ralign.kernels.policy_loss import policy_loss
from ralign.kernels.value_loss import value_loss
from torch import Tensor


class SupervisedLoss:
    """Mean negative log-likelihood of the response tokens of the global batch (this micro-batch's share)."""

    folds = True

    def __call__(self, logprobs: Tensor, entropy: Tensor, batch: PackedBatch) -> tuple[Tensor, Metrics]:
        weights = batch.per_token["weights"]
        return -(logprobs * weights).sum(), {"num_tokens": (weights != 0).sum()}

    def from_hidden(
        self, hidden: Tensor, weight: Tensor, batch: PackedBatch, **head
    ) -> tuple[Tensor, Metrics]:
        # CISPO's loss of a token is ratio · advantage · −logprob: with both 1 it is the negative log-likelihood.
        weights = batch.per_token["weights"]
        loss, _, _, metrics = linear_policy_loss(
            hidden, weight, batch.targets, None, torch.ones_like(weights), weights,
            rows=batch.loss_rows, objective=CISPO, **head,
        )  # fmt: skip
        return loss, {"num_tokens": metrics["num_tokens"]}


supervised_loss = SupervisedLoss()


class ReinforceLoss:
    """The policy loss with a run's settings.

    The batch brings `weights`, `advantages` and `rollout_logprobs` per token; `old_logprobs` when the samples
    serve more than one update (else the policy is its own old policy, and the ratio is exactly 1);
    `ref_logprobs` when there is a KL term.
    """

    def __init__(self, algo: AlgoConfig, implementation: str = "auto"):
        clip_low, clip_high = algo.clip_range
        self.implementation = implementation
        self.settings: dict[str, Any] = {
            "objective": OBJECTIVES.load(algo.objective),
            "clip_low": clip_low,
            "clip_high": clip_high,
            "dual_clip": algo.dual_clip,
            "ratio_level": "geometric" if algo.ratio == "sequence" else "token",
            "tis_cap": algo.tis_cap,
            "tis_level": algo.tis_level,
            "mask_level": algo.mask_level,
            "mask_low": algo.mask_low,
            "mask_high": algo.mask_high,
            "kl_coef": 0.0 if algo.kl_in_reward else algo.kl_coef,
            "kl_kind": algo.kl_kind,
            "entropy_coef": algo.entropy_coef,
        }

    @property
    def folds(self) -> bool:
        """A ratio, weight or mask of a sequence needs all its tokens before any gradient."""
        return not PolicyLossSettings(**self.settings).needs_sequences

    @property
    def needs_all(self) -> bool:
        """Whether a token of advantage 0 has a gradient: of a KL or entropy term, or of a user's own objective."""
        return PolicyLossSettings(**self.settings).needs_all

    def __call__(self, logprobs: Tensor, entropy: Tensor, batch: PackedBatch) -> tuple[Tensor, Metrics]:
        per_token = batch.per_token
        loss, metrics = policy_loss(
            logprobs,
            per_token.get("old_logprobs", logprobs.detach()),
            per_token["advantages"],
            per_token["weights"],
            rollout_logprobs=per_token["rollout_logprobs"],
            ref_logprobs=per_token.get("ref_logprobs"),
            entropy=entropy,
            cu_seqlens=batch.cu_seqlens,
            implementation=self.implementation,
            **self.settings,
        )
        return loss, metrics | _tail_counts(logprobs, batch)

    def from_hidden(
        self, hidden: Tensor, weight: Tensor, batch: PackedBatch, **head
    ) -> tuple[Tensor, Metrics]:
        per_token = batch.per_token
        loss, logprobs, _, metrics = linear_policy_loss(
            hidden,
            weight,
            batch.targets,
            per_token.get("old_logprobs"),
            per_token["advantages"],
            per_token["weights"],
            rollout_logprobs=per_token["rollout_logprobs"],
            ref_logprobs=per_token.get("ref_logprobs"),
            rows=batch.loss_rows,
            **self.settings,
            **head,
        )
        return loss, metrics | _tail_counts(logprobs, batch)


def _tail_counts(logprobs: Tensor, batch: PackedBatch) -> Metrics:
    per_token = batch.per_token
    old_logprobs = per_token.get("old_logprobs", logprobs)
    return tail_counts(old_logprobs, per_token["rollout_logprobs"], per_token["weights"])


class ValueLoss:
    """The critic's loss. The batch brings `weights`, `values` (before the first update) and `returns` per token."""

    folds = False  # there is no LM head to fold into

    def __init__(self, value_clip: float | None):
        self.value_clip = value_clip

    def __call__(self, values: Tensor, batch: PackedBatch) -> tuple[Tensor, Metrics]:
        """values [T] of the micro-batch."""
        old_values, returns, weights = (batch.per_token[name] for name in ("values", "returns", "weights"))
        return value_loss(values, old_values, returns, weights, clip=self.value_clip)


NORMALISATIONS = ("token", "sequence", "constant")


def token_weights(
    num_response_tokens: Tensor, valid: Tensor, *, kind: str, max_new_tokens: int = 1
) -> Tensor:
    """The weight of each response token of a sample.

    num_response_tokens: [S] int64, of all samples of the global batch.
    valid: [S] bool; False (a failed judge): weight 0.
    kind: "token": 1 / (valid response tokens of the global batch), every token counts alike; "sequence":
        1 / (valid sequences of the global batch x its own tokens), every sequence counts alike; "constant":
        1 / (valid sequences of the global batch x max_new_tokens), so that neither an answer's length nor the others'
        changes the weight of its tokens (Dr. GRPO, arXiv:2503.20783).

    Returns [S] fp32, to be copied to the response tokens of each sample (all other tokens get 0). Raises ValueError
    for an unknown kind.
    """
    if kind not in NORMALISATIONS:
        raise ValueError(f"kind must be one of {', '.join(NORMALISATIONS)}, got {kind!r}")
    lens = torch.where(valid, num_response_tokens, 0)
    counted = lens > 0
    denominator = {
        "token": lens.sum(),
        "sequence": counted.sum() * lens,
        "constant": counted.sum() * max_new_tokens,
    }[kind]
    return torch.where(counted, 1 / denominator.double(), 0).float()


def set_loss_rows(batch: PackedBatch, samples: Sequence[Sample], *, needs_all: bool) -> None:
    """Which rows the loss needs, from what the host knows of the samples: the device is not waited for.

    needs_all: a token of advantage 0 has a gradient too. (A loss without advantages gives every token one.)
    """
    mine = [samples[i].per_sample for i in batch.indices]
    counted = np.array([values["weights"] != 0 for values in mine], dtype=bool)
    learns = np.array([needs_all or values.get("advantages", 1.0) != 0 for values in mine], dtype=bool)

    def rows(chosen: np.ndarray) -> Tensor:
        bounds = zip(batch.row_starts[chosen], batch.row_counts[chosen], strict=True)
        parts = [np.arange(start, start + count) for start, count in bounds]
        return to_device(np.concatenate([np.zeros(0, dtype=np.int64), *parts]), batch.targets.device)

    batch.loss_rows = rows(counted & learns), rows(counted & ~learns)
