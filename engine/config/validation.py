"""Rejects settings that cannot work together, before any model is built. Each message is one line with the values."""

import json
import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ralign.engine.config.registry import ADVANTAGES, FAMILIES, METARMS, OBJECTIVES, REWARDS
from ralign.engine.config.run import GenRMRun, OptimConfig, Run
from ralign.engine.runtime.errors import UserError


def validate(run: Run, world_size: int) -> None:
    """Raises UserError for the first combination of settings that cannot run on `world_size` processes."""
    _check_finite(run)
    _check_model(run)
    _check_parallel(run, world_size)
    _check_chat(run)
    _check_lengths(run)
    _check_sampling(run)
    _check_algo(run, world_size)
    _check_optim("optim", run.optim)
    _check_optim("sft.optim", run.sft.optim)
    _check_critic(run)
    if isinstance(run, GenRMRun):
        _check_metarm(run)
    _check_rest(run, world_size)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _at_least(least: float, **settings: float) -> None:
    """Requires each setting to be at least `least`; __ in a name stands for a dot."""
    for name, value in settings.items():
        _require(value >= least, f"{name.replace('__', '.')} must be at least {least}, got {value}")


def _positive(**settings: float) -> None:
    for name, value in settings.items():
        _require(value > 0, f"{name.replace('__', '.')} must be positive, got {value}")


def _share(**settings: float) -> None:
    for name, value in settings.items():
        _require(0 <= value <= 1, f"{name.replace('__', '.')} must be from 0 to 1, got {value}")


def _divides(part: int, part_name: str, whole: int, whole_name: str) -> None:
    _require(whole % part == 0, f"{whole_name} = {whole} is not divisible by {part_name} = {part}")


def _check_finite(node: Any, prefix: str = "") -> None:
    for item in fields(node):
        value = getattr(node, item.name)
        if is_dataclass(value):
            _check_finite(value, f"{prefix}{item.name}.")
        elif isinstance(value, float):
            _require(math.isfinite(value), f"{prefix}{item.name} must be finite, got {value}")


def _model_sizes(run: Run) -> dict[str, int]:
    """Sizes that a layout must divide, from config.json if model.hf_path is given."""
    model = run.model
    if model.hf_path is not None:
        return _folder_sizes("model.hf_path", model.hf_path)
    return {
        "num_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "ffn_hidden_size": model.ffn_hidden_size,
        "max_position_embeddings": model.max_position_embeddings,
    }


def _folder_sizes(setting: str, folder: str) -> dict[str, int]:
    path = Path(folder) / "config.json"
    try:
        hf = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{setting}={folder}: cannot read {path} ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{setting}={folder}: {path} is not JSON ({error})") from error
    names = {
        "num_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "num_query_groups": "num_key_value_heads",
        "ffn_hidden_size": "intermediate_size",
        "max_position_embeddings": "max_position_embeddings",
    }
    for name in names.values():
        _require(isinstance(hf.get(name), int), f"{setting}={folder}: config.json has no {name}")
    return {ours: hf[theirs] for ours, theirs in names.items()}


def _check_model(run: Run) -> None:
    model = run.model
    FAMILIES.check(model.family)
    if model.hf_path is not None:
        return
    _at_least(
        1,
        model__num_layers=model.num_layers,
        model__hidden_size=model.hidden_size,
        model__ffn_hidden_size=model.ffn_hidden_size,
        model__num_attention_heads=model.num_attention_heads,
        model__num_query_groups=model.num_query_groups,
        model__head_dim=model.head_dim,
        model__max_position_embeddings=model.max_position_embeddings,
    )
    _positive(
        model__rope_theta=model.rope_theta, model__norm_eps=model.norm_eps, model__init_std=model.init_std
    )
    _require(
        model.head_dim % 2 == 0, f"model.head_dim must be even (RoPE rotates pairs), got {model.head_dim}"
    )
    _divides(
        model.num_query_groups,
        "model.num_query_groups",
        model.num_attention_heads,
        "model.num_attention_heads",
    )


def _check_parallel(run: Run, world_size: int) -> None:
    parallel, sizes = run.parallel, _model_sizes(run)
    _at_least(
        1,
        parallel__tensor=parallel.tensor,
        parallel__pipeline=parallel.pipeline,
        parallel__context=parallel.context,
    )
    _require(
        world_size % (parallel.tensor * parallel.pipeline * parallel.context) == 0,
        f"parallel.tensor * parallel.pipeline * parallel.context = {parallel.tensor} * {parallel.pipeline}"
        f" * {parallel.context} does not divide the world of {world_size} process(es)",
    )
    _check_cut(run, sizes, "the model")
    if generate := run.generator.tensor:
        _at_least(0, generator__tensor=generate)
        _divides(generate, "generator.tensor", world_size, "the world size")
        for name in ("num_attention_heads", "num_query_groups", "ffn_hidden_size"):
            _divides(generate, "generator.tensor", sizes[name], f"the model's {name}")
    _require(
        not parallel.sequence or parallel.tensor > 1,
        f"parallel.sequence=True needs parallel.tensor > 1, got {parallel.tensor}",
    )


def _check_cut(run: Run, sizes: dict[str, int], whose: str) -> None:
    """Requires that the trainer's layout divides these sizes."""
    parallel = run.parallel
    for name in ("num_attention_heads", "num_query_groups", "ffn_hidden_size"):
        _divides(parallel.tensor, "parallel.tensor", sizes[name], f"{whose}'s {name}")
    _divides(parallel.pipeline, "parallel.pipeline", sizes["num_layers"], f"{whose}'s num_layers")


def _check_critic(run: Run) -> None:
    critic = run.critic
    _check_optim("critic.optim", critic.optim)
    _share(critic__gamma=critic.gamma, critic__lam=critic.lam)
    _at_least(0, critic__warmup_steps=critic.warmup_steps)
    if critic.value_clip is not None:
        _require(
            critic.value_clip > 0, f"critic.value_clip must be positive (or None), got {critic.value_clip}"
        )
    if not run.has_critic:
        _require(
            critic.hf_path is None,
            f"critic.hf_path={critic.hf_path}: algo.advantages={run.algo.advantages} has no critic, only gae has one",
        )
        return
    _require(
        run.algo.ratio == "token",
        f"algo.ratio={run.algo.ratio} needs one advantage per sequence, and algo.advantages=gae gives one per token: "
        "use algo.ratio=token",
    )
    _require(
        critic.warmup_steps < run.num_steps or run.num_steps == 0,
        f"critic.warmup_steps = {critic.warmup_steps} leaves the policy no update in num_steps = {run.num_steps}",
    )
    if critic.hf_path is not None:
        sizes = _folder_sizes("critic.hf_path", critic.hf_path)
        _check_cut(run, sizes, "the critic")
        longest = run.data.max_prompt_tokens + run.generator.max_new_tokens
        _require(
            longest <= sizes["max_position_embeddings"],
            f"data.max_prompt_tokens + generator.max_new_tokens = {longest} exceeds the critic's "
            f"max_position_embeddings = {sizes['max_position_embeddings']}",
        )


def _check_chat(run: Run) -> None:
    """Requires a chat template in the model's folder if data.chat is set."""
    if not run.data.chat:
        return
    plain = "use data.chat=False for plain text"
    _require(
        run.model.hf_path is not None,
        f"data.chat=True needs a chat template, and a model without model.hf_path has none: {plain}",
    )
    assert run.model.hf_path is not None
    folder = Path(run.model.hf_path)
    if (folder / "chat_template.jinja").is_file():
        return
    path = folder / "tokenizer_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"data.chat=True: cannot read a chat template in {path} ({error})") from error
    _require(
        bool(settings.get("chat_template")),
        f"data.chat=True: the tokenizer in model.hf_path={folder} has no chat template: {plain}",
    )


def _check_lengths(run: Run) -> None:
    prompt, longest = run.data.max_prompt_tokens, _model_sizes(run)["max_position_embeddings"]
    _at_least(
        1,
        data__max_prompt_tokens=prompt,
        generator__max_new_tokens=run.generator.max_new_tokens,
        eval__max_new_tokens=run.eval.max_new_tokens,
    )
    for name, new in (("generator", run.generator.max_new_tokens), ("eval", run.eval.max_new_tokens)):
        text = f"data.max_prompt_tokens + {name}.max_new_tokens = {prompt} + {new} = {prompt + new}"
        _require(prompt + new <= longest, f"{text} exceeds the model's max_position_embeddings = {longest}")
        if name == "generator":
            _require(prompt + new <= run.token_budget, f"{text} exceeds token_budget = {run.token_budget}")


def _check_sampling(run: Run) -> None:
    generator = run.generator
    why = (
        "truncated sampling biases the policy ratio, since the trainer's logprobs cover the whole vocabulary"
    )
    _require(generator.top_p == 1, f"generator.top_p must be 1, got {generator.top_p}: {why}")
    _require(generator.top_k == -1, f"generator.top_k must be -1, got {generator.top_k}: {why}")
    _positive(
        generator__temperature=generator.temperature,
        generator__gpu_memory_utilization=generator.gpu_memory_utilization,
    )
    _at_least(0, generator__kv_cache_gib=generator.kv_cache_gib)
    _at_least(1, memory__bucket_mib=run.memory.bucket_mib)
    _at_least(0, memory__reserve_gib=run.memory.reserve_gib)
    _share(generator__gpu_memory_utilization=generator.gpu_memory_utilization)
    _at_least(1, generator__max_num_seqs=generator.max_num_seqs)
    _at_least(1, generator__max_num_batched_tokens=generator.max_num_batched_tokens)
    _at_least(0, eval__temperature=run.eval.temperature)


def _check_metarm(run: GenRMRun) -> None:
    kind = METARMS.load(run.metarm.kind)
    kind.check(run.metarm)
    _require(
        run.metarm.kind != "none" or not REWARDS.load(run.algo.reward).needs_metarm,
        f"algo.reward={run.algo.reward} needs a MetaRM, got metarm.kind=none",
    )


def _check_algo(run: Run, world_size: int) -> None:
    algo, data_size = run.algo, run.parallel.data_size(world_size)
    REWARDS.check(algo.reward)
    ADVANTAGES.check(algo.advantages)
    OBJECTIVES.check(algo.objective)
    _at_least(1, algo__num_prompts=algo.num_prompts, algo__num_updates=algo.num_updates)
    _at_least(1, algo__num_samples=algo.num_samples)
    _require(
        algo.num_samples >= 2 or run.has_critic,
        f"algo.num_samples must be at least 2, got {algo.num_samples}: {algo.advantages} compares answers"
        " to the same prompt",
    )
    _divides(data_size, "the data-parallel size", algo.num_prompts, "algo.num_prompts")
    num_engines = world_size // (run.generator.tensor or run.parallel.tensor)
    _divides(num_engines, "the number of engines", algo.num_prompts, "algo.num_prompts")
    if algo.both_orders:
        _divides(2, "the two orders of algo.both_orders", algo.num_prompts, "algo.num_prompts")
    num_samples = algo.num_prompts * algo.num_samples
    _divides(algo.num_updates, "algo.num_updates", num_samples, "algo.num_prompts * algo.num_samples")
    _at_least(0, algo__clip_low=algo.clip_low, algo__clip_high=algo.clip_high, algo__kl_coef=algo.kl_coef)
    _require(algo.clip_low < 1, f"algo.clip_low must be less than 1, got {algo.clip_low}")
    _require(
        algo.objective != "cispo" or algo.dual_clip is None,
        f"algo.objective=cispo bounds every ratio on both sides: algo.dual_clip must be None, got {algo.dual_clip}",
    )
    if algo.dual_clip is not None:
        _require(algo.dual_clip > 1, f"algo.dual_clip must exceed 1 (or be None), got {algo.dual_clip}")
    if algo.tis_cap is not None:
        _require(algo.tis_cap > 0, f"algo.tis_cap must be positive (or None), got {algo.tis_cap}")


def _check_optim(name: str, optim: OptimConfig) -> None:
    _require(optim.lr > 0, f"{name}.lr must be positive, got {optim.lr}")
    _require(
        0 <= optim.min_lr <= optim.lr,
        f"{name}.min_lr must be from 0 to {name}.lr = {optim.lr}, got {optim.min_lr}",
    )
    _require(optim.eps > 0, f"{name}.eps must be positive, got {optim.eps}")
    for field_name in ("beta1", "beta2"):
        beta = getattr(optim, field_name)
        _require(0 <= beta < 1, f"{name}.{field_name} must be from 0 to less than 1, got {beta}")
    for field_name in ("warmup_steps", "weight_decay", "clip_grad"):
        value = getattr(optim, field_name)
        _require(value >= 0, f"{name}.{field_name} must not be negative, got {value}")


def _check_rest(run: Run, world_size: int) -> None:
    name_is_folder = run.name not in ("", ".", "..") and "/" not in run.name
    _require(name_is_folder, f"name must name a folder inside out, got {run.name!r}")
    _at_least(
        0,
        seed=run.seed,
        num_steps=run.num_steps,
        checkpoint_every=run.checkpoint_every,
        rollouts_every=run.rollouts_every,
        sft__num_steps=run.sft.num_steps,
        data__max_bad_lines=run.data.max_bad_lines,
        checkpoint__keep_best=run.checkpoint.keep_best,
        faults__max_skipped_updates=run.faults.max_skipped_updates,
    )
    _positive(
        faults__stall_s=run.faults.stall_s,
        faults__generation_stall_s=run.faults.generation_stall_s,
    )
    _at_least(
        1,
        token_budget=run.token_budget,
        sft__num_samples=run.sft.num_samples,
        eval__num_pairs=run.eval.num_pairs,
        eval__num_bootstrap=run.eval.num_bootstrap,
        checkpoint__keep_last=run.checkpoint.keep_last,
    )
    _share(sft__golden_share=run.sft.golden_share)
    data_size = run.parallel.data_size(world_size)
    _divides(data_size, "the data-parallel size", run.sft.num_samples, "sft.num_samples")
    if run.data.train is not None:
        _require(Path(run.data.train).is_file(), f"data.train={run.data.train}: no such file")
