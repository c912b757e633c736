"""Settings of the algorithm: rewards, advantages, the policy loss, the critic, and the optimizer."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """AdamW and its learning-rate schedule."""

    lr: float = 1e-6
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of a cosine or linear schedule."""
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay; not applied to norms and biases."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    clip_grad: float = 1.0
    """Clip the global gradient norm to this value; 0: no clipping."""


@dataclass(kw_only=True, slots=True)
class AlgoConfig:
    """Rewards, advantages and the policy loss."""

    reward: str = "r_align"
    """label: correct verdict (RLVR); r_align: correct verdict and, for the MetaRM, rationale; or FILE.py:NAME."""
    invalid_reward: float = -1.0
    """Reward of an answer without a verdict."""
    advantages: str = "grpo"
    """grpo (centred, over the deviation), dr_grpo (centred), rloo (leave-one-out), gae (critic), or FILE.py:NAME."""
    num_prompts: int = 32
    """Prompts per step, over all processes."""
    num_samples: int = 8
    """Answers per prompt, which form a group."""
    both_orders: bool = False
    """Judge each pair in both orders; an answer gets the smaller of its own reward and its partner's."""
    num_updates: int = 1
    """Optimizer updates per step, each on its own part of the samples; 1 is on-policy."""
    objective: str = "clip"
    """clip: PPO's clipped ratio; cispo: the clipped ratio as a constant weight of the logprob; or FILE.py:NAME."""
    ratio: Literal["token", "sequence"] = "token"
    """Probability ratio that is clipped: of each token, or the geometric mean of a sequence (GSPO)."""
    clip_low: float = 0.2
    """Ratios are clipped at 1 - clip_low from below."""
    clip_high: float = 0.28
    """Ratios are clipped at 1 + clip_high from above."""
    dual_clip: float | None = 3.0
    """Dual clip: bound on the loss of a token with a negative advantage, as a multiple of it; None: no bound."""
    normalisation: Literal["token", "sequence"] = "token"
    """Mean of the loss over all tokens of an update, or over sequences, each with its mean over tokens."""
    kl_coef: float = 0.0
    """Weight of the KL divergence from the frozen reference; 0: no reference model."""
    kl_kind: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL divergence."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    tis_cap: float | None = 2.0
    """Truncated importance sampling between engine and trainer: the largest weight; None: off."""

    @property
    def num_orders(self) -> int:
        """Number of orders in which each pair is judged."""
        return 2 if self.both_orders else 1


def _critic_optim() -> OptimConfig:
    return OptimConfig(lr=1e-5)


@dataclass(kw_only=True, slots=True)
class CriticConfig:
    """PPO's critic, for algo.advantages=gae only."""

    hf_path: str | None = None
    """Folder of the initial weights, such as a one-label reward model; None: the policy's, with all values 0."""
    optim: OptimConfig = field(default_factory=_critic_optim)
    """Optimizer of the critic."""
    warmup_steps: int = 0
    """Steps at the start of a stage in which only the critic is updated."""
    value_clip: float | None = 0.2
    """Clip range of a value in the loss, around its prediction before the step; None: no clipping."""
    gamma: float = 1.0
    """Discount factor per token."""
    lam: float = 0.95
    """Lambda of GAE: 1 uses the rewards only, 0 the value of the next token."""
    whiten: bool = True
    """Centre the advantages of a step's tokens and divide them by their standard deviation."""
