"""R-Align on Qwen3-32B: a generative reward model that is right for the right reasons, at full size.

Question: does a reward for the rationale, not only for the verdict, also work at 32B, on one node or many? The paper
stops at 14B. Data: any pairs file with golden judgments (`ralign-annotate` writes them). MetaRM: GPT-OSS-120B.

    hf download Qwen/Qwen3-32B --local-dir models/Qwen3-32B
    torchrun --nproc-per-node 8 recipes/r_align_32b.py data.train=pairs.jsonl metarm.base_url=http://host:8000/v1

Hardware: one node of 8 H200 or B200; 16 or 32 H100 of 80 GB with parallel.context=2; 64 or more H100 without
changes. `ralign-plan r_align_32b --gpus N --gpu h200` shows what fits and how long a step takes; docs/scale.md has
recommended layouts. Several nodes: `ralign-submit r_align_32b --nodes 4`.
In miniature, with this layout as far as the number of processes allows, on two CPU cores:

    torchrun --nproc-per-node 2 recipes/r_align_32b.py --smoke

The paper does not publish its hyper-parameters. Each value below names its source: the paper or its released evaluator
(R-Align, arXiv 2602.06763), RM-NLHF (arXiv 2601.07349), RM-R1 (arXiv 2505.02387). The paper trains its judges with PPO,
the related work with GRPO, like this recipe; algo.advantages=gae selects PPO (docs/ppo.md). The recipes for 8B and 14B
change the model and the layout.
"""

import os
import sys

from ralign.engine.config.algo import AlgoConfig, OptimConfig
from ralign.engine.config.command_line import parse
from ralign.engine.config.judge import MetaRMConfig
from ralign.engine.config.run import (
    DataConfig,
    EvalConfig,
    GeneratorConfig,
    GenRMRun,
    ModelConfig,
    ParallelConfig,
    SFTConfig,
)
from ralign.engine.config.validation import validate
from ralign.engine.planner.start import require_gpus
from ralign.engine.runtime.entry_point import run_job
from ralign.recipes.common import smoke
from ralign.recipes.common.pairs import train_and_held_out


def r_align_32b() -> GenRMRun:
    # One node: the collectives of every layer use NVLink, and each rank has one of the 8 query groups. On 8 H200 the
    # optimizer state is 46 GiB per GPU, so it is offloaded during generation (memory.offload=auto).
    return r_align_run("r_align_32b", "models/Qwen3-32B", tensor=8)


def r_align_run(name: str, folder: str, *, tensor: int) -> GenRMRun:
    """R-Align on the Qwen3 model in `folder`, with `tensor` GPUs per replica."""
    return GenRMRun(
        name=name,
        num_steps=250,  # about 64k pairs at 256 per step, one epoch of RM-R1's data
        token_budget=16384,  # slightly more than the longest sample (14,336): activations grow with it
        checkpoint_every=10,  # 2.5 hours of work (8B) to 7 (32B), by ralign-plan
        model=ModelConfig(hf_path=folder),
        parallel=ParallelConfig(
            tensor=tensor,
            sequence=True,  # shards norms and residuals, too
            dtype="bf16",  # the dtype of the published weights; masters and gradients are fp32
        ),
        data=DataConfig(
            template="full",  # the released evaluator's rubric
            # As in the released evaluator and `ralign-eval`, the rubric is the system message and the pair the user
            # message. Qwen3 thinks first by its template; the MetaRM reads the text after the thinking.
            chat=True,
            max_prompt_tokens=6144,  # RM-NLHF: a long chat with two responses
        ),
        algo=AlgoConfig(
            # RM-NLHF and RM-R1. The paper's PPO (algo.advantages=gae) needs a critic as large as the judge: by
            # ralign-plan the step of the 8B grows from 868 to 1,205 s, the 14B fits 8 GPUs of 80 GB only with
            # parallel.recompute=True, and the 32B does not fit a node of 8 H200.
            advantages="grpo",
            num_prompts=256,  # RM-NLHF's batch
            num_samples=8,  # RM-NLHF's group; RM-R1 takes 7
            invalid_reward=0.0,  # the paper's reward is 0 or 1
            kl_coef=1e-3,  # RM-NLHF and RM-R1
            kl_kind="k3",  # low_var_kl in RM-NLHF and RM-R1
        ),
        metarm=MetaRMConfig(
            kind="endpoint",  # at metarm.base_url; metarm.kind=managed starts a server in this job
            model="openai/gpt-oss-120b",  # the paper's MetaRM in training
            concurrency=256,  # a step has up to 2,048 requests, divided among the engines
        ),
        generator=GeneratorConfig(
            max_new_tokens=8192,  # the released evaluator's limit for a judgment
            kv_cache_gib=0,  # all memory that the ledger leaves free
        ),
        optim=OptimConfig(
            lr=1e-6,  # RM-NLHF and RM-R1
            warmup_steps=10,  # Adam's second moment is unreliable at first
        ),
        # Off. Published judges start from such a stage (RM-R1, DeepSeek-GRM): sft.num_steps=100, on golden judgments
        # or, with sft.source=rejection, on the model's own good ones. Golden judgments of `ralign-annotate` have no
        # thinking, so they teach answers without it.
        sft=SFTConfig(num_steps=0, num_samples=256, optim=OptimConfig(lr=1e-5, warmup_steps=10)),
        eval=EvalConfig(max_new_tokens=8192),  # as in training
    )


def main(argv: list[str]) -> None:
    start(r_align_32b(), argv, __doc__, num_gpus=8, gpu="h200")


def start(default: GenRMRun, argv: list[str], doc: str | None, *, num_gpus: int, gpu: str) -> None:
    """Parse the settings, check them and train; with `--smoke` in miniature.

    Args:
        num_gpus, gpu: the smallest hardware of the recipe.
    """
    is_smoke, argv = smoke.take_flag(argv)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    run = parse(smoke.genrm_run(default, world_size) if is_smoke else default, argv, doc)
    if is_smoke:
        run = smoke.with_tiny_models(run)
    else:
        launch = f"torchrun --nproc-per-node {num_gpus} recipes/{default.name}.py data.train=pairs.jsonl"
        require_gpus(run, num_gpus=num_gpus, gpu=gpu, launch=launch)
    validate(run, world_size)
    train(run)


def train(run: GenRMRun) -> None:
    from ralign.engine.training.demonstrations import warm_start_on_pairs
    from ralign.engine.training.genrm import GenRM
    from ralign.engine.training.loop import reinforce
    from ralign.recipes.common.report import write_judges_report

    pairs, held_out = train_and_held_out(run)
    genrm = GenRM.start(run, pairs, vocab_size=1024)
    session = genrm.session
    tests = {"held_out": genrm.examples(held_out)}
    name = "rlvr" if run.algo.reward == "label" else "r_align"
    models = {"base": genrm.evaluate("base", tests)} if genrm.eval_metarm else {}
    examples, start = genrm.examples(pairs), session.policy.folder
    if run.sft.num_steps:
        start = warm_start_on_pairs(genrm, examples, "sft")
        models["sft"] = genrm.evaluate("sft", tests)
    reinforce(session, run, name, start, genrm.task(examples), after_step=genrm.watch(tests["held_out"]))
    if genrm.eval_metarm:
        models[name] = genrm.evaluate(name, tests)
        write_judges_report(genrm, models, tests, rewards=(run.algo.reward,))
    session.close(run)


if __name__ == "__main__":  # checkpointing starts processes that import this file
    run_job(main, sys.argv[1:])
