"""One step with implementations from outside, by name and by import path, beside built-in ones; metrics as JSON.

The implementations are in a file of the user's, which this program writes: see OWN.
"""

import json
import runpy
import sys
from pathlib import Path

import torch
from ralign.engine.config.judge import MetaRMConfig
from ralign.engine.config.registry import ADVANTAGES, METARMS, OBJECTIVES, REWARDS
from ralign.engine.config.validation import validate
from ralign.engine.judging.judge import ClientContext
from ralign.engine.runtime import cluster as cluster_module
from worlds import make_stage

OWN = '''
from concurrent.futures import Future

import torch
from ralign.engine.judging.metarm import MetaRM, Outcome, Review
from ralign.engine.judging.metarms import MetaRMKind


def double(samples):
    return 2.0 * samples.aligned


def centred(rewards, group_ids, valid, *, implementation):
    """Dr. GRPO's advantages, where all samples are valid."""
    assert valid.all()
    out = torch.zeros_like(rewards)
    for group in group_ids.unique():
        members = group_ids == group
        out[members] = rewards[members] - rewards[members].mean()
    return out


def half_gradient(ratio, logprobs, advantages, settings):
    """At a ratio of 1 its gradient is half of the clipped objective's."""
    return 0.5 * logprobs * advantages


class Lenient(MetaRM):
    """Finds every rationale Correct."""

    def review(self, pair, judgment):
        future = Future()
        future.set_result(Review(outcome=Outcome.CORRECT))
        return future


LENIENT = MetaRMKind(open=lambda config, context: Lenient())
'''


def one_step(folder: Path, *, metarm: str = "rule", **algo) -> dict[str, float]:
    """Metrics of a first step, which has one update, at a ratio of 1."""
    settings = {"reward": "r_align", "num_updates": 1, "kl_coef": 0.0, "normalisation": "token"} | algo
    _, _, trainer = make_stage(folder, "rl", {}, "fp32", num_steps=1, **settings)
    trainer.run.metarm = MetaRMConfig(kind=metarm)
    validate(trainer.run, 1)
    trainer.task.metarm = METARMS.load(metarm).open(trainer.run.metarm, ClientContext())
    metrics, _ = trainer.step()
    return {name: value for name, value in metrics.items() if not name.startswith(("time_s/", "memory/"))}


def main(result: str) -> None:
    torch.set_num_threads(1)
    cluster_module.start()
    folder = Path(result).parent
    own = folder / "own.py"
    own.write_text(OWN)
    objects = runpy.run_path(str(own))
    for registry, name in (
        (REWARDS, "double"), (ADVANTAGES, "centred"), (OBJECTIVES, "half_gradient"), (METARMS, "LENIENT"),
    ):  # fmt: skip
        registry.register("own", objects[name])
    report = {
        "r_align": one_step(folder),
        "r_align, dr_grpo": one_step(folder, advantages="dr_grpo"),
    }
    for how, own_name in (("name", lambda name: "own"), ("path", lambda name: f"{own}:{name}")):
        report[f"reward by {how}"] = one_step(folder, reward=own_name("double"), advantages="dr_grpo")
        report[f"advantages by {how}"] = one_step(folder, advantages=own_name("centred"))
        report[f"objective by {how}"] = one_step(folder, objective=own_name("half_gradient"))
        report[f"metarm by {how}"] = one_step(folder, metarm=own_name("LENIENT"))
    Path(result).write_text(json.dumps(report))
    cluster_module.stop()


if __name__ == "__main__":
    main(sys.argv[1])
