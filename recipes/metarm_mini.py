"""A MetaRM in miniature: a tiny language model learns to audit JudgeWorld's judgments.

Question: can a language model of under a million parameters replace the rule? Data: golden judgments, and correct,
wrong, padded and empty ones derived from them. Expected: agreement with the rule on 99 % of judgments of held-out pairs
(and on 96 % of the judgments of a judge in training), with the server and prompts of a training run.

    python recipes/metarm_mini.py
    torchrun --nproc-per-node 2 recipes/r_align_mini.py metarm.kind=managed metarm.model=runs/metarm_mini/hf

Hardware: two CPU cores, some minutes.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ralign.engine.config.command_line import parse
from ralign.engine.config.judge import MetaRMConfig, ServerConfig
from ralign.engine.config.run import ModelConfig
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig
from ralign.engine.runtime import output
from ralign.engine.runtime.entry_point import run_job
from ralign.engine.runtime.errors import UserError


def _model() -> ModelConfig:
    return ModelConfig(num_layers=3, hidden_size=96, ffn_hidden_size=256)


@dataclass(kw_only=True, slots=True)
class MetaRMRun:
    """Settings of the miniature MetaRM."""

    out: str = "runs/metarm_mini"
    """Folder of the run; the model is in its folder hf."""
    num_steps: int = 800
    """Training steps."""
    batch_size: int = 16
    """Audits per step."""
    lr: float = 3e-3
    """Peak learning rate; high, for a tiny model with random weights."""
    num_test: int = 512
    """Held-out judgments for the test; 0: no test and no server."""
    seed: int = 0
    """Seed of cases, initial weights and order."""
    world: JudgeWorldConfig = field(default_factory=JudgeWorldConfig)
    """The pairs: warm_start for training, unbiased for the test."""
    model: ModelConfig = field(default_factory=_model)
    """Architecture; half as large as the policy of r_align_mini.py."""


def main(argv: list[str]) -> None:
    run = parse(MetaRMRun(), argv, __doc__)
    for name in ("num_steps", "batch_size"):
        if getattr(run, name) < 1:
            raise UserError(f"{name} must be at least 1, got {getattr(run, name)}")
    from ralign.engine.data.worlds.judgeworld import build_judgeworld
    from ralign.engine.report.progress import Progress
    from ralign.recipes.common.mini_metarm import make_cases
    from ralign.recipes.common.tiny_sft import train_tiny_model

    output.move_log(Path(run.out) / "log" / "rank00000.txt")
    world, folder, progress = build_judgeworld(run.world), Path(run.out) / "hf", Progress()
    cases = make_cases(world["warm_start"], num_per_pair=3, seed=run.seed)
    with progress.stage("learn", "The MetaRM learns", num_steps=run.num_steps):
        train_tiny_model(
            folder,
            [(case.prompt, case.answer) for case in cases],
            model=run.model,
            vocab_size=1024,
            num_steps=run.num_steps,
            batch_size=run.batch_size,
            lr=run.lr,
            seed=run.seed,
            report=lambda loss: progress.step(loss=loss),
        )
    if run.num_test:
        with progress.stage("test", "Agreement with the rule on held-out pairs"):
            report = agreement(folder, make_cases(world["unbiased"], seed=run.seed + 1)[: run.num_test])
        (Path(run.out) / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        output.show(
            f"{folder}: agrees with the rule on {report['agreement']:.1%} of {report['num_cases']} cases"
        )


def agreement(folder: Path, cases: list) -> dict:
    """Agreement of the served model with the rule, and the outcomes of both."""
    from collections import Counter

    from ralign.engine.judging.judge import ClientContext
    from ralign.engine.judging.metarms import MANAGED

    config = MetaRMConfig(
        kind="managed",
        model=str(folder),
        template="compact",
        temperature=0.0,
        max_new_tokens=96,
        num_tries=1,
        server=ServerConfig(max_model_len=384, kv_cache_gib=0.25),
    )
    metarm = MANAGED.open(config, ClientContext(server_log=folder.parent / "judge_server.log"))
    assert metarm is not None
    futures = [metarm.review(case.pair, case.judgment) for case in cases]
    outcomes = [future.result().outcome for future in futures]
    metarm.close()
    pairs = Counter(
        (case.outcome.value, outcome.value) for case, outcome in zip(cases, outcomes, strict=True)
    )
    num_same = sum(number for (rule, judge), number in pairs.items() if rule == judge)
    return {
        "num_cases": len(cases),
        "agreement": num_same / len(cases),
        "rule_then_judge": {f"{rule}/{judge}": number for (rule, judge), number in sorted(pairs.items())},
    }


if __name__ == "__main__":
    run_job(main, sys.argv[1:])
