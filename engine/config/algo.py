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


CLIP_DEFAULTS = {"token": (0.2, 0.28), "sequence": (3e-4, 4e-4)}
"""clip_low and clip_high of each kind of ratio: DAPO's (arXiv:2503.14476) and GSPO's (arXiv:2507.18071)."""


@dataclass(kw_only=True, slots=True)
class AlgoConfig:
    """Rewards, advantages and the policy loss."""

    reward: str = "r_align"
    """label: correct verdict (RLVR); r_align: correct verdict and, for the MetaRM, rationale; or FILE.py:NAME."""
    invalid_reward: float = -1.0
    """Reward of an answer without a verdict."""
    advantages: str = "grpo"
    """grpo, dr_grpo, rloo, reinforce_pp, reinforce_pp_baseline, gdpo (group advantages), gae (critic), FILE.py:NAME."""
    group: Literal["prompt", "pair"] = "prompt"
    """Samples that are compared: of one prompt, or (with partner) also of a pair and its twin, half each."""
    num_prompts: int = 32
    """Prompts per step, over all processes."""
    num_samples: int = 8
    """Answers per prompt, which form a group."""
    partner: str = "none"
    """Each pair's twin, the same under another surface: none, order, cues, markdown, padding, reorder, FILE.py:NAME."""
    couple: bool = False
    """With partner: an answer's reward is multiplied by the mean reward of its twin's group."""
    dynamic_sampling: int = 0
    """Most rounds of num_prompts further prompts in a step, while fewer groups than that have a spread of rewards."""
    truncated: Literal["invalid", "mask", "penalty", "keep"] | None = None
    """Cut-off answers: no verdict, left out, a soft overlong penalty, as they read; None: invalid (actors: keep)."""
    overlong_share: float = 0.2
    """Last part of max_new_tokens over which the penalty of truncated=penalty rises from 0 to 1."""
    num_updates: int = 1
    """Optimizer updates per step, each on its own part of the samples; 1 is on-policy."""
    objective: str = "clip"
    """clip: PPO's clipped ratio; cispo: the clipped ratio as a constant weight of the logprob; or FILE.py:NAME."""
    ratio: Literal["token", "sequence"] = "token"
    """Probability ratio that is clipped: of each token, or the geometric mean of a sequence (GSPO)."""
    clip_low: float | None = None
    """Ratios are clipped at 1 - clip_low from below; None: 0.2, with ratio=sequence 3e-4 (GSPO)."""
    clip_high: float | None = None
    """Ratios are clipped at 1 + clip_high from above; None: 0.28, with ratio=sequence 4e-4 (GSPO)."""
    dual_clip: float | None = 3.0
    """Dual clip: bound on the loss of a token with a negative advantage, as a multiple of it; None: no bound."""
    normalisation: Literal["token", "sequence", "constant"] | None = None
    """Mean over tokens; over sequences of means; over sequences x max_new_tokens; None: by advantages and ratio."""
    kl_coef: float = 0.0
    """Weight of the KL divergence from the frozen reference; 0: no reference model."""
    kl_kind: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL divergence."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    tis_cap: float | None = 2.0
    """Truncated importance sampling between engine and trainer: the largest weight; None: off."""
    tis_level: Literal["token", "sequence", "geometric"] = "token"
    """The weight is each token's; or its sequence's: the product of the tokens' ratios, or their geometric mean."""
    mask_level: Literal["token", "sequence", "geometric"] | None = None
    """Tokens (IcePop) or sequences whose ratio of trainer to engine is out of bounds get no policy term; None: off."""
    mask_low: float = 0.5
    """Least ratio that mask_level keeps; geometric needs narrow bounds, such as 0.99 and 1.01."""
    mask_high: float = 2.0
    """Largest ratio that mask_level keeps."""
    kl_in_reward: bool = False
    """Subtract kl_coef times the logprobs' difference (k1) from each token's reward instead; for gae only."""
    max_rollout_kl: float | None = None
    """Skip an update whose KL divergence between engine and trainer (k3, per token) is larger; None: no bound."""

    @property
    def loss_normalisation(self) -> str:
        """`normalisation`, or the published one: Dr. GRPO's constant, GSPO's mean over sequences, else over tokens."""
        default = "sequence" if self.ratio == "sequence" else "token"
        return self.normalisation or ("constant" if self.advantages == "dr_grpo" else default)

    @property
    def clip_range(self) -> tuple[float, float]:
        """clip_low and clip_high, with the defaults of the kind of ratio: means of log-ratios are much smaller."""
        low, high = CLIP_DEFAULTS[self.ratio]
        return (
            low if self.clip_low is None else self.clip_low,
            high if self.clip_high is None else self.clip_high,
        )

    @property
    def groups_per_unit(self) -> int:
        """Groups that are drawn, kept and left together: those of a pair and its twin, or one."""
        return 1 if self.partner == "none" else 2


def _critic_optim() -> OptimConfig:
    return OptimConfig(lr=1e-5)


@dataclass(kw_only=True, slots=True)
class CriticConfig:
    """PPO's critic, for algo.advantages=gae only."""

    hf_path: str | None = None
    """Folder of the initial weights, such as a one-label reward model; None: the policy's, with all values 0."""
    optim: OptimConfig = field(default_factory=_critic_optim)
    """Optimizer of the critic."""
    warmup_steps: int = 5
    """Steps at the start of a stage in which only the critic is updated; 0 needs a trained critic.hf_path."""
    value_clip: float | None = 0.2
    """Clip range of a value in the loss, around its prediction before the step; None: no clipping."""
    gamma: float = 1.0
    """Discount factor per token."""
    lam: float = 1.0
    """Lambda of GAE: 1 uses the rewards only, 0 the value of the next token."""
    policy_lam: float | None = None
    """Lambda of the policy's advantages, where it differs from that of the critic's returns; None: lam."""
    length_adaptive: float | None = None
    """Alpha of a policy lambda of 1 - 1 / (alpha * answer tokens) (VAPO); None: policy_lam for every answer."""
    whiten: bool = True
    """Centre the advantages of a step's tokens and divide them by their standard deviation."""
