"""Policy objectives: the surrogate of one token, which `policy_loss` maximises.

    clip    surrogate = min(ratio · A, clip(ratio, 1 − clip_low, 1 + clip_high) · A)
    cispo   surrogate = clip(ratio, 1 − clip_low, 1 + clip_high) · A · logprob, with the clipped ratio as a constant

An objective is any callable that fits `PolicyObjective`, for instance a plain torch function. Its derivative is
taken by autograd, in plain torch, on CUDA too. CLIP and CISPO have a closed form and a Triton kernel. `policy_loss`
adds what all objectives share: the dual clip, importance weights, KL and entropy terms.

Sources: PPO (arXiv:1707.06347), separate bounds (DAPO, arXiv:2503.14476), CISPO (MiniMax-M1, arXiv:2506.13585), dual
clip (arXiv:1912.09729).

Shapes: N tokens.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, final

import torch
from torch import Tensor


class PolicyObjective(Protocol):
    """Computes the surrogate of each token."""

    def __call__(
        self, ratio: Tensor, logprobs: Tensor, advantages: Tensor, settings: "PolicyLossSettings", /
    ) -> Tensor:
        """Returns the surrogate [N], to be maximised; elementwise, differentiable in ratio and logprobs.

        ratio: [N], exp(logprob − old logprob) of each token, or the geometric mean over its sequence (then the same
            for all its tokens).
        logprobs, advantages: [N]. All are fp32 (float64 for float64 logprobs). Tokens of weight 0 hold a ratio of 1,
            a logprob and an advantage of 0; their surrogate is ignored.
        settings: the settings of the loss, such as clip_low and clip_high.
        """
        ...


class TokenTerms(NamedTuple):
    """The policy term of each token's loss and its derivative in the logprob; the tokens that met each bound (bool).

    All are [N]."""

    loss: Tensor
    d_logprobs: Tensor
    clip_low: Tensor
    clip_high: Tensor
    dual_clip: Tensor


@final
@dataclass(frozen=True, slots=True)
class ClippedObjective:
    """An objective of the clipped ratio; the Triton kernel implements it for both values of `detaches_ratio`.

    Calling it gives the plain formula, which the reference differentiates by autograd."""

    name: str
    detaches_ratio: bool
    """The clipped ratio is a constant weight of the logprob, so that every token keeps its gradient."""

    def __call__(
        self, ratio: Tensor, logprobs: Tensor, advantages: Tensor, settings: "PolicyLossSettings", /
    ) -> Tensor:
        clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
        if self.detaches_ratio:
            return clipped.detach() * advantages * logprobs
        return torch.minimum(ratio * advantages, clipped * advantages)

    def check(self, settings: "PolicyLossSettings") -> None:
        """Raises ValueError for settings that the objective does not support."""
        if self.detaches_ratio and settings.dual_clip is not None:
            raise ValueError(
                f"{self.name} bounds every ratio on both sides: dual_clip must be None, got {settings.dual_clip}"
            )

    def terms(
        self,
        ratio: Tensor,
        logprobs: Tensor,
        advantages: Tensor,
        coef: Tensor,
        mean_coef: Tensor,
        settings: "PolicyLossSettings",
    ) -> TokenTerms:
        """The terms in closed form; all tensors are [N].

        coef: −weight · importance · advantage, the factor from an effective ratio to the loss.
        mean_coef: coef, or its mean over the token's sequence where the ratio is the sequence's."""
        low_bound, high_bound = 1 - settings.clip_low, 1 + settings.clip_high
        if self.detaches_ratio:
            low, high = ratio < low_bound, ratio > high_bound
            d_logprobs = coef * ratio.clamp(low_bound, high_bound)
            return TokenTerms(d_logprobs * logprobs, d_logprobs, low, high, torch.zeros_like(low))
        negative = advantages < 0
        high = (advantages > 0) & (ratio > high_bound)
        low = negative & (ratio < low_bound)
        dual = torch.zeros_like(low)
        # Without a coefficient the loss is 0, also where the ratio is infinite.
        unbounded = negative & (coef != 0)
        effective = torch.where(unbounded, ratio.clamp(min=low_bound), ratio.clamp(max=high_bound))
        if settings.dual_clip is not None:
            dual = negative & (ratio > settings.dual_clip)
            effective = torch.where(dual, settings.dual_clip, effective)
        d_logprobs = torch.where((mean_coef == 0) | high | low | dual, 0, mean_coef * ratio)
        return TokenTerms(coef * effective, d_logprobs, low, high, dual)


CLIP = ClippedObjective("clip", detaches_ratio=False)
CISPO = ClippedObjective("cispo", detaches_ratio=True)


Level = Literal["token", "sequence", "geometric"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyLossSettings:
    """Settings of the loss; `policy_loss` gives their meanings."""

    objective: PolicyObjective = CLIP
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    ratio_level: Literal["token", "geometric"] = "token"
    tis_cap: float | None = None
    tis_level: Level = "token"
    mask_level: Level | None = None
    mask_low: float = 0.5
    mask_high: float = 2.0
    kl_coef: float = 0.0
    kl_kind: str = "k1"
    entropy_coef: float = 0.0

    @property
    def levels(self) -> dict[str, str]:
        """The level of each part of the loss that is on, by the name of its setting."""
        levels: dict[str, str] = {"ratio_level": self.ratio_level}
        if self.tis_cap is not None:
            levels["tis_level"] = self.tis_level
        if self.mask_level is not None:
            levels["mask_level"] = self.mask_level
        return levels

    @property
    def needs_sequences(self) -> bool:
        """Whether the loss of a token depends on the other tokens of its sequence."""
        return any(level != "token" for level in self.levels.values())

    @property
    def needs_all(self) -> bool:
        """Whether a token of advantage 0 can have a gradient.

        KL and entropy terms give it one, and an objective without a closed form may."""
        regularised = bool(self.kl_coef or self.entropy_coef)
        return regularised or not isinstance(self.objective, ClippedObjective)
