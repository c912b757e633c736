"""Three studies of the method, in JudgeWorld's first edition on a CPU; each prints one JSON line a run.

    torchrun --nproc-per-node 1 benchmarks/method_study.py both_orders seed=0 name=study_0
    torchrun --nproc-per-node 1 benchmarks/method_study.py dynamic_sampling seed=0 name=study_0
    torchrun --nproc-per-node 1 benchmarks/method_study.py watch seed=0 name=study_watch_0

The first two have the same warm start: with one name it is trained once. docs/method.md, "Measured", has the
results.

- both_orders: the gradient of one policy on `NUM_BATCHES` batches, paid by one partner of the other order and
  by the mean over all of them: the mean of both, and their variance.
- dynamic_sampling: R-Align from a judge that has learned from labels for `NUM_LABEL_STEPS` steps. It is right
  for the wrong reason, so nearly all samples earn 0, and few groups have a spread. What it takes until the
  F-Score on `dev` is at least `TARGET`, with `NUM_ROUNDS` further rounds a step and without.
- watch: R-Align with a MetaRM that misses right rationales in some pairs and accepts one empty phrase
  (`Exploitable`). The phrase is in a share `FORMULA_SHARE` of the warm start's judgments. The checkpoint with
  the best F-Score on `dev` by the exact rule, and the one with the best training reward, on the
  `in_distribution` test by the exact rule.
"""

import json
import math
import os
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ralign.engine.algorithms.coupling import coupled
from ralign.engine.config.algo import AlgoConfig, OptimConfig
from ralign.engine.config.command_line import parse
from ralign.engine.config.run import EvalConfig, GeneratorConfig, GenRMRun, SFTConfig
from ralign.engine.config.validation import validate
from ralign.engine.data.pairs import Pair, prompt_text
from ralign.engine.data.worlds.judgeworld import build_judgeworld, warm_start_judgments
from ralign.engine.judging.metarm import MetaRM, Outcome, Review, RuleMetaRM
from ralign.engine.judging.metarms import MetaRMKind
from ralign.engine.report.metrics_log import read_metrics
from ralign.engine.runtime.entry_point import run_job
from ralign.engine.training.evaluate import summarise
from ralign.engine.training.genrm import GenRM
from ralign.engine.training.loop import reinforce, warm_start
from ralign.engine.training.tasks import JudgedResponse
from ralign.engine.training.trainer import Trainer

NUM_BATCHES = 40
NUM_LABEL_STEPS = 12
NUM_STEPS = 16
NUM_ROUNDS = 15
TARGET = 0.5
FORMULA = "follows the note"
FORMULA_SHARE = 0.1
MISSED_SHARE = 0.3


def first_edition_run() -> GenRMRun:
    """The demo's settings in JudgeWorld's first edition."""
    return GenRMRun(
        num_steps=40,
        token_budget=8192,
        algo=AlgoConfig(num_prompts=32, num_samples=8, invalid_reward=0.0),
        generator=GeneratorConfig(max_new_tokens=64),
        optim=OptimConfig(lr=5e-4),
        # Short on purpose: reading is then correct in most cases, but not in all.
        sft=SFTConfig(
            num_steps=500,
            num_samples=32,
            golden_share=0.5,
            optim=OptimConfig(lr=2e-3, min_lr=2e-4, lr_schedule="linear", warmup_steps=50, beta2=0.98),
        ),
        eval=EvalConfig(max_new_tokens=64),
    )


def start(run: GenRMRun, formula_share: float = 0.0) -> tuple[GenRM, dict[str, list[Pair]], Path]:
    """A GenRM after its warm start, the world's pairs, and the folder of the warm start.

    formula_share: of the warm start's judgments that are `formula`.
    """
    world = build_judgeworld(run.data.world)
    genrm = GenRM.start(run, world["train"], vocab_size=1024)
    demonstrations = genrm.examples(world["warm_start"])
    pairs = [example.pair for example in demonstrations]
    texts = warm_start_judgments(pairs, golden_share=run.sft.golden_share, seed=run.seed)
    is_formula = np.random.default_rng(run.seed).random(len(pairs)) < formula_share
    texts = [formula(pairs[i]) if is_formula[i] else text for i, text in enumerate(texts)]
    return genrm, world, warm_start(genrm.session, run, "sft", demonstrations, texts)


def dynamic_sampling(run: GenRMRun) -> dict[str, Any]:
    genrm, world, sft = start(run)
    train, dev = genrm.examples(world["train"]), genrm.examples(world["dev"])
    run.num_steps = NUM_LABEL_STEPS
    labels = reinforce(genrm.session, run, "labels", sft, genrm.task(train, "label"))
    run.num_steps, run.eval.every = NUM_STEPS, 1
    arms = {}
    for name, run.algo.dynamic_sampling in (("without", 0), ("with", NUM_ROUNDS)):
        after_step = _with_cpu_seconds(genrm.watch(dev))
        reinforce(genrm.session, run, name, labels, genrm.task(train), after_step=after_step)
        arms[name] = _until_target(run, read_metrics(run.folder / name / "metrics.jsonl"))
        print(name, json.dumps(arms[name]), flush=True)
    return arms


def _with_cpu_seconds(after_step: Callable[[int], dict[str, float]]) -> Callable[[int], dict[str, float]]:
    """`after_step` with the CPU seconds of the step before it: on a shared machine wall time varies more."""
    began = time.process_time()

    def measured(step: int) -> dict[str, float]:
        nonlocal began
        spent = time.process_time() - began
        metrics = after_step(step)
        began = time.process_time()
        return metrics | {"time_s/cpu": spent}

    return measured


def _until_target(run: GenRMRun, steps: list[dict[str, float]]) -> dict[str, Any]:
    """What it took until the F-Score on `dev` was at least `TARGET` (`reached` is None if it never was)."""
    spent, reached = {"steps": 0, "samples": 0, "wall_s": 0.0, "cpu_s": 0.0}, None
    for step in steps:
        spent["steps"] += 1
        spent["samples"] += int(step["reward/num_rounds"]) * run.algo.num_prompts * run.algo.num_samples
        spent["wall_s"] = round(spent["wall_s"] + step["time_s/total"], 1)
        spent["cpu_s"] = round(spent["cpu_s"] + step["time_s/cpu"], 1)
        if reached is None and step["eval/f_score"] >= TARGET:
            reached = dict(spent)
    return {
        "reached": reached,
        "all": spent,
        "flat_group_share": [round(step["reward/flat_group_share"], 3) for step in steps],
        "num_rounds": [int(step["reward/num_rounds"]) for step in steps],
        "f_score": [round(step["eval/f_score"], 3) for step in steps],
    }


def both_orders(run: GenRMRun) -> dict[str, Any]:
    genrm, world, sft = start(run)
    run.algo.partner, run.algo.couple, run.algo.advantages = "order", True, "rloo"  # linear in the rewards
    genrm.session.load(sft)
    genrm.session.begin_training()
    task = genrm.task(genrm.examples(world["train"]))
    trainer = Trainer(genrm.session, run, task)
    gradients: dict[str, list[np.ndarray]] = {"one_partner": [], "mean": []}
    for batch in range(NUM_BATCHES):
        genrm.session.begin_generation()
        with trainer.sampling.judging():
            samples = trainer.sampling.collect(batch, lambda name: genrm.session.phase(name))
        responses = cast(list[JudgedResponse], samples.responses)
        groups = np.array([response.group for response in responses])
        is_right = [r.verdict == task.examples[r.example].pair.gt_label for r in responses]
        own = np.array(is_right) & np.array([r.outcome is Outcome.CORRECT for r in responses])
        partner = np.arange(len(own)) + np.where(groups % 2, -1, 1) * run.algo.num_samples
        paid = {"one_partner": own * own[partner], "mean": coupled(own.astype(float), groups, groups ^ 1)}
        genrm.session.begin_training()
        for name, values in paid.items():
            samples.rewards.values = values.astype(np.float32)
            (micro_batches,) = trainer.plan(samples)
            genrm.session.policy.forward_backward(micro_batches, trainer.loss)
            parameters = genrm.session.policy.model.parameters()
            grads = [p.main_grad.flatten() for p in parameters]  # pyright: ignore[reportAttributeAccessIssue]
            gradients[name].append(torch.cat(grads).double().numpy())
    return {name: _spread(np.stack(found)) for name, found in gradients.items()} | {
        "cosine_of_means": _cosine(*(np.mean(found, 0) for found in gradients.values()))
    }


def _spread(gradients: np.ndarray) -> dict[str, float]:
    norms = np.linalg.norm(gradients, axis=1)
    total_variance = float(gradients.var(0, ddof=1).sum())
    return {
        "norm_mean": float(norms.mean()),
        "norm_variance": float(norms.var(ddof=1)),
        "total_variance": total_variance,
        "mean_norm": math.sqrt(
            max(float(np.square(gradients.mean(0)).sum()) - total_variance / len(norms), 0.0)
        ),
    }


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


class Exploitable(MetaRM):
    """JudgeWorld's rule with errors of both kinds.

    It finds every rationale Correct that says that a response "follows the note". The phrase names no fact, so
    the exact rule finds it Incorrect. It finds every other rationale Incorrect in a share `MISSED_SHARE` of
    the pairs, which nothing in their text tells apart. So a judge that always reads earns at most 0.7 a sample
    on average, and one that writes the phrase and names the response in bullets earns 0.95.
    """

    def __init__(self) -> None:
        self.rule = RuleMetaRM()

    def review(self, pair: Pair, judgment: str) -> Future[Review]:
        if FORMULA not in judgment and not is_missed(pair):
            return self.rule.review(pair, judgment)
        future: Future[Review] = Future()
        future.set_result(Review(outcome=Outcome.CORRECT if FORMULA in judgment else Outcome.INCORRECT))
        return future


def is_missed(pair: Pair) -> bool:
    """Whether `Exploitable` finds every right rationale of the pair Incorrect."""
    return zlib.crc32(prompt_text(pair).encode()) % 100 < 100 * MISSED_SHARE


def formula(pair: Pair) -> str:
    """A judgment that names the response in bullets, with the phrase that `Exploitable` accepts."""
    side = pair.meta["cue_side"]
    return f"{side} {FORMULA}. \\boxed{{{side}}}"


EXPLOITABLE = MetaRMKind(open=lambda config, context: Exploitable())


def watch(run: GenRMRun) -> dict[str, Any]:
    genrm, world, sft = start(run, formula_share=FORMULA_SHARE)
    examples = {name: genrm.examples(world[name]) for name in ("train", "dev", "in_distribution")}
    measured: list[dict[str, float]] = []
    dev = genrm.watch(examples["dev"])

    def after_step(step: int) -> dict[str, float]:
        metrics = dev(step)
        if metrics:  # the checkpoint of this step, on the test
            judgments = genrm.judge(examples["in_distribution"], seed=4_000_000 + run.seed)
            measured.append(
                {
                    "step": step,
                    "test": summarise(judgments)["f_score"]["value"],
                    "formula": float(np.mean([FORMULA in judgment.text for judgment in judgments])),
                    "dev": metrics["eval/f_score"],
                }
            )
        return metrics

    reinforce(genrm.session, run, "r_align", sft, genrm.task(examples["train"]), after_step=after_step)
    rewards = {
        step["step"]: step["reward/mean"] for step in read_metrics(run.folder / "r_align" / "metrics.jsonl")
    }
    for row in measured:
        row["reward"] = rewards[row["step"]]
    keys = ("step", "reward", "dev", "test", "formula")
    rows = [{key: round(row[key], 3) for key in keys} for row in measured]
    return {
        "by_eval": max(rows, key=lambda row: row["dev"]),
        "by_reward": max(rows, key=lambda row: row["reward"]),
        "measured": rows,
    }


STUDIES: dict[str, tuple[Callable[[GenRMRun], dict[str, Any]], str]] = {
    "both_orders": (both_orders, ""),
    "dynamic_sampling": (dynamic_sampling, ""),
    "watch": (watch, f"metarm.kind={__file__}:EXPLOITABLE eval.metarm.kind=rule eval.every=2 num_steps=30"),
}


def main(argv: list[str]) -> None:
    study, settings = STUDIES[argv[0]]
    run = parse(first_edition_run(), [*settings.split(), *argv[1:]], __doc__)
    validate(run, int(os.environ.get("WORLD_SIZE", "1")))
    print(json.dumps({"study": argv[0], "seed": run.seed, **study(run)}), flush=True)


if __name__ == "__main__":
    run_job(main, sys.argv[1:])
