"""Rejects settings that cannot work together, before any model is built.

All mistakes are reported at once, each with the values. A check that has no meaning after another one has failed, such
as the division by a size of 0, is left out.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from ralign.engine.config.algo_validation import check_algo, check_critic, check_critic_model, check_optim
from ralign.engine.config.checks import LAYOUT_SIZES, Checks, check_trainer_cut, folder_sizes
from ralign.engine.config.registry import ADVANTAGES, FAMILIES, METARMS, OBJECTIVES, REWARDS, TWINS
from ralign.engine.config.run import GenRMRun, Run
from ralign.engine.config.trackers import check_trackers
from ralign.engine.data.rows import why_no_file
from ralign.engine.data.verdicts import read_form
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import read_json_object
from ralign.engine.runtime.whole_numbers import check_whole_numbers

_MOST_GIB = 1_000_000  # far more than any machine has; a larger number of bytes would overflow


def validate(run: Run, world_size: int) -> None:
    """Raises UserError with all combinations of settings that cannot run on `world_size` processes."""
    checks = _values_of(run)
    _check_layout(checks, run, world_size, _check_model(checks, run))
    _check_chat(checks, run)
    with checks.collect():
        read_form("data.verdict", run.data.verdict)
    with checks.collect():
        check_trackers(run.report.trackers)
    check_critic_model(checks, run)
    if isinstance(run, GenRMRun):
        _check_metarm(checks, run)
    if run.data.train is not None:
        checks.require(
            os.path.isfile(run.data.train),
            why_no_file(run.data.train) or f"data.train={run.data.train}: no such file",
        )
    checks.check()


def validate_layout(run: Run, world_size: int, sizes: Mapping[str, int]) -> None:
    """`validate` where neither models nor data nor the MetaRM can be reached, as for a plan.

    Args:
        sizes: of the model, with the names of `LAYOUT_SIZES`.
    """
    checks = _values_of(run)
    _check_layout(checks, run, world_size, sizes)
    checks.check()


def _values_of(run: Run) -> Checks:
    """Raises UserError for values on which the other checks depend: numbers, and names of implementations."""
    check_whole_numbers(asdict(run))
    checks = Checks()
    _check_finite(checks, run)
    checks.check()  # comparisons with NaN would add mistakes that are none
    _check_registries(checks, run)
    checks.check()
    return checks


def _check_layout(checks: Checks, run: Run, world_size: int, sizes: Mapping[str, int] | None) -> None:
    """All checks of the settings alone; `sizes` of the model, None if they are not valid."""
    is_layout = _check_parallel(checks, run, world_size)
    if sizes is not None:
        _check_cut(checks, run, sizes)
        _check_lengths(checks, run, sizes["max_position_embeddings"])
    _check_sampling(checks, run)
    check_algo(checks, run)
    if is_layout:
        _check_shares(checks, run, world_size)
    check_optim(checks, "optim", run.optim)
    check_optim(checks, "sft.optim", run.sft.optim)
    checks.require(
        not run.sft.competence or run.sft.optim.lr_schedule == "constant",
        f"sft.competence={run.sft.competence} ends the stage at any step: sft.optim.lr_schedule must be constant, "
        f"got {run.sft.optim.lr_schedule}",
    )
    check_critic(checks, run)
    _check_watch(checks, run)
    _check_rest(checks, run)


def _check_finite(checks: Checks, node: Any, prefix: str = "") -> None:
    for item in fields(node):
        value = getattr(node, item.name)
        if is_dataclass(value):
            _check_finite(checks, value, f"{prefix}{item.name}.")
        elif isinstance(value, float):
            checks.require(math.isfinite(value), f"{prefix}{item.name} must be finite, got {value}")


def _check_registries(checks: Checks, run: Run) -> None:
    """Requires that the named implementations exist."""
    algo = run.algo
    for registry, name in (
        (FAMILIES, run.model.family),
        (REWARDS, algo.reward),
        (ADVANTAGES, algo.advantages),
        (OBJECTIVES, algo.objective),
    ):
        with checks.collect():
            registry.check(name)
    for name in filter(None, run.eval.twins.split(",")):
        with checks.collect():
            TWINS.under("eval.twins").check(name)


def _check_model(checks: Checks, run: Run) -> dict[str, int] | None:
    """Sizes that a layout must divide, from config.json if model.hf_path is given; None if they are not valid."""
    model = run.model
    if model.hf_path is not None:
        return folder_sizes(checks, "model.hf_path", model.hf_path)
    are_sizes = checks.at_least(
        1,
        model__num_layers=model.num_layers,
        model__hidden_size=model.hidden_size,
        model__ffn_hidden_size=model.ffn_hidden_size,
        model__num_attention_heads=model.num_attention_heads,
        model__num_query_groups=model.num_query_groups,
        model__head_dim=model.head_dim,
        model__max_position_embeddings=model.max_position_embeddings,
    )
    checks.positive(
        model__rope_theta=model.rope_theta, model__norm_eps=model.norm_eps, model__init_std=model.init_std
    )
    checks.require(
        model.head_dim % 2 == 0, f"model.head_dim must be even (RoPE rotates pairs), got {model.head_dim}"
    )
    checks.divides(
        model.num_query_groups,
        "model.num_query_groups",
        model.num_attention_heads,
        "model.num_attention_heads",
    )
    if not are_sizes:
        return None
    return {name: size for name, size in asdict(model).items() if name in LAYOUT_SIZES}


def _check_parallel(checks: Checks, run: Run, world_size: int) -> bool:
    """Whether the layout divides the world."""
    parallel = run.parallel
    are_sizes = checks.at_least(
        1,
        parallel__tensor=parallel.tensor,
        parallel__pipeline=parallel.pipeline,
        parallel__context=parallel.context,
    )
    checks.require(
        not parallel.sequence or parallel.tensor > 1,
        f"parallel.sequence=True needs parallel.tensor > 1, got {parallel.tensor}",
    )
    is_layout = are_sizes and checks.require(
        world_size % (parallel.tensor * parallel.pipeline * parallel.context) == 0,
        f"parallel.tensor * parallel.pipeline * parallel.context = {parallel.tensor} * {parallel.pipeline}"
        f" * {parallel.context} does not divide the world of {world_size} process(es)",
    )
    generate = run.generator.tensor
    is_engine = checks.at_least(0, generator__tensor=generate) and (
        not generate or checks.divides(generate, "generator.tensor", world_size, "the world size")
    )
    return is_layout and is_engine


def _check_cut(checks: Checks, run: Run, sizes: Mapping[str, int]) -> None:
    """Requires that the layouts of trainer and generator divide the model."""
    check_trainer_cut(checks, run, sizes, "the model")
    if generate := run.generator.tensor:
        for name in ("num_attention_heads", "num_query_groups", "ffn_hidden_size"):
            checks.divides(generate, "generator.tensor", sizes[name], f"the model's {name}")


def _check_chat(checks: Checks, run: Run) -> None:
    """Requires a chat template in the model's folder if data.chat is set."""
    if not run.data.chat:
        return
    plain = "use data.chat=False for plain text"
    if run.model.hf_path is None:
        checks.add(
            f"data.chat=True needs a chat template, and a model without model.hf_path has none: {plain}"
        )
        return
    folder = Path(run.model.hf_path)
    if os.path.isfile(folder / "chat_template.jinja"):
        return
    try:
        settings = read_json_object(folder / "tokenizer_config.json")
    except UserError as error:
        checks.add(f"data.chat=True: cannot read a chat template ({error})")
        return
    checks.require(
        bool(settings.get("chat_template")),
        f"data.chat=True: the tokenizer in model.hf_path={folder} has no chat template: {plain}",
    )


def _check_lengths(checks: Checks, run: Run, longest: int) -> None:
    prompt = run.data.max_prompt_tokens
    checks.at_least(
        1,
        data__max_prompt_tokens=prompt,
        generator__max_new_tokens=run.generator.max_new_tokens,
        eval__max_new_tokens=run.eval.max_new_tokens,
    )
    for name, new in (("generator", run.generator.max_new_tokens), ("eval", run.eval.max_new_tokens)):
        text = f"data.max_prompt_tokens + {name}.max_new_tokens = {prompt} + {new} = {prompt + new}"
        checks.require(
            prompt + new <= longest, f"{text} exceeds the model's max_position_embeddings = {longest}"
        )
        if name == "generator":
            checks.require(
                prompt + new <= run.token_budget, f"{text} exceeds token_budget = {run.token_budget}"
            )


def _check_sampling(checks: Checks, run: Run) -> None:
    generator = run.generator
    why = (
        "truncated sampling biases the policy ratio, since the trainer's logprobs cover the whole vocabulary"
    )
    checks.require(generator.top_p == 1, f"generator.top_p must be 1, got {generator.top_p}: {why}")
    checks.require(generator.top_k == -1, f"generator.top_k must be -1, got {generator.top_k}: {why}")
    checks.positive(
        generator__temperature=generator.temperature,
        generator__gpu_memory_utilization=generator.gpu_memory_utilization,
    )
    checks.at_least(0, generator__kv_cache_gib=generator.kv_cache_gib)
    checks.at_least(1, memory__bucket_mib=run.memory.bucket_mib)
    checks.at_least(0, memory__reserve_gib=run.memory.reserve_gib)
    for name, size_gib in (
        ("generator.kv_cache_gib", generator.kv_cache_gib),
        ("memory.reserve_gib", run.memory.reserve_gib),
    ):
        checks.require(size_gib <= _MOST_GIB, f"{name} must be at most {_MOST_GIB}, got {size_gib}")
    checks.share(generator__gpu_memory_utilization=generator.gpu_memory_utilization)
    checks.at_least(1, generator__max_num_seqs=generator.max_num_seqs)
    checks.at_least(1, generator__max_num_batched_tokens=generator.max_num_batched_tokens)
    checks.at_least(0, eval__temperature=run.eval.temperature)


def _check_metarm(checks: Checks, run: GenRMRun) -> None:
    with checks.collect():
        METARMS.load(run.metarm.kind).check(run.metarm)
    checks.require(
        run.metarm.kind != "none" or not REWARDS.load(run.algo.reward).needs_metarm,
        f"algo.reward={run.algo.reward} needs a MetaRM, got metarm.kind=none",
    )
    checks.require(
        run.sft.source != "rejection" or not run.sft.num_steps or run.metarm.kind != "none",
        "sft.source=rejection keeps what the MetaRM finds Correct, got metarm.kind=none",
    )
    kind = run.eval.metarm.kind
    if kind != "same":
        with checks.collect():
            METARMS.load(kind).check(run.eval.metarm)
    checks.require(
        kind != "managed",
        "eval.metarm.kind=managed: the memory plan has one managed judge; start a server, and use endpoint",
    )
    is_none = kind == "none" or (kind == "same" and run.metarm.kind == "none")
    checks.require(
        not (
            is_none and run.checkpoint.keep_best and run.checkpoint.watch in ("eval/f_score", "eval/s_corr")
        ),
        f"checkpoint.watch={run.checkpoint.watch} needs a MetaRM: set eval.metarm.kind, or watch eval/l_acc",
    )


def _check_shares(checks: Checks, run: Run, world_size: int) -> None:
    """Requires that every process and every engine has the same number of prompts."""
    data_size = run.parallel.data_size(world_size)
    num_prompts = run.algo.num_prompts
    num_engines = world_size // (run.generator.tensor or run.parallel.tensor)
    checks.divides(data_size, "the data-parallel size", num_prompts, "algo.num_prompts")
    checks.divides(num_engines, "the number of engines", num_prompts, "algo.num_prompts")
    checks.divides(data_size, "the data-parallel size", run.sft.num_samples, "sft.num_samples")


def _check_watch(checks: Checks, run: Run) -> None:
    """Requires that the watched metric exists at each checkpoint, and is not one of training samples."""
    watch, every = run.checkpoint.watch, run.eval.every
    checks.at_least(0, eval__every=every)
    if not run.checkpoint.keep_best:
        return
    checks.require(
        not watch.startswith(("reward/", "judge/", "policy/")),
        f"checkpoint.watch={watch} is of training samples, and rises with what exploits the reward, too:"
        " use eval/f_score with eval.every",
    )
    if watch.startswith("eval/"):
        needed = f"checkpoint.watch={watch} is measured every eval.every={every} steps"
        checks.require(every > 0, f"{needed}: set eval.every, or checkpoint.keep_best=0")
        checks.require(
            every < 1 or run.checkpoint_every % every == 0,
            f"{needed}, which does not divide checkpoint_every={run.checkpoint_every}",
        )


def _check_rest(checks: Checks, run: Run) -> None:
    name_is_folder = run.name not in ("", ".", "..") and "/" not in run.name
    checks.require(name_is_folder, f"name must name a folder inside out, got {run.name!r}")
    checks.at_least(
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
    checks.positive(
        faults__stall_s=run.faults.stall_s,
        faults__generation_stall_s=run.faults.generation_stall_s,
    )
    checks.at_least(
        1,
        token_budget=run.token_budget,
        sft__num_samples=run.sft.num_samples,
        sft__num_pairs=run.sft.num_pairs,
        sft__probe_every=run.sft.probe_every,
        sft__num_probes=run.sft.num_probes,
        sft__keep_per_pair=run.sft.keep_per_pair,
        eval__num_pairs=run.eval.num_pairs,
        eval__num_bootstrap=run.eval.num_bootstrap,
        checkpoint__keep_last=run.checkpoint.keep_last,
    )
    checks.share(sft__golden_share=run.sft.golden_share, sft__competence=run.sft.competence)
