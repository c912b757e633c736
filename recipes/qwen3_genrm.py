"""What the Qwen3 recipes share: values that the paper or its siblings give, the path of a run, its miniature.

The paper does not publish its hyper-parameters. Each value below names its source: the paper or its released
evaluator (R-Align, arXiv 2602.06763), RM-NLHF (arXiv 2601.07349), RM-R1 (arXiv 2505.02387). The paper trains its
judges with PPO, its siblings with GRPO, and so do these recipes; algo.advantages=gae makes it PPO (docs/ppo.md).
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ralign.engine.config.command_line import parse
from ralign.engine.config.judge import JudgeConfig, ServerConfig
from ralign.engine.config.run import (
    AlgoConfig,
    DataConfig,
    EvalConfig,
    GeneratorConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    Run,
)
from ralign.engine.config.validation import validate
from ralign.engine.data.worlds.judgeworld import build_judgeworld, decisive_factor
from ralign.engine.planner.start import require_gpus
from ralign.engine.runtime.errors import UserError
from ralign.recipes.common.smoke import shrink, take_flag, teach_in_chat

SMOKE_WAIT_S = 600.0


def r_align_run(name: str, folder: str, *, tensor: int) -> Run:
    """R-Align on a Qwen3 in `folder`, each of its replicas on `tensor` GPUs."""
    return Run(
        name=name,
        num_steps=250,  # about 64k pairs at 256 a step, one epoch of RM-R1's data
        token_budget=16384,  # the longest sample (14,336) and a little more: activations grow with it
        checkpoint_every=10,  # 2.5 hours of work (8B) to 7 (32B), by ralign-plan
        model=ModelConfig(hf_path=folder),
        parallel=ParallelConfig(
            tensor=tensor,
            sequence=True,  # norms and residuals are split too
            dtype="bf16",  # the dtype of the published weights; masters and gradients are fp32
        ),
        data=DataConfig(
            template="full",  # the released evaluator's rubric
            # As the released evaluator and `ralign-eval` ask an instruct model: the rubric is the system message,
            # the pair the user's. Qwen3's template lets it think first; the MetaRM sees what follows the thinking.
            chat=True,
            max_prompt_tokens=6144,  # RM-NLHF: two responses of a long chat
        ),
        algo=AlgoConfig(
            # RM-NLHF and RM-R1. The paper's PPO (algo.advantages=gae) wants a critic as large as the judge: by
            # ralign-plan the 8B's step grows from 868 to 1,205 s, the 14B fits 8 GPUs of 80 GB only with
            # parallel.recompute=True, and the 32B no node of 8 H200.
            advantages="grpo",
            num_prompts=256,  # RM-NLHF's batch
            num_samples=8,  # RM-NLHF's group; RM-R1 takes 7
            invalid_reward=0.0,  # the paper's reward knows 0 and 1 only
            kl_coef=1e-3,  # RM-NLHF and RM-R1
            kl_kind="k3",  # their low_var_kl
        ),
        judge=JudgeConfig(
            metarm="endpoint",  # judge.base_url says where; judge.metarm=managed runs one in this job
            model="openai/gpt-oss-120b",  # the paper's MetaRM in training
            concurrency=256,  # a step asks about up to 2,048 samples, spread over the engines
        ),
        generator=GeneratorConfig(
            max_new_tokens=8192,  # the released evaluator's limit for a judgment
            kv_cache_gib=0,  # all that the memory ledger leaves
        ),
        optim=OptimConfig(
            lr=1e-6,  # RM-NLHF and RM-R1
            warmup_steps=10,  # Adam's second moment is meaningless at first
        ),
        eval=EvalConfig(max_new_tokens=8192),  # as in training
    )


def start(default: Run, argv: list[str], doc: str, *, num_gpus: int, gpu: str) -> None:
    """The main of a recipe: settings, checks, then training; `--smoke` does it in miniature."""
    smoke, argv = take_flag(argv)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    run = parse(smoke_run(default, world_size) if smoke else default, argv, doc)
    if smoke:
        run = with_taught_models(run)
    else:
        launch = f"torchrun --nproc-per-node {num_gpus} recipes/{default.name}.py data.train=pairs.jsonl"
        require_gpus(run, num_gpus=num_gpus, gpu=gpu, launch=launch)
    validate(run, world_size)
    train(run)


def train(run: Run) -> None:
    from ralign.engine.data.pairs import read_pairs
    from ralign.engine.report.report import write_report
    from ralign.engine.training.experiment import Experiment

    if run.data.train:
        pairs = read_pairs(run.data.train, max_bad_lines=run.data.max_bad_lines)
        if len(pairs) <= run.eval.num_pairs:
            raise UserError(
                f"data.train={run.data.train} has {len(pairs)} pairs, eval.num_pairs={run.eval.num_pairs}"
            )
        pairs, held_out = pairs[run.eval.num_pairs :], pairs[: run.eval.num_pairs]
    else:
        world = build_judgeworld(run.data.world)
        pairs, held_out = world["train"], world["unbiased"]
    name = "rlvr" if run.algo.reward == "label" else "r_align"
    lab = Experiment(run, pairs, vocab_size=1024)
    tests = {"held_out": lab.examples(held_out)}
    models = {"base": lab.evaluate("base", tests)} if lab.metarm else {}
    lab.reinforce(name, lab.policy.folder, lab.examples(pairs), run.algo.reward)
    if lab.metarm:
        models[name] = lab.evaluate(name, tests)
        if lab.cluster.is_first_rank:
            write_report(run.folder, models, seed=run.seed, time_s=lab.progress.time_s)
    lab.close()


def smoke_run(run: Run, world_size: int) -> Run:
    """The run in miniature, with a judge that the job serves itself."""
    judge = JudgeConfig(
        metarm="managed",
        template="compact",
        max_new_tokens=96,
        num_tries=1,
        max_failed_share=1.0,  # a judge taught for seconds is often illegible
        server=ServerConfig(max_model_len=384, kv_cache_gib=0.1, max_num_seqs=16),
    )
    return replace(shrink(run, world_size), judge=judge)


def with_taught_models(run: Run) -> Run:
    """Tiny models that were taught, for seconds, to give verdicts and to audit them; made once in `run.out`."""
    folder = Path(run.out) / f"{run.name}_models"
    pairs = build_judgeworld(run.data.world)["warm_start"]

    def teach_policy(path: Path) -> None:
        from ralign.engine.data.chat import pair_messages
        from ralign.engine.data.prompts import load_template

        template = load_template(run.data.template)
        answers = [
            f"{decisive_factor(side, pair.meta['item'], pair.meta['should_be'])} \\boxed{{{other}}}"
            for pair, (side, other) in zip(pairs, ["AB", "BA"] * len(pairs), strict=False)
        ]
        asked = [pair_messages(template, pair) for pair in pairs]
        # With half as many a third of its answers have a verdict, with these four in five.
        teach_in_chat(path, list(zip(asked, answers, strict=True)), model=run.model, num_steps=120)

    def teach_judge(path: Path) -> None:
        from ralign.engine.judging.mini_metarm import make_cases
        from ralign.recipes.common.tiny_sft import teach

        teach(path, [(case.prompt, case.answer) for case in make_cases(pairs, seed=run.seed)], num_steps=60)

    if run.model.hf_path is None:
        run = replace(run, model=replace(run.model, hf_path=made_once(folder / "policy", teach_policy)))
    if run.judge.metarm == "managed" and run.judge.model is None:
        run = replace(run, judge=replace(run.judge, model=made_once(folder / "judge", teach_judge)))
    return run


def made_once(path: Path, make: Callable[[Path], None]) -> str:
    """The folder, made by the first rank if it is not there; the others wait for it."""
    if int(os.environ.get("RANK", "0")) == 0 and not path.exists():
        draft = path.with_name(f"{path.name}.part")
        make(draft)
        os.replace(draft, path)
    until_s = time.monotonic() + SMOKE_WAIT_S
    while not path.exists():
        if time.monotonic() > until_s:
            raise UserError(f"{path} was not made within {SMOKE_WAIT_S:g} s")
        time.sleep(0.2)
    return str(path)
