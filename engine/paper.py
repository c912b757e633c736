"""The paper's argument in one process: judges trained in two ways, an actor for each, and what the actors are worth.

Judges and actors are the same small model on the same memory, one stage after the other; the settings of the two
kinds of stages are two trees, each with a folder of its own.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ralign.engine.actor import ActorExample
from ralign.engine.actor_experiment import ActorExperiment
from ralign.engine.checkpoint.settings import mark_finished, open_folder
from ralign.engine.data.actorworld import Note, read_note
from ralign.engine.data.examples import Example
from ralign.engine.data.pairs import Pair, prompt_text
from ralign.engine.experiment import Experiment
from ralign.engine.paper_config import PaperRun
from ralign.engine.report.metrics_log import read_metrics

METHODS = {"rlvr": "label", "r_align": "r_align"}  # a judge's training -> the reward of its RL
CURVES = (
    "actor/win_rate",
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
        self.paper = paper
        Experiment.__init__(self, paper.judges, pairs, vocab_size=vocab_size)

    def _texts(self, pairs: Sequence[Pair]) -> list[str]:
        notes = [read_note(pair.id, prompt_text(pair)) for pair in pairs]
        return Experiment._texts(self, pairs) + ActorExperiment._texts(self, notes)

    def turn_to_actors(self) -> None:
        """The judges are done: from here on fresh weights, and the actors' settings and folder."""
        self.cluster.on_first_rank(lambda: mark_finished(self.run))
        self.run = self.paper.actors
        if message := self.cluster.on_first_rank(lambda: open_folder(self.run)):
            self.progress.say(message)
        self.load(self.policy.folder)

    def train_judges(
        self, start: Path, train: Sequence[Example], tests: dict[str, list[Example]]
    ) -> tuple[dict[str, Path], dict[str, Results]]:
        """RLVR and R-Align from one warm start; folders and results of the judges at every budget, by name."""
        folders = {"sft": start}
        for method, reward in METHODS.items():
            last = self.reinforce(method, start, train, reward, export_at=self.paper.budgets)
            for budget in self.paper.budgets:
                folders[f"{method}_{budget}"] = last.with_name(f"hf_{budget}")
        results = {}
        for name, folder in folders.items():
            self.load(folder)
            results[name] = self.evaluate(name, tests)
        return folders, results

    def train_actor(
        self,
        name: str,
        start: Path,
        train: Sequence[ActorExample],
        test: Sequence[ActorExample],
        judge_folder: Path,
    ) -> dict[str, Any]:
        """An actor that the judge in `judge_folder` pays: its quality on `test`, and how it got there."""
        actors = self.run
        self.run = replace(actors, actor=replace(actors.actor, genrm=str(judge_folder)))
        with self.genrm() as judge:
            self.load(start)
            before = self.win_rate(f"{name} before", test, judge)
            self.reinforce_actor(name, start, train, judge, watched=test[:NUM_WATCHED])
            after = self.win_rate(name, test, judge)
        self.run = actors
        result = self.evaluate_actor(name, test)
        result |= {"win_rate_before": before["win_rate"], "win_rate": after["win_rate"]}
        if self.cluster.is_first_rank:
            result["steps"] = _curves(read_metrics(actors.folder / name / "metrics.jsonl"))
        return result


def _curves(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"step": step["step"]} | {key: _or_none(step.get(key, math.nan)) for key in CURVES} for step in steps
    ]


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def transcripts(
    folder: Path, actors: Mapping[str, Any], notes: Mapping[str, Note], *, num: int = 2
) -> dict[str, str]:
    """Heading -> text: the last answers of each actor's training that were written down, best and worst paid."""
    shown = {}
    for name in actors:
        files = sorted((folder / name / "rollouts").glob("step*.jsonl"))
        if not files:
            continue
        samples = [json.loads(line) for line in files[-1].read_text(encoding="utf-8").splitlines()]
        group = [sample for sample in samples if sample["group"] == samples[0]["group"]]
        group.sort(key=lambda sample: -math.inf if sample["reward"] is None else sample["reward"])
        parts = [notes[group[0]["id"]].prompt]
        for sample in (*group[: -num - 1 : -1], group[0]):
            parts.append(f"[paid {sample['reward']}, worth {sample['quality']:.2f}]\n{sample['text']}")
        shown[f"{name}, {files[-1].stem}"] = "\n\n".join(parts)
    return shown
