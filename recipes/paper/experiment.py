"""The paper's argument in one job: judges trained in two ways, and an actor trained against each.

Judges and actors are the same small model in the same memory, one stage after the other. Judges and actors each have a
tree of settings and a folder.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ralign.engine.actors.actor import Actor, note_texts
from ralign.engine.actors.task import ActorExample
from ralign.engine.checkpoint.settings import has_progress, move_aside, open_folder
from ralign.engine.config.actor import ActorRun
from ralign.engine.data.examples import Example
from ralign.engine.data.pairs import Pair, prompt_text
from ralign.engine.data.worlds.actorworld import read_note
from ralign.engine.planner.judges import GIB
from ralign.engine.planner.memory import Ledger
from ralign.engine.report.metrics_log import read_metrics
from ralign.engine.training.genrm import NUM_TOKENIZER_PAIRS, GenRM
from ralign.engine.training.loop import reinforce
from ralign.engine.training.memory import plan_memory
from ralign.recipes.paper.config import PaperRun

METHODS = {"rlvr": "label", "r_align": "r_align"}  # training method of a judge -> its reward
CURVES = (
    "actor/win_rate",
    "actor/num_decided",
    "actor/quality",
    "actor/cue_share",
    "actor/reward_quality_corr",
    "judge/num_masked",
)
NUM_WATCHED = 64  # prompts of each measurement of the judge's preference

Results = dict[str, dict[str, Any]]


class PaperExperiment:
    """Judges, then actors, on one session; every method is collective over all ranks."""

    def __init__(self, paper: PaperRun, pairs: Sequence[Pair], *, vocab_size: int):
        """Open both folders and make both memory plans, so that every mistake is found before training."""
        self.paper = paper
        notes = [read_note(pair.id, prompt_text(pair)) for pair in pairs[:NUM_TOKENIZER_PAIRS]]
        self.judges = GenRM.start(paper.judges, pairs, vocab_size=vocab_size, more_texts=note_texts(notes))
        self.session = self.judges.session
        self.actors = Actor(self.session, paper.actors)
        if message := self.session.cluster.on_first_rank(self._open_actors):
            self.session.progress.say(message)
        self._actors_plan = self._plan_actors()

    def _open_actors(self) -> str | None:
        """Open the actors' folder, on one rank. If the judges start over, actors of earlier judges are moved aside."""
        judges, actors = self.paper.judges.folder, self.paper.actors.folder
        if has_progress(actors) and not has_progress(judges):
            kept = move_aside(actors)
            open_folder(self.paper.actors)
            return f"{actors}: starts over with its judges; the actors of earlier judges are now in {kept}"
        return open_folder(self.paper.actors)

    def _plan_actors(self) -> Ledger:
        """The actors' memory ledger, with the engine that was built for the judges."""
        session = self.session
        built = session.memory.plan
        run = self._with_genrm(session.policy.folder)  # all judges have the policy's size
        kv_sleep: Literal["always", "never"] = "always" if built.kv_sleep else "never"
        run = replace(
            run,
            generator=replace(run.generator, kv_cache_gib=built.kv_bytes / GIB),
            memory=replace(run.memory, kv_sleep=kv_sleep),
        )
        return plan_memory(run, session.cluster, session.policy.folder)

    def _with_genrm(self, folder: Path) -> ActorRun:
        """The actors' settings, with the judge in `folder` as GenRM."""
        actors = self.paper.actors
        return replace(actors, genrm=replace(actors.genrm, model=str(folder)))

    def train_judges(
        self, start: Path, train: Sequence[Example], tests: dict[str, list[Example]]
    ) -> tuple[dict[str, Path], dict[str, Results]]:
        """RLVR and R-Align from one warm start; returns folders and results of all exported judges, by name."""
        session, run, judges = self.session, self.paper.judges, {"sft": start}
        for method, reward in METHODS.items():

            def export(step: int, folder: Path = run.folder / method) -> dict[str, float]:
                if step in self.paper.budgets:
                    session.export(folder / f"hf_{step}")
                return {}

            last = reinforce(session, run, method, start, self.judges.task(train, reward), export)
            for budget in self.paper.budgets:
                judges[f"{method}_{budget}"] = last.with_name(f"hf_{budget}")
        results = {}
        for name, folder in judges.items():
            session.load(folder)
            results[name] = self.judges.evaluate(name, tests)
        return judges, results

    def switch_to_actors(self) -> Actor:
        """Switch the session to random weights and to the actors' settings, folder, critic and memory plan."""
        session = self.session
        session.adopt(self.paper.actors, self._actors_plan)
        Actor(session, self._with_genrm(session.policy.folder)).print_memory_table(self._actors_plan)
        session.load(session.policy.folder)
        return self.actors

    def train_actor(
        self,
        name: str,
        start: Path,
        train: Sequence[ActorExample],
        test: Sequence[ActorExample],
        judge_folder: Path,
    ) -> dict[str, Any]:
        """Train an actor against the judge in `judge_folder`; returns its quality on `test` and its curves."""
        session, actor = self.session, Actor(self.session, self._with_genrm(judge_folder))
        with actor.genrm() as judge:
            session.load(start)
            before = actor.win_rate(f"{name} before", test, judge)
            task, watch = actor.task(train, judge), actor.watch(test[:NUM_WATCHED], judge)
            reinforce(session, actor.run, name, start, task, watch)
            after = actor.win_rate(name, test, judge)
        result = actor.evaluate(name, test)
        result |= {"win_rate_before": before["win_rate"], "win_rate": after["win_rate"]}
        result |= {"num_decided_before": before["num_decided"], "num_decided": after["num_decided"]}
        result["num_compared"] = after["num_prompts"]
        if session.cluster.is_first_rank:
            result["steps"] = _curves(read_metrics(actor.run.folder / name / "metrics.jsonl"))
        return result

    def close(self) -> None:
        """Close the session and mark judges and actors as finished.

        Both are marked together, so that an interrupted run counts as interrupted as a whole.
        """
        self.session.close(self.paper.judges, self.paper.actors)


def _curves(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"step": step["step"]} | {key: _or_none(step.get(key, math.nan)) for key in CURVES} for step in steps
    ]


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
