"""Label-only RL against R-Align, in miniature, from nothing.

Question: with one warm start and equal budgets, is a judge trained on labels right for the wrong reason, and does
R-Align prevent this? Data: JudgeWorld, where bullets agree with the label in 95 % of the training pairs and the golden
rationale is known. Model: a 4-layer Qwen3 with random weights and under a million parameters.

    torchrun --nproc-per-node 2 recipes/r_align_mini.py

Hardware: two CPU cores, under ten minutes. Expected: RLVR follows the bullets (S-Corr near 1, chance level on
the `unbiased` test); R-Align reads the facts (S-Corr near 0, accurate on all tests).

The MetaRM is a rule. With a trained MetaRM (recipes/metarm_mini.py) on a server of this job:

    torchrun --nproc-per-node 2 recipes/r_align_mini.py metarm.kind=managed metarm.model=runs/metarm_mini/hf

With data.train=FILE the same code runs label-only RL on any pairs file. A random tiny model learns nothing from it, but
the complete path is exercised.
"""

import os
import sys

from ralign.engine.config.algo import AlgoConfig, OptimConfig
from ralign.engine.config.command_line import parse
from ralign.engine.config.judge import MetaRMConfig, ServerConfig
from ralign.engine.config.run import DataConfig, EvalConfig, GeneratorConfig, GenRMRun, ModelConfig, SFTConfig
from ralign.engine.config.validation import validate
from ralign.engine.runtime.entry_point import run_job


def judgeworld_run() -> GenRMRun:
    return GenRMRun(
        name="r_align_mini",
        num_steps=40,
        token_budget=8192,  # one micro-batch per rank: small batches waste the cores
        algo=AlgoConfig(
            num_prompts=32,
            num_samples=8,
            invalid_reward=0.0,  # a missing verdict is merely wrong: no extra penalty for reading
        ),
        generator=GeneratorConfig(max_new_tokens=64),  # a golden judgment has about 30 tokens
        optim=OptimConfig(lr=5e-4),  # for a tiny model after a short warm start; 1e-6 for pretrained ones
        # Short on purpose: reading is then correct in most cases, but not in all. So the bullets predict the label
        # better at the start of RL, and the label-only reward favours the cue.
        sft=SFTConfig(
            num_steps=500,
            num_samples=32,
            optim=OptimConfig(lr=2e-3, min_lr=2e-4, lr_schedule="linear", warmup_steps=50, beta2=0.98),
        ),
        eval=EvalConfig(max_new_tokens=64),
        # For metarm.kind=managed: the prompt of metarm_mini.py, and a server beside two training processes.
        metarm=MetaRMConfig(
            template="compact",
            temperature=0.0,
            max_new_tokens=96,
            num_tries=1,
            server=ServerConfig(max_model_len=384, kv_cache_gib=0.25),
        ),
    )


def pairs_file_run() -> GenRMRun:
    return GenRMRun(
        name="pairs_file",
        num_steps=5,
        token_budget=8192,
        model=ModelConfig(max_position_embeddings=4096),
        data=DataConfig(template="full", max_prompt_tokens=2048),
        algo=AlgoConfig(reward="label", num_prompts=8, num_samples=4),
        metarm=MetaRMConfig(kind="none"),  # algo.reward=r_align needs one
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


def compare_in_judgeworld(run: GenRMRun) -> None:
    from ralign.engine.data.worlds.judgeworld import TESTS, build_judgeworld, warm_start_judgments
    from ralign.engine.training.genrm import GenRM
    from ralign.engine.training.loop import reinforce, warm_start
    from ralign.recipes.common.report import write_judges_report

    world = build_judgeworld(run.data.world)
    genrm = GenRM.start(run, world["train"], vocab_size=1024)
    session = genrm.session
    train = genrm.examples(world["train"])
    dev = genrm.examples(world["dev"])  # for eval.every
    tests = {name: genrm.examples(world[name]) for name in TESTS}

    demonstrations = genrm.examples(world["warm_start"])
    golden_and_cue = warm_start_judgments(
        [example.pair for example in demonstrations], golden_share=run.sft.golden_share, seed=run.seed
    )
    sft = warm_start(session, run, "sft", demonstrations, golden_and_cue)
    session.load(sft)
    models = {"sft": genrm.evaluate("sft", tests)}
    for name, reward in (("rlvr", "label"), ("r_align", "r_align")):
        reinforce(session, run, name, sft, genrm.task(train, reward), after_step=genrm.watch(dev))
        models[name] = genrm.evaluate(name, tests)

    write_judges_report(genrm, models, tests, rewards=("label", "r_align"))
    session.close(run)


def train_on_file(run: GenRMRun) -> None:
    from ralign.engine.data.pairs import read_pairs
    from ralign.engine.report.metrics_log import read_metrics
    from ralign.engine.runtime.errors import UserError
    from ralign.engine.runtime.output import show
    from ralign.engine.training.genrm import GenRM
    from ralign.engine.training.loop import reinforce

    if run.metarm.kind == "rule":
        raise UserError(
            "metarm.kind=rule is for JudgeWorld only: a pairs file needs endpoint or managed (or none)"
        )
    if run.eval.every:
        raise UserError(
            f"eval.every={run.eval.every}: this recipe holds no pairs of data.train out; r_align_8b does"
        )
    assert run.data.train is not None
    pairs = read_pairs(run.data.train, max_bad_lines=run.data.max_bad_lines)
    genrm = GenRM.start(run, pairs, vocab_size=2048)
    session = genrm.session
    name = "rlvr" if run.algo.reward == "label" else "r_align"
    reinforce(session, run, name, session.policy.folder, genrm.task(genrm.examples(pairs)))
    if session.cluster.is_first_rank:
        steps = read_metrics(run.folder / name / "metrics.jsonl")
        num_samples = len(steps) * run.algo.num_prompts * run.algo.num_samples
        share = sum(step["reward/num_invalid"] for step in steps) / num_samples
        show(f"{len(steps)} steps on {run.data.train}: no verdict in {share:.1%} of {num_samples} samples")
    session.close(run)


if __name__ == "__main__":
    run_job(main, sys.argv[1:])
