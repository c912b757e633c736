"""An actor on a session: its examples, its RL task, the GenRM that rewards it, its evaluations."""

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ralign.engine.actors.memory_table import memory_rows
from ralign.engine.actors.task import ActorExample, ActorTask, note_examples, open_examples
from ralign.engine.config.actor import ActorRun
from ralign.engine.config.judge import GenRMConfig
from ralign.engine.data.chat import PLAIN_CHAT
from ralign.engine.data.examples import decode_answer
from ralign.engine.data.pairs import Pair
from ralign.engine.data.verdicts import VerdictForm, read_form
from ralign.engine.data.worlds.actorworld import Note, actor_prompt, demonstrations
from ralign.engine.generator.generator import Rollout
from ralign.engine.judging.comparisons import Schedule
from ralign.engine.judging.judge import ClientContext, Judge
from ralign.engine.judging.pairwise import PairwiseReward
from ralign.engine.planner.cli import table
from ralign.engine.planner.memory import Ledger
from ralign.engine.runtime.errors import UserError
from ralign.engine.training.loop import warm_start
from ralign.engine.training.session import Session
from ralign.engine.training.tasks import Response


class Actor:
    """The policy of a session as an actor; every method is collective over all ranks."""

    def __init__(self, session: Session, run: ActorRun):
        self.session, self.run = session, run

    @classmethod
    def start(cls, run: ActorRun, notes: Sequence[Note], *, vocab_size: int) -> "Actor":
        """A session with its models; the tokenizer of a fresh model is trained on the notes' texts."""
        session = Session(run)
        session.build(run, note_texts(notes), vocab_size=vocab_size)
        actor = cls(session, run)
        actor.print_memory_table(session.memory.plan)
        return actor

    def print_memory_table(self, plan: Ledger) -> None:
        """The memory ledger by role."""
        for line in table(memory_rows(self.run, plan)).splitlines():
            self.session.progress.say(line)

    def note_examples(self, notes: Sequence[Note]) -> list[ActorExample]:
        return note_examples(notes, self.session.tokenizer)

    def open_examples(self, pairs: Sequence[Pair]) -> list[ActorExample]:
        """The dialogues of pairs; those that are too long are left out, and their number is printed."""
        data = self.run.data
        limit = data.max_prompt_tokens
        examples, num_too_long = open_examples(pairs, self.session.tokenizer, limit, chat=data.chat)
        if num_too_long:
            self.session.progress.say(
                f"{num_too_long} of {len(pairs)} prompts left out: over data.max_prompt_tokens={limit}"
            )
        return examples

    def warm_start(self, name: str, notes: Sequence[Note]) -> Path:
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
        return warm_start(self.session, self.run, name, self.note_examples(notes), answers)

    def task(self, examples: Sequence[ActorExample], judge: Judge | None) -> ActorTask:
        """The RL task on these questions, with rewards of the GenRM behind `judge`, or of the oracle without one."""
        actor, reward_model = self.run.actor, None
        if judge is not None:
            schedule = Schedule(
                scheme=actor.scheme,
                num_samples=self.run.algo.num_samples,
                order=actor.order,
                value=actor.value,
            )
            reward_model = PairwiseReward(
                judge,
                schedule,
                num_tries=self.run.genrm.num_tries,
                form=self._form,
            )
        return ActorTask(self.run, examples, reward_model, self.session.generator.replicas)

    @property
    def _form(self) -> VerdictForm:
        return read_form("genrm.verdict", self.run.genrm.verdict)

    def watch(self, examples: Sequence[ActorExample], judge: Judge) -> Callable[[int], dict[str, float]]:
        """For `reinforce`: every `actor.watch_every` steps, the win rate against the references of `examples`.

        Rewards within a group are relative; wins against something fixed are not.
        """
        every = self.run.actor.watch_every

        def after_step(step: int) -> dict[str, float]:
            if not every or step % every:
                return {}
            wins = self._wins(examples, judge)
            decided = wins[~np.isnan(wins)]
            return {
                "actor/win_rate": float(decided.mean()) if len(decided) else math.nan,
                "actor/num_decided": len(decided),
            }

        return after_step

    @contextmanager
    def genrm(self, folder: str | None = None) -> Iterator[Judge]:
        """The GenRM of the settings, or of `folder`; one in the training processes must end with equal weights."""
        config, session = self.run.genrm, self.session
        if folder is not None:
            config = replace(config, model=folder)
        if config.model is None:
            raise UserError("genrm.model names no GenRM")
        if config.kind == "process":
            yield from self._in_process(config)
            return
        context = ClientContext.of_rank(session.cluster, self.run.folder, session.generator.replicas.count)
        if config.kind == "managed":
            from ralign.engine.judging.managed import ManagedJudge

            config = session.cluster.on_first_rank(lambda: _with_chat_template(config, self.run.folder))
            judge: Judge = ManagedJudge(config, context)
        else:
            from ralign.engine.judging.endpoint import Endpoint

            judge = Endpoint(config, context)
        try:
            yield judge
        finally:
            judge.close()

    def _in_process(self, config: GenRMConfig) -> Iterator[Judge]:
        from ralign.engine.judging.local_model import LocalModelConfig
        from ralign.engine.judging.resident import ResidentJudge

        assert config.model is not None
        judge = ResidentJudge(
            LocalModelConfig(
                folder=config.model,
                temperature=config.temperature,
                max_new_tokens=config.max_new_tokens,
                seed=self.run.seed,
                max_model_len=config.server.max_model_len,
                max_num_seqs=config.server.max_num_seqs,
                kv_cache_gib=config.kv_cache_gib,
                gpu_memory_utilization=config.gpu_memory_utilization,
            ),
            self.session.generator,
        )
        before = judge.identity()
        yield judge
        after = judge.identity()
        if after != before:
            raise RuntimeError(
                f"the GenRM's weights changed during the actor's training: {before}, now {after}"
            )
        self.session.progress.say(f"the GenRM's weights are unchanged: checksum {after}")
        judge.close()

    def evaluate(self, name: str, examples: Sequence[ActorExample]) -> dict[str, Any]:
        """True quality of the current policy, by the oracle, with 95 % bootstrap intervals."""
        session = self.session
        with session.progress.stage(f"evaluate {name}", f"True quality of {name}"):
            answers = self._answers(examples)
            own = [examples[answer.example].question.grade(answer.text) for answer in answers]
            grades = [grade for part in session.generator.replicas.all_gather_data(own) for grade in part]
        quality = np.array([grade.quality for grade in grades])
        return {
            "num_prompts": len(grades),
            "quality": self._interval(quality),
            "cue_share": self._interval(np.array([grade.cue for grade in grades], dtype=float)),
            "perfect_share": self._interval((quality == 1).astype(float)),
        }

    def win_rate(self, name: str, examples: Sequence[ActorExample], judge: Judge) -> dict[str, Any]:
        """Share of answers that the GenRM prefers to the reference, in both orders; a tie is half a win.

        Over `num_decided` of `num_prompts` comparisons: the others have no verdict in either order.
        """
        with self.session.progress.stage(f"judge {name}", f"Wins of {name} against the references"):
            wins = self._wins(examples, judge)
        decided = wins[~np.isnan(wins)]
        return {
            "num_prompts": len(wins),
            "num_decided": len(decided),
            "win_rate": self._interval(decided) if len(decided) else None,
        }

    def _wins(self, examples: Sequence[ActorExample], judge: Judge) -> np.ndarray:
        """[n] 1, 0.5 or 0 for each of the first `eval.num_pairs` examples; NaN where the GenRM has no verdict."""
        schedule = Schedule(scheme="reference", num_samples=1, order="both")
        reward_model = PairwiseReward(judge, schedule, form=self._form)
        answers, replicas = self._answers(examples), self.session.generator.replicas
        with judge.awake():
            own = ActorTask(self.run, examples, reward_model, replicas).judge(answers, 0)
        judged = [response for part in replicas.all_gather_data(own) for response in part]
        return np.array([(r.reward + 1) / 2 if r.valid else math.nan for r in judged])

    def _answers(self, examples: Sequence[ActorExample]) -> list[Response]:
        """One answer to each of this engine's share of the first `eval.num_pairs` examples."""
        session, config = self.session, self.run.eval
        replicas = session.generator.replicas
        mine = replicas.share_of(min(config.num_pairs, len(examples)))
        with session.phase("evaluate"):
            session.begin_generation()
            rollouts = session.generator.generate(
                [examples[i].prompt_ids.tolist() for i in mine],
                num_samples=1,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                seed=self.run.seed + replicas.index,
            )

        def response(rollout: Rollout) -> Response:
            index = mine[rollout.prompt_index]
            opens_thinking = examples[index].opens_thinking
            text = decode_answer(rollout.response_ids, session.tokenizer, opens_thinking=opens_thinking)
            return Response(example=index, group=index, rollout=rollout, text=text)

        return [response(rollout) for rollout in rollouts]

    def _interval(self, values: np.ndarray) -> dict[str, float]:
        """Mean and 95 % bootstrap interval."""
        rng = np.random.default_rng(self.run.seed)
        draws = rng.integers(0, len(values), (self.run.eval.num_bootstrap, len(values)))
        low, high = np.quantile(values[draws].mean(1), (0.025, 0.975))
        return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def note_texts(notes: Sequence[Note]) -> list[str]:
    """Prompts, bulleted demonstrations and references: training data of a tokenizer."""
    bulleted = demonstrations(notes, num_values=2, error_rate=0.0, cue_share=1.0, seed=0)
    answers = [note.reference for note in notes]
    return [actor_prompt(note) for note in notes] + bulleted + answers


def _with_chat_template(config: GenRMConfig, folder: Path) -> GenRMConfig:
    """A server needs a chat template; a GenRM without one reads plain text, as in its training."""
    from transformers import AutoTokenizer

    if AutoTokenizer.from_pretrained(config.model).chat_template:
        return config
    path = folder / "plain_chat.jinja"
    path.write_text(PLAIN_CHAT, encoding="utf-8")
    options = f"{config.server.options or ''} --chat-template {shlex.quote(str(path))}"
    return replace(config, server=replace(config.server, options=options))
