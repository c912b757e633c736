"""`--smoke`: runs a recipe's code on a machine without GPUs, with a tiny model of the same family.

Unchanged are the algorithm, the layout (as far as the number of processes allows), the model's family, its query
groups, its ratio of query heads to groups (at most 2), and its tied or untied head. Width, depth, vocabulary, lengths,
prompts and steps are reduced. Pairs are JudgeWorld's unless `data.train` is given.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ralign.engine.config.command_line import SMOKE_FLAG
from ralign.engine.config.judge import MetaRMConfig, ServerConfig
from ralign.engine.config.run import EvalConfig, GenRMRun, ModelConfig, Run
from ralign.engine.data.chat import pair_messages
from ralign.engine.data.prompts import load_template
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld, decisive_factor
from ralign.engine.planner.shapes import shape_of

RunT = TypeVar("RunT", bound=Run)


def take_flag(argv: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether `--smoke` is on a recipe's command line, and the command line without it."""
    return SMOKE_FLAG in argv, [token for token in argv if token != SMOKE_FLAG]


def shrink(run: RunT, world_size: int) -> RunT:
    """The same experiment in miniature, for `world_size` processes; overrides are applied to it."""
    return replace(
        run,
        name=f"{run.name}_smoke",
        num_steps=2,
        token_budget=2048,
        rollouts_every=1,
        model=tiny_model(run.model),
        parallel=_fewer_ranks(run, world_size),
        data=replace(
            run.data,
            train=None,
            template="compact",
            max_prompt_tokens=192,
            world=JudgeWorldConfig(num_train=64, num_warm_start=64, num_dev=8, num_test=8),
        ),
        generator=replace(run.generator, max_new_tokens=32, kv_cache_gib=0.1, max_num_seqs=64, tensor=0),
        memory=replace(run.memory, bucket_mib=1),
        algo=replace(run.algo, num_prompts=4, num_samples=4),
        critic=replace(run.critic, warmup_steps=min(run.critic.warmup_steps, 1)),
        sft=replace(run.sft, num_steps=min(run.sft.num_steps, 2), competence=0.0, num_samples=8),
        eval=EvalConfig(num_pairs=8, max_new_tokens=32, num_bootstrap=100),
    )


def tiny_model(model: ModelConfig) -> ModelConfig:
    """A model of the same family with random weights and the same number of query groups."""
    shape = shape_of(model)
    heads_per_group = min(shape.num_attention_heads // shape.num_query_groups, 2)
    return ModelConfig(
        hf_path=None,
        family=shape.family,
        num_layers=4,
        hidden_size=64,
        ffn_hidden_size=128,
        num_attention_heads=shape.num_query_groups * heads_per_group,
        num_query_groups=shape.num_query_groups,
        head_dim=32,  # the smallest that vLLM's CPU attention supports
        rope_theta=shape.rope_theta,
        tie_embeddings=shape.tie_embeddings,
        max_position_embeddings=512,
    )


def _fewer_ranks(run: Run, world_size: int):
    """The recipe's layout on fewer ranks: tensor parallelism first, then stages, then context parallelism."""
    tensor = math.gcd(run.parallel.tensor, world_size)
    pipeline = math.gcd(run.parallel.pipeline, world_size // tensor)
    context = math.gcd(run.parallel.context, world_size // (tensor * pipeline))
    return replace(
        run.parallel,
        tensor=tensor,
        pipeline=pipeline,
        context=context,
        sequence=run.parallel.sequence and tensor > 1,
        dtype="fp32",  # a CPU computes in fp32 anyway
    )


def genrm_run(run: GenRMRun, world_size: int) -> GenRMRun:
    """The run in miniature, with a MetaRM on a server of the job."""
    metarm = MetaRMConfig(
        kind="managed",
        template="compact",
        max_new_tokens=96,
        num_tries=1,
        max_failed_share=1.0,  # after seconds of training, many answers cannot be parsed
        server=ServerConfig(max_model_len=384, kv_cache_gib=0.1, max_num_seqs=16),
    )
    return replace(shrink(run, world_size), metarm=metarm)


def with_tiny_models(run: GenRMRun) -> GenRMRun:
    """The run with tiny models as policy and MetaRM, trained once, for some seconds, in `run.out`."""
    from ralign.recipes.common.mini_metarm import make_cases
    from ralign.recipes.common.tiny_sft import train_tiny_chat_model, train_tiny_model, trained_once

    folder = Path(run.out) / f"{run.name}_models"
    pairs = build_judgeworld(run.data.world)["warm_start"]

    def train_policy(path: Path) -> None:
        template = load_template(run.data.template)
        answers = [
            f"{decisive_factor(side, pair.meta['item'], pair.meta['should_be'])} \\boxed{{{other}}}"
            for pair, (side, other) in zip(pairs, ["AB", "BA"] * len(pairs), strict=False)
        ]
        prompts = [pair_messages(template, pair) for pair in pairs]
        # After 120 steps four in five answers have a verdict, after 60 one in three.
        train_tiny_chat_model(path, list(zip(prompts, answers, strict=True)), model=run.model, num_steps=120)

    def train_metarm(path: Path) -> None:
        train_tiny_model(
            path, [(case.prompt, case.answer) for case in make_cases(pairs, seed=run.seed)], num_steps=60
        )

    if run.model.hf_path is None:
        run = replace(run, model=replace(run.model, hf_path=trained_once(folder / "policy", train_policy)))
    if run.metarm.kind == "managed" and run.metarm.model is None:
        run = replace(run, metarm=replace(run.metarm, model=trained_once(folder / "metarm", train_metarm)))
    return run
