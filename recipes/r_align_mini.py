"""Label-only RL against R-Align, in miniature, from nothing.

Question: from one warm start and with equal budgets, is a judge trained on labels right for the wrong reason,
and does R-Align mend it?  Data: JudgeWorld, where bullets agree with the label in 95 % of training pairs and
the golden rationale is known.  Model: a random 4-layer Qwen3 of under a million parameters.

    torchrun --nproc-per-node 2 recipes/r_align_mini.py

Hardware: two CPU cores, under ten minutes. Expected: RLVR follows the bullets (S-Corr near 1, chance on the
`unbiased` test); R-Align reads the facts (S-Corr near 0, right on all tests).

The MetaRM is a rule. With one that was learned (recipes/metarm_mini.py), served by this job itself:

    torchrun --nproc-per-node 2 recipes/r_align_mini.py judge.metarm=managed judge.model=runs/metarm_mini/hf

With data.train=FILE the same code runs label-only RL on any pairs file; a fresh tiny model learns nothing
there, but the whole path is used.
"""

import os
import sys

from ralign.engine.config.command_line import parse
from ralign.engine.config.judge import JudgeConfig, ServerConfig
from ralign.engine.config.run import (
    AlgoConfig,
    DataConfig,
    EvalConfig,
    GeneratorConfig,
    ModelConfig,
    OptimConfig,
    Run,
    SFTConfig,
)
from ralign.engine.config.validation import validate
from ralign.engine.runtime.entry_point import run_main


def judgeworld_run() -> Run:
    return Run(
        name="r_align_mini",
        num_steps=40,
        token_budget=8192,  # one micro-batch a rank: small batches waste the cores
        algo=AlgoConfig(
            num_prompts=32,
            num_samples=8,
            invalid_reward=0.0,  # an unreadable verdict is just wrong: no extra push away from reading
        ),
        generator=GeneratorConfig(max_new_tokens=64),  # a golden judgment has about 30 tokens
        optim=OptimConfig(lr=5e-4),  # a tiny model from a short warm start; pretrained ones want 1e-6
        # Short on purpose: reading is right in most cases but not in all, so that at the start of RL the bullets
        # are the better guide and label-only reward has a reason to be spurious.
        sft=SFTConfig(
            num_steps=500,
            num_samples=32,
            optim=OptimConfig(lr=2e-3, min_lr=2e-4, lr_schedule="linear", warmup_steps=50, beta2=0.98),
        ),
        eval=EvalConfig(max_new_tokens=64),
        # For judge.metarm=managed: what metarm_mini.py teaches, in a server next to two training processes.
        judge=JudgeConfig(
            template="compact",
            temperature=0.0,
            max_new_tokens=96,
            num_tries=1,
            server=ServerConfig(max_model_len=384, kv_cache_gib=0.25),
        ),
    )


def pairs_file_run() -> Run:
    return Run(
        name="pairs_file",
        num_steps=5,
        token_budget=8192,
        model=ModelConfig(max_position_embeddings=4096),
        data=DataConfig(template="full", max_prompt_tokens=2048),
        algo=AlgoConfig(reward="label", num_prompts=8, num_samples=4),
        judge=JudgeConfig(metarm="none"),  # algo.reward=r_align needs one
        generator=GeneratorConfig(max_new_tokens=64),
        optim=OptimConfig(lr=1e-4),
        eval=EvalConfig(max_new_tokens=64),
    )


def main(argv: list[str]) -> None:
    from_file = any(token.lstrip("-").startswith("data.train") for token in argv)
    run = parse(pairs_file_run() if from_file else judgeworld_run(), argv, __doc__)
    validate(run, int(os.environ.get("WORLD_SIZE", "1")))
    if run.data.train:
        train_on_file(run)
    else:
        compare_in_judgeworld(run)


def compare_in_judgeworld(run: Run) -> None:
    from ralign.engine.data.worlds.judgeworld import TESTS, build_judgeworld, warm_start_judgments
    from ralign.engine.report.report import write_report
    from ralign.engine.training.experiment import Experiment

    world = build_judgeworld(run.data.world)
    lab = Experiment(run, world["train"], vocab_size=1024)
    train = lab.examples(world["train"])
    tests = {name: lab.examples(world[name]) for name in TESTS}

    warm_start = lab.examples(world["warm_start"])
    golden_and_cue = warm_start_judgments(
        [example.pair for example in warm_start], golden_share=run.sft.golden_share, seed=run.seed
    )
    sft = lab.warm_start("sft", warm_start, golden_and_cue)
    lab.load(sft)
    models = {"sft": lab.evaluate("sft", tests)}
    for name, reward in (("rlvr", "label"), ("r_align", "r_align")):
        lab.reinforce(name, sft, train, reward)
        models[name] = lab.evaluate(name, tests)

    if lab.cluster.is_first_rank:
        write_report(run.folder, models, seed=run.seed, time_s=lab.progress.time_s)
    lab.close()


def train_on_file(run: Run) -> None:
    from ralign.engine.data.pairs import read_pairs
    from ralign.engine.report.metrics_log import read_metrics
    from ralign.engine.runtime.errors import UserError
    from ralign.engine.training.experiment import Experiment

    if run.judge.metarm == "rule":
        raise UserError(
            "judge.metarm=rule reads JudgeWorld only: these pairs need endpoint or managed (or none)"
        )
    pairs = read_pairs(run.data.train, max_bad_lines=run.data.max_bad_lines)
    lab = Experiment(run, pairs, vocab_size=2048)
    name = "rlvr" if run.algo.reward == "label" else "r_align"
    lab.reinforce(name, lab.policy.folder, lab.examples(pairs), run.algo.reward)
    if lab.cluster.is_first_rank:
        steps = read_metrics(run.folder / name / "metrics.jsonl")
        num_samples = len(steps) * run.algo.num_prompts * run.algo.num_samples
        share = sum(step["reward/num_invalid"] for step in steps) / num_samples
        print(
            f"{len(steps)} steps on {run.data.train}: no verdict could be read in {share:.1%} of {num_samples} samples"
        )
    lab.close()


if __name__ == "__main__":
    run_main(main, sys.argv[1:])
