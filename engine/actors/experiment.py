"""The stages of an actor's training: warm start, RL under one payer or another, what it is worth."""

import math
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ralign.engine.actors.memory_table import residents
from ralign.engine.actors.task import ActorExample, ActorTask, note_examples, open_examples
from ralign.engine.config.actor import ActorRun
from ralign.engine.config.judge import JudgeConfig
from ralign.engine.data.chat import PLAIN_CHAT
from ralign.engine.data.examples import decode_answers
from ralign.engine.data.pairs import Pair
from ralign.engine.data.worlds.actorworld import Note, actor_prompt, demonstrations
from ralign.engine.judging.comparisons import Schedule
from ralign.engine.judging.judge import Judge, awake
from ralign.engine.judging.pairwise import PairwiseReward
from ralign.engine.planner.cli import table
from ralign.engine.runtime.errors import UserError
from ralign.engine.training.experiment import Experiment
from ralign.engine.training.tasks import Answered


class ActorExperiment(Experiment):
    """An `Experiment` whose policy is an actor; every method is collective over all ranks."""

    run: ActorRun

    def __init__(self, run: ActorRun, prompts: Sequence[Any], *, vocab_size: int):
        super().__init__(run, prompts, vocab_size=vocab_size)
        self.say_residents(run)

    def say_residents(self, run: ActorRun) -> None:
        """Who is resident when, by the memory ledger."""
        rows = residents(run, self.memory.plan)
        self.progress.say("\n  ".join(table(rows).splitlines()))

    def _texts(self, notes: Sequence[Note]) -> list[str]:
        bulleted = demonstrations(notes, num_values=2, error_rate=0.0, cue_share=1.0, seed=0)
        answers = [note.reference for note in notes]
        return [actor_prompt(note) for note in notes] + bulleted + answers

    def actor_examples(self, notes: Sequence[Note]) -> list[ActorExample]:
        return note_examples(notes, self.tokenizer)

    def open_examples(self, pairs: Sequence[Pair]) -> list[ActorExample]:
        """The dialogues of pairs; those that are too long are left out and counted aloud."""
        limit = self.run.data.max_prompt_tokens
        examples, num_too_long = open_examples(pairs, self.tokenizer, limit, chat=self.run.data.chat)
        if num_too_long:
            self.progress.say(
                f"{num_too_long} of {len(pairs)} prompts left out: over data.max_prompt_tokens={limit}"
            )
        return examples

    def warm_start_actor(self, name: str, notes: Sequence[Note]) -> Path:
        """Supervised training on demonstrations with faults; returns the exported folder."""
        actor = self.run.actor
        answers = demonstrations(
            notes,
            num_values=self.run.data.world.num_values,
            error_rate=actor.error_rate,
            habit_rate=actor.habit_rate,
            cue_share=actor.cue_share,
            seed=self.run.seed,
        )
        return self.warm_start(name, self.actor_examples(notes), answers)

    def reinforce_actor(
        self,
        name: str,
        start: Path,
        examples: Sequence[ActorExample],
        judge: Judge | None,
        watched: Sequence[ActorExample] = (),
    ) -> Path:
        """RL from a checkpoint, paid by the GenRM behind `judge`, or by the oracle without one.

        Every `actor.watch_every` steps the judge also compares answers to `watched` with their references: rewards
        inside a group have no level, wins against something fixed have one.
        """
        actor, payer = self.run.actor, None
        if judge is not None:
            payer = PairwiseReward(
                judge,
                Schedule(
                    scheme=actor.scheme,
                    num_samples=self.run.algo.num_samples,
                    seats=actor.seats,
                    value=actor.value,
                ),
                num_tries=actor.num_tries,
                length_coefficient=actor.length_penalty,
            )
        task = ActorTask(self.run, examples, payer, self.generator.replicas)
        title = "RL, paid by " + ("the oracle" if judge is None else "the GenRM")
        graded = examples[0].question.grade("") is not None
        shown = ("reward/mean", *(("actor/quality", "actor/cue_share") if graded else ("judge/num_masked",)))

        def watch(step: int) -> dict[str, float]:
            if not watched or judge is None or not actor.watch_every or step % actor.watch_every:
                return {}
            wins = self._wins(watched, judge)
            decided = wins[~np.isnan(wins)]
            return {
                "actor/win_rate": float(decided.mean()) if len(decided) else math.nan,
                "actor/num_decided": len(decided),
            }

        return self._reinforce(name, title, start, self.run, examples, task, shown, watch)

    @contextmanager
    def genrm(self) -> Iterator[Judge]:
        """The judge that the settings ask for, open; where it runs in this job its weights are checked at the end."""
        actor, config = self.run.actor, self.run.judge
        if actor.genrm is None:
            raise UserError("actor.genrm names no GenRM")
        if actor.judge == "process":
            yield from self._resident(actor.genrm)
            return
        config, num_askers = replace(config, model=actor.genrm), self.generator.replicas.count
        if actor.judge == "managed":
            from ralign.engine.judging.managed import ManagedJudge

            config = self.cluster.on_first_rank(lambda: _with_chat_template(config, self.run.folder))
            judge = ManagedJudge(config, self.cluster, self.run.folder, num_askers)
        else:
            from ralign.engine.judging.endpoint import Endpoint

            name = f"{self.run.folder} rank{self.cluster.rank}"
            judge = Endpoint(config, asker=name, num_askers=num_askers)
        try:
            yield judge
        finally:
            judge.close()

    def _resident(self, folder: str) -> Iterator[Judge]:
        from ralign.engine.judging.local_model import LocalModelConfig
        from ralign.engine.judging.resident import ResidentJudge

        config, actor = self.run.judge, self.run.actor
        judge = ResidentJudge(
            LocalModelConfig(
                folder=folder,
                temperature=config.temperature,
                max_new_tokens=config.max_new_tokens,
                seed=self.run.seed,
                max_model_len=config.server.max_model_len,
                max_num_seqs=config.server.max_num_seqs,
                kv_cache_gib=actor.kv_cache_gib,
                gpu_memory_utilization=actor.gpu_memory_utilization,
            ),
            self.generator,
        )
        before = judge.identity()
        yield judge
        after = judge.identity()
        if after != before:
            raise RuntimeError(
                f"the GenRM's weights changed while the actor was trained: {before}, now {after}"
            )
        self.progress.say(f"the GenRM's weights are as they were: checksum {after}")
        judge.close()

    def evaluate_actor(self, name: str, examples: Sequence[ActorExample]) -> dict[str, Any]:
        """True quality of the policy as it is, by the oracle, with 95 % bootstrap intervals."""
        with self.progress.stage(f"evaluate {name}", f"True quality of {name}"):
            answers = self._answers(examples)
            grades = [examples[answer.example].question.grade(answer.text) for answer in answers]
            grades = [grade for part in self.generator.replicas.all_gather_data(grades) for grade in part]
        quality = np.array([grade.quality for grade in grades])
        return {
            "num_prompts": len(grades),
            "quality": self._interval(quality),
            "cue_share": self._interval(np.array([grade.cue for grade in grades], dtype=float)),
            "perfect_share": self._interval((quality == 1).astype(float)),
        }

    def win_rate(self, name: str, examples: Sequence[ActorExample], judge: Judge) -> dict[str, Any]:
        """How often the judge prefers the policy's answer to the reference, both orders asked; a tie is half a win.

        Over `num_decided` of `num_prompts` comparisons: the others have no verdict in either order.
        """
        with self.progress.stage(f"judge {name}", f"Wins of {name} against the references"):
            wins = self._wins(examples, judge)
        decided = wins[~np.isnan(wins)]
        return {
            "num_prompts": len(wins),
            "num_decided": len(decided),
            "win_rate": self._interval(decided) if len(decided) else None,
        }

    def _wins(self, examples: Sequence[ActorExample], judge: Judge) -> np.ndarray:
        """[n] 1, 0.5 or 0 for each of the first `eval.num_pairs` examples; NaN where the judge could not decide."""
        payer = PairwiseReward(judge, Schedule(scheme="reference", num_samples=1, seats="both"))
        answers = self._answers(examples)
        with awake(judge):
            judged = ActorTask(self.run, examples, payer, self.generator.replicas).judge(answers)
        judged = [sample for part in self.generator.replicas.all_gather_data(judged) for sample in part]
        return np.array([(sample.reward + 1) / 2 if sample.valid else math.nan for sample in judged])

    def _answers(self, examples: Sequence[ActorExample]) -> list[Answered]:
        """One answer to each of this engine's share of the first `eval.num_pairs` examples."""
        self._enter("evaluate")
        config, replicas = self.run.eval, self.generator.replicas
        mine = replicas.share_of(min(config.num_pairs, len(examples)))
        rollouts = self.generator.generate(
            [examples[i].prompt_ids.tolist() for i in mine],
            num_samples=1,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=self.run.seed + replicas.index,
        )
        texts = decode_answers([rollout.response_ids for rollout in rollouts], self.tokenizer)
        return [
            Answered(
                example=mine[rollout.prompt_index],
                group=mine[rollout.prompt_index],
                rollout=rollout,
                text=text,
            )
            for rollout, text in zip(rollouts, texts, strict=True)
        ]

    def _interval(self, values: np.ndarray) -> dict[str, float]:
        """Mean and 95 % bootstrap interval."""
        rng = np.random.default_rng(self.run.seed)
        draws = rng.integers(0, len(values), (self.run.eval.num_bootstrap, len(values)))
        low, high = np.quantile(values[draws].mean(1), (0.025, 0.975))
        return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def _with_chat_template(config: JudgeConfig, folder: Path) -> JudgeConfig:
    """A GenRM without a chat template is asked in plain text, as it was trained."""
    from transformers import AutoTokenizer

    if AutoTokenizer.from_pretrained(config.model).chat_template:
        return config
    path = folder / "plain_chat.jinja"
    path.write_text(PLAIN_CHAT, encoding="utf-8")
    options = f"{config.server.options or ''} --chat-template {shlex.quote(str(path))}"
    return replace(config, server=replace(config.server, options=options))
