"""Label or R-Align, single pairs or twins, in miniature, from nothing.

Question: with one warm start and equal budgets, which judge is right, and for the right reason? Data: JudgeWorld's
second edition, where bullets agree with the label in 95 % of the training pairs and the golden rationale is known. The
warm start has golden judgments only, in which no cue predicts the label: what follows a cue has emerged by reward.
Model: a 4-layer Qwen3 with random weights and under a million parameters.

    torchrun --nproc-per-node 2 recipes/r_align_mini.py
    torchrun --nproc-per-node 2 recipes/r_align_mini.py arms=r_align,shuffled,sft_golden   # recipes/common/arms.py

Hardware: two CPU cores, about ten minutes. docs/judgeworld.md has the results over seeds.

The MetaRM is a rule. With a trained MetaRM (recipes/metarm_mini.py) on a server of this job, in the first edition:

    torchrun --nproc-per-node 2 recipes/r_align_mini.py metarm.kind=managed metarm.model=runs/metarm_mini/hf \
        data.world.edition=1 arms=rlvr,r_align

With data.train=FILE the same code runs label-only RL on any pairs file. A random tiny model learns nothing from it, but
the complete path is exercised.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ralign.engine.config.algo import AlgoConfig, OptimConfig
from ralign.engine.config.command_line import parse
from ralign.engine.config.judge import MetaRMConfig, ServerConfig
from ralign.engine.config.run import DataConfig, EvalConfig, GeneratorConfig, GenRMRun, ModelConfig, SFTConfig
from ralign.engine.config.validation import validate
from ralign.engine.data.worlds.config import JudgeWorldConfig
from ralign.engine.runtime.entry_point import run_job

if TYPE_CHECKING:
    from ralign.engine.data.examples import Example
    from ralign.engine.training.competence import Probe


@dataclass(kw_only=True, slots=True)
class MiniRun(GenRMRun):
    """The settings of the demo."""

    arms: str = "rlvr,rlvr_twins,r_align,r_align_twins"
    """Judges to train from the warm start, of recipes/common/arms.py, with commas."""


def judgeworld_run() -> MiniRun:
    return MiniRun(
        name="r_align_mini",
        num_steps=40,
        token_budget=8192,  # one micro-batch per rank: small batches waste the cores
        algo=AlgoConfig(
            num_prompts=32,
            num_samples=8,
            invalid_reward=0.0,  # a missing verdict is merely wrong: no extra penalty for reading
        ),
        generator=GeneratorConfig(max_new_tokens=64),  # a golden judgment has about 30 tokens
        optim=OptimConfig(lr=3e-4),  # for a tiny model after a short warm start; 1e-6 for pretrained ones
        data=DataConfig(world=JudgeWorldConfig(edition=2)),
        # It ends when the judge reads most facts, but not all: the bullets then still predict the label better.
        sft=SFTConfig(
            num_steps=1500,
            competence=0.85,
            golden_share=1.0,
            num_samples=32,
            optim=OptimConfig(lr=2e-3, warmup_steps=50, beta2=0.98),
        ),
        eval=EvalConfig(max_new_tokens=64, twins="cues"),
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
    if isinstance(run, MiniRun):
        compare_in_judgeworld(run)
    else:
        train_on_file(run)


def compare_in_judgeworld(run: MiniRun) -> None:
    from ralign.engine.data.worlds.judgeworld import TESTS, build_judgeworld, warm_start_judgments
    from ralign.engine.training.genrm import GenRM
    from ralign.engine.training.loop import warm_start
    from ralign.recipes.common.arms import ARMS, read_arms, train_arm
    from ralign.recipes.common.error_kinds import write_error_kinds
    from ralign.recipes.common.report import write_judges_report

    arms = read_arms(run.arms)
    world = build_judgeworld(run.data.world)
    genrm = GenRM.start(run, world["train"], vocab_size=1024)
    session = genrm.session
    train = genrm.examples(world["train"])
    dev = genrm.examples(world["dev"])  # for eval.every and sft.competence
    tests = {name: genrm.examples(world[name]) for name in TESTS}

    demonstrations = genrm.examples(world["warm_start"])
    judgments = warm_start_judgments(
        [example.pair for example in demonstrations], golden_share=run.sft.golden_share, seed=run.seed
    )
    probe = probe_of(dev[: run.sft.num_probes])
    sft = warm_start(session, run, "sft", demonstrations, judgments, probe)
    session.load(sft)
    models = {"sft": genrm.evaluate("sft", tests)}
    for name in arms:
        train_arm(genrm, name, sft, train, dev, partner="cues")
        models[name] = genrm.evaluate(name, tests)

    rewards = {ARMS[name].reward for name in arms if ARMS[name].method == "rl"}
    write_judges_report(genrm, models, tests, rewards=sorted(rewards))
    if session.cluster.is_first_rank and (line := write_error_kinds(run.folder, models, tests)):
        session.progress.say(line)
    session.close(run)


def probe_of(examples: "Sequence[Example]") -> "Probe":
    """The golden judgments of these pairs of JudgeWorld, with their first decisive marks."""
    from ralign.engine.data.worlds.judgeworld import decisive_start
    from ralign.engine.training.competence import Probe

    pairs = [example.pair for example in examples]
    return Probe(
        examples=examples,
        texts=[pair.gt_judgment for pair in pairs],
        starts=[decisive_start(pair) for pair in pairs],
    )


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
