"""Rejects settings of the algorithm that cannot work together; part of `validation.validate`."""

from ralign.engine.config.algo import CLIP_DEFAULTS, AlgoConfig, OptimConfig
from ralign.engine.config.checks import Checks, check_trainer_cut, folder_sizes
from ralign.engine.config.registry import ADVANTAGES, TWINS
from ralign.engine.config.run import Run

_MOST_SEQUENCE_CLIP = 0.05
_WITHOUT_GROUPS = ("reinforce_pp",)  # advantages that compare with the batch
_BY_GROUP_STD = ("grpo", "gdpo")  # advantages that do not see a factor that a group has in common


def check_algo(checks: Checks, run: Run) -> None:
    algo = run.algo
    checks.at_least(1, algo__num_prompts=algo.num_prompts, algo__num_updates=algo.num_updates)
    checks.at_least(1, algo__num_samples=algo.num_samples)
    checks.require(
        algo.num_samples >= 2 or run.has_critic or algo.advantages in _WITHOUT_GROUPS,
        f"algo.num_samples must be at least 2, got {algo.num_samples}: {algo.advantages} compares answers"
        " to the same prompt",
    )
    num_samples = algo.num_prompts * algo.num_samples
    checks.divides(algo.num_updates, "algo.num_updates", num_samples, "algo.num_prompts * algo.num_samples")
    checks.at_least(0, algo__kl_coef=algo.kl_coef)
    _check_clip(checks, algo)
    _check_mismatch(checks, algo)
    checks.require(
        algo.objective != "cispo" or algo.dual_clip is None,
        f"algo.objective=cispo bounds every ratio on both sides: algo.dual_clip must be None, got {algo.dual_clip}",
    )
    _check_groups(checks, run)
    checks.share(algo__overlong_share=algo.overlong_share)
    if algo.max_rollout_kl is not None:
        checks.positive(algo__max_rollout_kl=algo.max_rollout_kl)
    checks.require(
        not algo.kl_in_reward or run.has_critic,
        f"algo.kl_in_reward=True needs algo.advantages=gae, got {algo.advantages}: group advantages have one reward"
        " per answer",
    )
    checks.require(
        not algo.kl_in_reward or algo.kl_coef > 0, "algo.kl_in_reward=True needs algo.kl_coef > 0, got 0"
    )
    if algo.dual_clip is not None:
        checks.require(algo.dual_clip > 1, f"algo.dual_clip must exceed 1 (or be None), got {algo.dual_clip}")


def _check_clip(checks: Checks, algo: AlgoConfig) -> None:
    low, high = algo.clip_range
    checks.at_least(0, algo__clip_low=low, algo__clip_high=high)
    checks.require(low < 1, f"algo.clip_low must be less than 1, got {low}")
    if algo.ratio == "sequence":
        for name, value, usual in zip(
            ("clip_low", "clip_high"), (low, high), CLIP_DEFAULTS["sequence"], strict=True
        ):
            checks.require(
                value <= _MOST_SEQUENCE_CLIP,
                f"algo.{name}={value} clips nothing with algo.ratio=sequence, a mean over many tokens: give at most "
                f"{_MOST_SEQUENCE_CLIP}, or None for GSPO's {usual}",
            )


def _check_mismatch(checks: Checks, algo: AlgoConfig) -> None:
    """The corrections for the engine's logprobs."""
    if algo.tis_cap is not None:
        checks.require(algo.tis_cap > 0, f"algo.tis_cap must be positive (or None), got {algo.tis_cap}")
    checks.require(
        algo.tis_cap is not None or algo.tis_level == "token",
        f"algo.tis_level={algo.tis_level} needs importance weights, and algo.tis_cap=None has none",
    )
    checks.positive(algo__mask_low=algo.mask_low)
    checks.require(
        algo.mask_low < algo.mask_high,
        f"algo.mask_low must be less than algo.mask_high, got {algo.mask_low} and {algo.mask_high}",
    )


def _check_groups(checks: Checks, run: Run) -> None:
    algo = run.algo
    checks.at_least(0, algo__dynamic_sampling=algo.dynamic_sampling)
    checks.require(
        not (algo.dynamic_sampling and (run.has_critic or algo.advantages in _WITHOUT_GROUPS)),
        f"algo.dynamic_sampling={algo.dynamic_sampling} is for group advantages: with algo.advantages={algo.advantages}"
        " a group without a spread of rewards teaches, too",
    )
    checks.require(
        algo.group == "prompt" or not run.has_critic,
        f"algo.group={algo.group} is for group advantages, got algo.advantages=gae",
    )
    _check_twins(checks, algo)


def _check_twins(checks: Checks, algo: AlgoConfig) -> None:
    if algo.partner == "none":
        kinds = f"{', '.join(TWINS.names)} or FILE.py:NAME"
        checks.require(
            algo.group == "prompt", f"algo.group={algo.group} needs algo.partner={kinds}: a pair has no twin"
        )
        checks.require(not algo.couple, f"algo.couple=True needs algo.partner={kinds}: a pair has no twin")
        return
    with checks.collect():
        TWINS.check(algo.partner)
    checks.divides(2, "a pair and its twin (algo.partner)", algo.num_prompts, "algo.num_prompts")
    fit = ", ".join(name for name in ADVANTAGES.names if name not in _BY_GROUP_STD)
    checks.require(
        not algo.couple or algo.advantages not in _BY_GROUP_STD,
        f"algo.couple=True with algo.advantages={algo.advantages}: the group's std cancels the twin's mean, which the"
        f" group has in common; take {fit}",
    )


def check_optim(checks: Checks, name: str, optim: OptimConfig) -> None:
    checks.require(optim.lr > 0, f"{name}.lr must be positive, got {optim.lr}")
    checks.require(
        0 <= optim.min_lr <= optim.lr,
        f"{name}.min_lr must be from 0 to {name}.lr = {optim.lr}, got {optim.min_lr}",
    )
    checks.require(optim.eps > 0, f"{name}.eps must be positive, got {optim.eps}")
    for field_name in ("beta1", "beta2"):
        beta = getattr(optim, field_name)
        checks.require(0 <= beta < 1, f"{name}.{field_name} must be from 0 to less than 1, got {beta}")
    for field_name in ("warmup_steps", "weight_decay", "clip_grad"):
        value = getattr(optim, field_name)
        checks.require(value >= 0, f"{name}.{field_name} must not be negative, got {value}")


def check_critic_model(checks: Checks, run: Run) -> None:
    critic = run.critic
    if critic.hf_path is None or not run.has_critic:
        return
    sizes = folder_sizes(checks, "critic.hf_path", critic.hf_path)
    if sizes is None:
        return
    check_trainer_cut(checks, run, sizes, "the critic")
    longest = run.data.max_prompt_tokens + run.generator.max_new_tokens
    checks.require(
        longest <= sizes["max_position_embeddings"],
        f"data.max_prompt_tokens + generator.max_new_tokens = {longest} exceeds the critic's "
        f"max_position_embeddings = {sizes['max_position_embeddings']}",
    )


def check_critic(checks: Checks, run: Run) -> None:
    critic = run.critic
    check_optim(checks, "critic.optim", critic.optim)
    checks.share(critic__gamma=critic.gamma, critic__lam=critic.lam)
    if critic.policy_lam is not None:
        checks.share(critic__policy_lam=critic.policy_lam)
    if critic.length_adaptive is not None:
        checks.positive(critic__length_adaptive=critic.length_adaptive)
        checks.require(
            critic.policy_lam is None,
            f"critic.length_adaptive={critic.length_adaptive} and critic.policy_lam={critic.policy_lam} both set the"
            " policy's lambda: leave one at None",
        )
    checks.at_least(0, critic__warmup_steps=critic.warmup_steps)
    if critic.value_clip is not None:
        checks.require(
            critic.value_clip > 0, f"critic.value_clip must be positive (or None), got {critic.value_clip}"
        )
    if not run.has_critic:
        checks.require(
            critic.hf_path is None,
            f"critic.hf_path={critic.hf_path}: algo.advantages={run.algo.advantages} has no critic, only gae has one",
        )
        return
    checks.require(
        run.algo.ratio == "token",
        f"algo.ratio={run.algo.ratio} needs one advantage per sequence, and algo.advantages=gae gives one per token: "
        "use algo.ratio=token",
    )
    checks.require(
        critic.warmup_steps > 0 or critic.hf_path is not None,
        "critic.warmup_steps=0 lets a critic whose values are all 0 train the policy: set 1 or more, or critic.hf_path",
    )
    checks.require(
        critic.warmup_steps < run.num_steps or run.num_steps == 0,
        f"critic.warmup_steps = {critic.warmup_steps} leaves the policy no update in num_steps = {run.num_steps}",
    )
