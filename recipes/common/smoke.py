"""`--smoke`: a recipe's own code on a machine without GPUs, with a tiny model of the same shape family.

What a recipe is about stays (its algorithm, its layout as far as the processes at hand allow, the model's
family, its query groups, its ratio of query heads to groups where that is small, its tied or untied head);
what costs time and memory shrinks (width, depth, vocabulary, lengths, prompts, steps). Pairs come from
JudgeWorld unless `data.train` is given.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ralign.engine.config.command_line import SMOKE_FLAG
from ralign.engine.config.run import EvalConfig, ModelConfig, Run
from ralign.engine.data.chat import Messages, as_text
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig
from ralign.engine.planner.shapes import shape_of

# Like an instruct model's, in few tokens: the miniature's prompts are short.
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


def take_flag(argv: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether `--smoke` is on a recipe's command line, and the line without it."""
    return SMOKE_FLAG in argv, [token for token in argv if token != SMOKE_FLAG]


def shrink(run: Run, world_size: int) -> Run:
    """The same experiment in miniature, for `world_size` processes; overrides may still change it."""
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
        sft=replace(run.sft, num_steps=min(run.sft.num_steps, 2), num_samples=8),
        eval=EvalConfig(num_pairs=8, max_new_tokens=32, num_bootstrap=100),
    )


def teach_in_chat(folder: str | Path, cases: Sequence[tuple[Messages, str]], **options: Any) -> None:
    """A tiny instruct model: `taught.teach` in a chat template, which its tokenizer then has.

    cases: (messages, answer); `options` are those of `teach`.
    """
    from ralign.recipes.common.tiny_sft import teach
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), chat_template=CHAT_TEMPLATE
    )  # no vocabulary yet: that comes from the texts
    teach(folder, [(as_text(messages, words, chat=True), answer) for messages, answer in cases], **options)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


def tiny_model(model: ModelConfig) -> ModelConfig:
    """A freshly drawn model of the same family, with as many query groups."""
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
        head_dim=32,  # the smallest that vLLM's CPU attention knows
        rope_theta=shape.rope_theta,
        tie_embeddings=shape.tie_embeddings,
        max_position_embeddings=512,
    )


def _fewer_ranks(run: Run, world_size: int):
    """The recipe's layout cut down to the world: as much tensor parallelism as there is, then stages."""
    tensor = math.gcd(run.parallel.tensor, world_size)
    pipeline = math.gcd(run.parallel.pipeline, world_size // tensor)
    context = math.gcd(run.parallel.context, world_size // (tensor * pipeline))
    return replace(
        run.parallel,
        tensor=tensor,
        pipeline=pipeline,
        context=context,
        sequence=run.parallel.sequence and tensor > 1,
        dtype="fp32",  # what a CPU computes in anyway
    )
