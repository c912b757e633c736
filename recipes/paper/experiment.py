"""The paper's argument in one process: judges trained in two ways, an actor for each, and what the actors are worth.

Judges and actors are the same small model on the same memory, one stage after the other; the settings of the two
kinds of stages are two trees, each with a folder of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ralign.engine.actors.experiment import ActorExperiment
from ralign.engine.actors.task import ActorExample
from ralign.engine.checkpoint.settings import has_progress, mark_finished, move_aside, open_folder
from ralign.engine.config.actor import ActorRun
from ralign.engine.data.examples import Example
from ralign.engine.data.pairs import Pair, prompt_text
from ralign.engine.data.worlds.actorworld import read_note
from ralign.engine.planner.judges import GIB
from ralign.engine.planner.memory import Ledger
from ralign.engine.policy.critic import Critic
from ralign.engine.policy.offload import TrainingState
from ralign.engine.report.metrics_log import read_metrics
from ralign.engine.training.experiment import Experiment, check_vocabulary
from ralign.engine.training.memory_phases import MemoryPhases, plan_memory
from ralign.recipes.paper.config import PaperRun

METHODS = {"rlvr": "label", "r_align": "r_align"}  # a judge's training -> the reward of its RL
CURVES = (
    "actor/win_rate",
    "actor/num_decided",
    "actor/quality",
    "actor/cue_share",
    "actor/reward_quality_corr",
    "judge/num_masked",
)
NUM_WATCHED = 64  # prompts of each look at the judge's own opinion

Results = dict[str, dict[str, Any]]


class PaperExperiment(ActorExperiment):
    """Judges, then actors, on one policy and one engine; every method is collective over all ranks."""

    def __init__(self, paper: PaperRun, pairs: Sequence[Pair], *, vocab_size: int):
        """Both folders are opened and both ledgers made at once: what cannot go on or cannot fit ends here."""
        self.paper = paper
        Experiment.__init__(self, paper.judges, pairs, vocab_size=vocab_size)
        if message := self.cluster.on_first_rank(self._open_actors):
            self.progress.say(message)
        self._actors_plan = self._plan_actors()

    def _open_actors(self) -> str | None:
        """On one rank. Where judges start afresh, what earlier ones paid for is kept aside and not gone on with."""
        judges, actors = self.paper.judges.folder, self.paper.actors.folder
        if has_progress(actors) and not has_progress(judges):
            kept = move_aside(actors)
            open_folder(self.paper.actors)
            return f"{actors}: starts afresh with its judges; what earlier ones paid for is now {kept}"
        return open_folder(self.paper.actors)

    def _plan_actors(self) -> Ledger:
        """The actors' ledger, with the engine as it was built for the judges."""
        built, run = self.memory.plan, self._paid_by(self.policy.folder)  # all judges are of that size
        kv_sleep: Literal["always", "never"] = "always" if built.kv_sleep else "never"
        run = replace(
            run,
            generator=replace(run.generator, kv_cache_gib=built.kv_bytes / GIB),
            memory=replace(run.memory, kv_sleep=kv_sleep),
        )
        return plan_memory(run, self.cluster, self.policy.folder)

    def _paid_by(self, judge_folder: Path) -> ActorRun:
        """The actors' settings with that judge as GenRM."""
        actors = self.paper.actors
        return replace(actors, actor=replace(actors.actor, genrm=str(judge_folder)))

    def _texts(self, pairs: Sequence[Pair]) -> list[str]:
        notes = [read_note(pair.id, prompt_text(pair)) for pair in pairs]
        return Experiment._texts(self, pairs) + ActorExperiment._texts(self, notes)

    def turn_to_actors(self) -> None:
        """The judges are done: from here on fresh weights, and the actors' settings, folder, critic and phases."""
        self.memory.before_training()  # whatever was away is back: the new phases begin with all on the device
        self.run = self.paper.actors
        self.critic = self._actors_critic() if self.run.has_critic else None
        self.training = [TrainingState(model) for model in (self.policy, self.critic) if model is not None]
        self.memory = MemoryPhases(self._actors_plan, self.generator, self.training)
        self.say_residents(self._paid_by(self.policy.folder))
        self.load(self.policy.folder)

    def _actors_critic(self) -> Critic:
        run, folder = self.run, self.policy.folder
        critic = Critic(
            run.critic.hf_path or folder,
            self.cluster,
            dtype=run.parallel.dtype,
            sequence_parallel=run.parallel.sequence,
            recompute=run.parallel.recompute,
            kernels=run.kernels,
        )
        check_vocabulary(self.policy, critic)
        return critic

    def train_judges(
        self, start: Path, train: Sequence[Example], tests: dict[str, list[Example]]
    ) -> tuple[dict[str, Path], dict[str, Results]]:
        """RLVR and R-Align from one warm start; folders and results of the judges at every budget, by name."""
        judges = {"sft": start}
        for method, reward in METHODS.items():
            last = self.reinforce(method, start, train, reward, export_at=self.paper.budgets)
            for budget in self.paper.budgets:
                judges[f"{method}_{budget}"] = last.with_name(f"hf_{budget}")
        results = {}
        for name, folder in judges.items():
            self.load(folder)
            results[name] = self.evaluate(name, tests)
        return judges, results

    def train_actor(
        self,
        name: str,
        start: Path,
        train: Sequence[ActorExample],
        test: Sequence[ActorExample],
        judge_folder: Path,
    ) -> dict[str, Any]:
        """An actor that the judge in `judge_folder` pays: its quality on `test`, and how it got there."""
        actors, self.run = self.run, self._paid_by(judge_folder)
        with self.genrm() as judge:
            self.load(start)
            before = self.win_rate(f"{name} before", test, judge)
            self.reinforce_actor(name, start, train, judge, watched=test[:NUM_WATCHED])
            after = self.win_rate(name, test, judge)
        self.run = actors
        result = self.evaluate_actor(name, test)
        result |= {"win_rate_before": before["win_rate"], "win_rate": after["win_rate"]}
        result |= {"num_decided_before": before["num_decided"], "num_decided": after["num_decided"]}
        result["num_compared"] = after["num_prompts"]
        if self.cluster.is_first_rank:
            result["steps"] = _curves(read_metrics(actors.folder / name / "metrics.jsonl"))
        return result

    def close(self) -> None:
        """Leave the job in order, when every rank is done; the run is complete, judges and actors.

        The judges' part is not marked before: an interrupted run is one, whichever part it was in.
        """
        self.cluster.on_first_rank(lambda: mark_finished(self.paper.judges))
        super().close()


def _curves(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"step": step["step"]} | {key: _or_none(step.get(key, math.nan)) for key in CURVES} for step in steps
    ]


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
