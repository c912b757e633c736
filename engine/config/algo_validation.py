"""Rejects settings of the algorithm that cannot work together; part of `validation.validate`."""

from ralign.engine.config.algo import OptimConfig
from ralign.engine.config.checks import Checks, check_trainer_cut, folder_sizes
from ralign.engine.config.run import Run


def check_algo(checks: Checks, run: Run) -> None:
    algo = run.algo
    checks.at_least(1, algo__num_prompts=algo.num_prompts, algo__num_updates=algo.num_updates)
    checks.at_least(1, algo__num_samples=algo.num_samples)
    checks.require(
        algo.num_samples >= 2 or run.has_critic,
        f"algo.num_samples must be at least 2, got {algo.num_samples}: {algo.advantages} compares answers"
        " to the same prompt",
    )
    if algo.both_orders:
        checks.divides(2, "the two orders of algo.both_orders", algo.num_prompts, "algo.num_prompts")
    num_samples = algo.num_prompts * algo.num_samples
    checks.divides(algo.num_updates, "algo.num_updates", num_samples, "algo.num_prompts * algo.num_samples")
    checks.at_least(
        0, algo__clip_low=algo.clip_low, algo__clip_high=algo.clip_high, algo__kl_coef=algo.kl_coef
    )
    checks.require(algo.clip_low < 1, f"algo.clip_low must be less than 1, got {algo.clip_low}")
    checks.require(
        algo.objective != "cispo" or algo.dual_clip is None,
        f"algo.objective=cispo bounds every ratio on both sides: algo.dual_clip must be None, got {algo.dual_clip}",
    )
    if algo.dual_clip is not None:
        checks.require(algo.dual_clip > 1, f"algo.dual_clip must exceed 1 (or be None), got {algo.dual_clip}")
    if algo.tis_cap is not None:
        checks.require(algo.tis_cap > 0, f"algo.tis_cap must be positive (or None), got {algo.tis_cap}")


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
        critic.warmup_steps < run.num_steps or run.num_steps == 0,
        f"critic.warmup_steps = {critic.warmup_steps} leaves the policy no update in num_steps = {run.num_steps}",
    )
