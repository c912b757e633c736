"""Three studies of the method, in JudgeWorld on a CPU; each prints one JSON line a run.

    torchrun --nproc-per-node 1 benchmarks/method_study.py dynamic_sampling seed=0 algo.dynamic_sampling=15
    torchrun --nproc-per-node 1 benchmarks/method_study.py both_orders seed=0
    torchrun --nproc-per-node 1 benchmarks/method_study.py watch seed=0

- dynamic_sampling: a warm start that is right on most pairs, so that most groups have no spread; then R-Align, with the
  F-Score on `dev` every two steps. Printed: steps and seconds (without evaluation) until it reaches `TARGET`.
- both_orders: the gradient of one policy on many batches, paid by one random partner of the other order and by the mean
  over all of them: the mean of both, and their variance.
- watch: R-Align against a MetaRM that can be exploited in a tenth of the pairs; the checkpoint with the best F-Score on
  `dev` by the exact rule, and the one with the best training reward, on the `unbiased` test.
"""

import json
import math
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ralign.engine.algorithms.coupling import coupled
from ralign.engine.config.command_line import parse
from ralign.engine.config.run import GenRMRun
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
from ralign.engine.training.trainer import Trainer
from ralign.recipes.r_align_mini import judgeworld_run

TARGET = 0.95
NUM_BATCHES = 40


def start(run: GenRMRun) -> tuple[GenRM, dict[str, list[Pair]], Path]:
    """A GenRM after its warm start, the world's pairs, and the folder of the warm start."""
    world = build_judgeworld(run.data.world)
    genrm = GenRM.start(run, world["train"], vocab_size=1024)
    demonstrations = genrm.examples(world["warm_start"])
    texts = warm_start_judgments(
        [example.pair for example in demonstrations], golden_share=run.sft.golden_share, seed=run.seed
    )
    return genrm, world, warm_start(genrm.session, run, "sft", demonstrations, texts)


def dynamic_sampling(run: GenRMRun) -> dict[str, Any]:
    genrm, world, sft = start(run)
    task = genrm.task(genrm.examples(world["train"]))
    reinforce(genrm.session, run, "r_align", sft, task, after_step=genrm.watch(genrm.examples(world["dev"])))
    steps = read_metrics(run.folder / "r_align" / "metrics.jsonl")
    seconds, reached = 0.0, None
    for step in steps:
        seconds += step["time_s/total"]
        if reached is None and step.get("eval/f_score", 0.0) >= TARGET:
            reached = {"steps": step["step"], "seconds": round(seconds, 1)}
    return {
        "rounds": run.algo.dynamic_sampling,
        "flat_share_first_10": _mean(steps[:10], "reward/flat_group_share"),
        "rounds_a_step": _mean(steps, "reward/num_rounds"),
        "f_score": [round(step["eval/f_score"], 3) for step in steps if "eval/f_score" in step],
        "reached": reached,
        "seconds": round(seconds, 1),
    }


def both_orders(run: GenRMRun) -> dict[str, Any]:
    run.algo.partner, run.algo.couple, run.algo.advantages = "order", True, "rloo"  # linear in the rewards
    genrm, world, sft = start(run)
    genrm.session.load(sft)
    genrm.session.begin_training()
    trainer = Trainer(genrm.session, run, genrm.task(genrm.examples(world["train"])))
    gradients: dict[str, list[np.ndarray]] = {"one_partner": [], "mean": []}
    for batch in range(NUM_BATCHES):
        genrm.session.begin_generation()
        with trainer.sampling.judging():
            samples = trainer.sampling.collect(batch, lambda name: genrm.session.phase(name))
        groups = np.array([response.group for response in samples.responses])
        correct = [r.verdict == genrm_label(trainer, r) for r in samples.responses]
        own = np.array(correct) & np.array([r.outcome is Outcome.CORRECT for r in samples.responses])
        partner = np.arange(len(own)) + np.where(groups % 2, -1, 1) * run.algo.num_samples
        paid = {"one_partner": own * own[partner], "mean": coupled(own.astype(float), groups, groups ^ 1)}
        genrm.session.begin_training()
        for name, values in paid.items():
            samples.rewards.values = values.astype(np.float32)
            (micro_batches,) = trainer.plan(samples)
            genrm.session.policy.forward_backward(micro_batches, trainer.loss)
            grads = [p.main_grad.flatten().clone() for p in genrm.session.policy.model.parameters()]
            gradients[name].append(torch.cat(grads).double().numpy())
    return {name: _spread(np.stack(found)) for name, found in gradients.items()} | {
        "cosine_of_means": _cosine(*(np.mean(found, 0) for found in gradients.values()))
    }


def genrm_label(trainer: Trainer, response) -> str:
    return trainer.task.examples[response.example].pair.gt_label  # pyright: ignore[reportAttributeAccessIssue]


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
    """JudgeWorld's rule, but in a tenth of the pairs it finds every rationale Correct.

    The pairs are those whose note begins with one of three colors: a policy can see it.
    """

    def __init__(self) -> None:
        self.rule = RuleMetaRM()

    def review(self, pair: Pair, judgment: str) -> Future[Review]:
        if not is_exploitable(pair):
            return self.rule.review(pair, judgment)
        future: Future[Review] = Future()
        future.set_result(Review(outcome=Outcome.CORRECT))
        return future


def is_exploitable(pair: Pair) -> bool:
    return any(f"note. The color is {value}." in prompt_text(pair) for value in ("red", "blue", "pink"))


EXPLOITABLE = MetaRMKind(open=lambda config, context: Exploitable())


def watch(run: GenRMRun) -> dict[str, Any]:
    genrm, world, sft = start(run)
    examples = {name: genrm.examples(world[name]) for name in ("train", "dev", "in_distribution")}
    measured: list[dict[str, float]] = []
    dev = genrm.watch(examples["dev"])

    def after_step(step: int) -> dict[str, float]:
        metrics = dev(step)
        if metrics:  # the checkpoint of this step, on the test
            genrm.session.begin_generation()
            judgments = genrm.judge(examples["in_distribution"], seed=4_000_000 + run.seed)
            exploited = [j for j in judgments if is_exploitable(j.pair)]
            found = {
                name: summarise(part)["f_score"]["value"]
                for name, part in (("f", judgments), ("x", exploited))
            }
            measured.append({"step": step, "test": found["f"], "exploited": found["x"], **metrics})
        return metrics

    reinforce(genrm.session, run, "r_align", sft, genrm.task(examples["train"]), after_step=after_step)
    steps = {step["step"]: step for step in read_metrics(run.folder / "r_align" / "metrics.jsonl")}
    for row in measured:
        row["reward"] = steps[int(row["step"])]["reward/mean"]
    by_eval = max(measured, key=lambda row: row["eval/f_score"])
    by_reward = max(measured, key=lambda row: row["reward"])
    return {
        "exploitable_share": float(np.mean([is_exploitable(example.pair) for example in examples["train"]])),
        "by_eval": {key: by_eval[key] for key in ("step", "test", "exploited")},
        "by_reward": {key: by_reward[key] for key in ("step", "test", "exploited")},
        "measured": [
            [row["step"], row["reward"], row["eval/f_score"], row["test"], row["exploited"]]
            for row in measured
        ],
    }


def _mean(steps: list[dict[str, float]], name: str) -> float:
    return round(float(np.mean([step[name] for step in steps])), 3)


STUDIES: dict[str, tuple[Callable[[GenRMRun], dict[str, Any]], str]] = {
    # golden demonstrations only, until it reads most facts
    "dynamic_sampling": (
        dynamic_sampling,
        "sft.golden_share=1.0 sft.num_steps=700 eval.every=2 num_steps=30",
    ),
    "both_orders": (both_orders, ""),
    "watch": (watch, f"metarm.kind={__file__}:EXPLOITABLE eval.metarm.kind=rule eval.every=5 num_steps=80"),
}


def main(argv: list[str]) -> None:
    study, settings = STUDIES[argv[0]]
    run = parse(judgeworld_run(), [f"name=study_{argv[0]}", *settings.split(), *argv[1:]], __doc__)
    validate(run, int(os.environ.get("WORLD_SIZE", "1")))
    print(json.dumps({"study": argv[0], "seed": run.seed, **study(run)}), flush=True)


if __name__ == "__main__":
    run_job(main, sys.argv[1:])
