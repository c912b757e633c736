"""The stages of an experiment on one policy and one generator: warm start, RL runs, evaluations.

One process keeps one Megatron model and one vLLM engine for the whole experiment; a stage that starts from a
checkpoint loads it into the same memory, which the engine reads too.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch.distributed as dist
from ralign.engine import cluster as cluster_module
from ralign.engine.checkpoint.checkpoints import Checkpoints
from ralign.engine.checkpoint.settings import mark_finished, open_folder
from ralign.engine.config import Run
from ralign.engine.data.examples import Example, encode, encode_answer
from ralign.engine.data.pairs import Pair
from ralign.engine.data.swap import swap_sides
from ralign.engine.data.tokenizer import build_tokenizer
from ralign.engine.errors import UserError
from ralign.engine.evaluate import judge_pairs, summarise, write_judgments
from ralign.engine.generator.generator import Generator
from ralign.engine.judging.factory import open_metarm
from ralign.engine.judging.judge import JudgeStopped
from ralign.engine.judging.prompts import load_template, render
from ralign.engine.memory import MemoryPhases, plan_memory
from ralign.engine.policy.critic import Critic
from ralign.engine.policy.fresh import create_model_folder
from ralign.engine.policy.policy import Policy
from ralign.engine.report.metrics_log import MetricsLog
from ralign.engine.report.progress import Progress
from ralign.engine.sft import SFT
from ralign.engine.stop import Stopped, StopSignal
from ralign.engine.tasks import Answered, GenRMTask, Prompted, Task
from ralign.engine.trainer import Trainer
from ralign.engine.watchdog import Watchdog

NUM_TOKENIZER_PAIRS = 4000  # enough of a generated world to see every word


class Experiment:
    """A run folder, a job, a policy with its generator; every method is collective over all ranks."""

    def __init__(self, run: Run, pairs: Sequence[Pair], *, vocab_size: int):
        """Start the job and its MetaRM; make tokenizer and fresh model from `pairs` unless `run.model.hf_path`
        names one."""
        self.run = run
        self.cluster = cluster_module.start(
            tensor=run.parallel.tensor,
            pipeline=run.parallel.pipeline,
            context=run.parallel.context,
            # The watchdog is first: it leaves every rank's stack.
            timeout_s=run.faults.stall_s + 120,
            generation_timeout_s=run.faults.generation_stall_s + 120,
        )
        self.progress = Progress(enabled=self.cluster.is_first_rank)
        if message := self.cluster.on_first_rank(lambda: open_folder(run)):
            self.progress.say(message)
        waits = dict.fromkeys(("generate", "judge", "evaluate"), run.faults.generation_stall_s)
        self.watchdog = Watchdog(
            run.folder / "heartbeat", self.cluster.rank, stall_s=run.faults.stall_s, phase_stall_s=waits
        )
        self.template = load_template(run.data.template)
        # Before the policy: a server that shares its GPU measures the memory that it may take.
        with (
            self.progress.stage("judge", "The judge's server")
            if run.judge.metarm == "managed"
            else nullcontext()
        ):
            num_askers = self.cluster.world_size // (run.generator.tensor or run.parallel.tensor)
            self.metarm = open_metarm(run.judge, self.cluster, run.folder, num_askers)
        with self.progress.stage("start", "Model and engine"):
            folder = Path(run.model.hf_path) if run.model.hf_path else self._new_model(pairs, vocab_size)
            from transformers import AutoTokenizer

            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            plan = plan_memory(run, self.cluster, folder)
            options = {
                "dtype": run.parallel.dtype,
                "sequence_parallel": run.parallel.sequence,
                "recompute": run.parallel.recompute,
                "kernels": run.kernels,
            }
            self.policy = Policy(folder, self.cluster, temperature=run.generator.temperature, **options)
            self.critic = None
            if run.has_critic:
                self.critic = Critic(run.critic.hf_path or folder, self.cluster, **options)
                _check_vocabulary(self.policy, self.critic)
            longest_answer = max(run.generator.max_new_tokens, run.eval.max_new_tokens)
            self.generator = Generator(
                self.policy,
                self.cluster,
                run.generator,
                max_model_len=run.data.max_prompt_tokens + longest_answer,
                eos_token_id=self.tokenizer.eos_token_id,
                kv_bytes=plan.kv_bytes,
                bucket_bytes=run.memory.bucket_mib << 20,
                can_sleep=plan.kv_sleep,
            )
            self.generator.verify()
            self.memory = MemoryPhases(plan, self.policy, self.generator, self.critic)
        self.stop = StopSignal()  # after the engine, which may take signals too

    def _new_model(self, pairs: Sequence[Pair], vocab_size: int) -> Path:
        folder = self.run.folder / "model"
        if self.cluster.is_first_rank:
            tokenizer = build_tokenizer(self._texts(pairs[:NUM_TOKENIZER_PAIRS]), folder, vocab_size)
            create_model_folder(folder, self.run.model, tokenizer, self.run.seed)
        dist.barrier()
        return folder

    def _texts(self, pairs: Sequence[Pair]) -> list[str]:
        """What the tokenizer of a fresh model learns from."""
        return [text for pair in pairs for text in (render(self.template, pair), pair.gt_judgment)]

    def _enter(self, stage: str) -> None:
        """A stage of a step begins: the watchdog notes it, and memory goes where it is needed."""
        self.watchdog.phase(stage)
        self.memory.enter(stage)

    def examples(self, pairs: Sequence[Pair]) -> list[Example]:
        """Tokenized pairs; those whose prompt is too long are left out and counted aloud."""
        examples, num_too_long = encode(pairs, self.tokenizer, self.template, self.run.data.max_prompt_tokens)
        if num_too_long:
            limit = self.run.data.max_prompt_tokens
            self.progress.say(
                f"{num_too_long} of {len(pairs)} pairs left out: over data.max_prompt_tokens={limit}"
            )
        return examples

    def _both_orders(self, examples: Sequence[Example]) -> list[Example]:
        """Each example followed by the same pair with its sides swapped, where that fits too."""
        swapped = {e.pair.id: e for e in self.examples([swap_sides(example.pair) for example in examples])}
        couples = [(e, swapped[e.pair.id]) for e in examples if e.pair.id in swapped]
        return [example for couple in couples for example in couple]

    def warm_start(self, name: str, examples: Sequence[Example], judgments: Sequence[str]) -> Path:
        """Supervised training on the given judgments; returns the exported folder."""
        answers: list[np.ndarray] = [encode_answer(text, self.tokenizer) for text in judgments]
        self.memory.before_training()
        sft = SFT(self.run, self.cluster, self.policy, examples, answers, self._enter)

        def step() -> dict[str, float]:
            metrics = sft.step()
            self.progress.step(loss=metrics["policy/loss"])
            return metrics

        self._train(name, "SFT warm start", sft, step, self.run.sft.num_steps)
        return self._export(name)

    def reinforce(
        self,
        name: str,
        start: Path,
        examples: Sequence[Example],
        reward: str,
        export_at: Sequence[int] = (),
    ) -> Path:
        """RL from a checkpoint with the `label` or the `r_align` reward; returns the exported folder.

        After each step in `export_at` the model as it is then goes to `hf_STEP` beside it.
        """
        run = replace(self.run, algo=replace(self.run.algo, reward=reward))
        if run.algo.both_orders:
            examples = self._both_orders(examples)
        task = GenRMTask(run, examples, self.metarm, self.generator.replicas)
        shown = ("reward/mean", "judge/l_acc", "judge/s_corr")

        def export(step: int) -> dict[str, float]:
            if step in export_at:
                self._export(name, f"hf_{step}")
            return {}

        return self._reinforce(name, f"RL, reward {reward}", start, run, examples, task, shown, export)

    def _reinforce(
        self,
        name: str,
        title: str,
        start: Path,
        run: Run,
        examples: Sequence[Prompted],
        task: Task,
        shown: Sequence[str],
        after_step: Callable[[int], dict[str, float]] = lambda step: {},
    ) -> Path:
        """RL from a checkpoint with a task's rewards.

        `shown` are the metrics that the progress line tells; `after_step` may add some, of the updated policy. A
        critic starts each stage afresh: from its own folder or, with all values 0, from the policy's start.
        """
        self.load(start)
        if self.critic is not None:
            self.critic.load(run.critic.hf_path or start)
        self.generator.weight_version = 0  # a stage counts its own updates
        self.memory.before_training()
        trainer = Trainer(
            run,
            self.cluster,
            self.policy,
            self.generator,
            self.tokenizer,
            examples,
            task,
            self._enter,
            self.critic,
        )

        def step() -> dict[str, float]:
            metrics, judged = trainer.step()
            if run.rollouts_every and metrics["step"] % run.rollouts_every == 0:
                self._write_rollouts(name, metrics["step"], judged, task)
            self.progress.step(**{key.split("/")[1]: metrics[key] for key in shown})
            return metrics | after_step(metrics["step"])

        self._train(name, title, trainer, step, run.num_steps)
        if self.critic is not None:
            self.watchdog.phase("export")
            self.critic.export(run.folder / name / "critic_hf")
        return self._export(name)

    def _train(
        self,
        name: str,
        title: str,
        stage: SFT | Trainer,
        step: Callable[[], dict[str, float]],
        num_steps: int,
    ) -> None:
        """Steps of a stage, from its newest checkpoint where there is one, to the end, with a checkpoint there."""
        config = self.run.checkpoint
        checkpoints = Checkpoints(
            self.run.folder / name / "checkpoints",
            self.cluster,
            stage.models,
            keep_last=config.keep_last,
            keep_best=config.keep_best,
        )
        if (state := checkpoints.restore()) is not None:
            stage.load_state_dict(state)
            self.progress.say(f"{name} goes on after step {stage.num_steps_done}")
        log = MetricsLog(
            self.run.folder / name / "metrics.jsonl",
            next_step=stage.num_steps_done + 1,
            enabled=self.cluster.is_first_rank,
        )
        with self.progress.stage(name, title, num_steps=num_steps - stage.num_steps_done):
            while (number := stage.num_steps_done + 1) <= num_steps:
                try:
                    metrics = step()
                except JudgeStopped:
                    if number > 1:
                        self.memory.before_training()  # the optimizer's state may be away
                        checkpoints.save(number - 1, stage.state_dict())
                        checkpoints.wait()
                        self.progress.say(f"saved step {number - 1} of {name}; the same command goes on")
                    raise
                metrics.pop("step")
                for kind, model in stage.models.items():
                    metrics[f"{kind}/num_skipped"] = model.num_skipped_updates
                metrics |= self.memory.metrics()
                log.write(number, metrics)
                self._check_skipped(name, stage, number)
                self._save_if_due(name, checkpoints, stage, number == num_steps, metrics)
            checkpoints.wait()

    def _save_if_due(
        self,
        name: str,
        checkpoints: Checkpoints,
        stage: SFT | Trainer,
        is_last: bool,
        metrics: dict[str, float],
    ) -> None:
        """A checkpoint every so many steps, after the last one, and when asked to stop, which then ends the run."""
        self.watchdog.phase("checkpoint")
        step, every = stage.num_steps_done, self.run.checkpoint_every
        go_on, is_written = self.cluster.all_true(not self.stop.requested, checkpoints.is_written)
        if is_written:
            checkpoints.wait()
        if (every and step % every == 0) or is_last or not go_on:
            checkpoints.save(step, stage.state_dict(), score=self._score(stage, metrics))
        if not go_on:
            checkpoints.wait()
            self._leave(f"asked to stop: saved step {step} of {name}; the same command goes on")

    def evaluate(self, name: str, tests: dict[str, list[Example]]) -> dict[str, dict]:
        """Metrics of the current weights on each test, by name; the judgments go to the run folder."""
        results = {}
        with self.progress.stage(f"evaluate_{name}", f"Evaluation of {name}", num_steps=len(tests)):
            for number, (test, examples) in enumerate(tests.items()):
                self._enter("evaluate")
                judgments = judge_pairs(
                    examples[: self.run.eval.num_pairs],
                    self.generator,
                    self.cluster,
                    self.tokenizer,
                    self.metarm,
                    self.run.eval,
                    seed=1_000_000 + 1000 * number + self.run.seed,
                )
                results[test] = summarise(judgments, self.run.eval, self.run.seed)
                if self.cluster.is_first_rank:
                    write_judgments(judgments, self.run.folder / name / f"judgments_{test}.jsonl")
                self.progress.step(l_acc=results[test]["l_acc"]["value"])
        return results

    def load(self, folder: Path) -> None:
        """Weights of a checkpoint into policy and, being the same memory, engine; proved at once."""
        self.policy.load(folder)
        self.generator.weights_updated()
        self.generator.verify()

    def _export(self, name: str, folder_name: str = "hf") -> Path:
        self.watchdog.phase("export")
        folder = self.run.folder / name / folder_name
        self.policy.export(folder)
        return folder

    def _write_rollouts(self, name: str, step: int, judged: list[Answered], task: Task) -> None:
        if not self.cluster.is_first_rank:
            return
        path = self.run.folder / name / "rollouts" / f"step{step:05d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for sample in judged:
                record = {
                    **task.record(sample),
                    "group": sample.group,
                    "text": sample.text,
                    "finish_reason": sample.rollout.finish_reason,
                    "weight_version": sample.rollout.weight_version,
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def _score(self, stage: SFT | Trainer, metrics: dict[str, float]) -> float | None:
        """What decides which checkpoint is best; the warm start has no such thing.

        Raises:
            UserError: no metric has the configured name.
        """
        config = self.run.checkpoint
        if isinstance(stage, SFT) or not config.keep_best:
            return None
        if config.watch not in metrics:
            raise UserError(
                f"checkpoint.watch={config.watch}: no such metric; there are {', '.join(metrics)}"
            )
        return metrics[config.watch]

    def _check_skipped(self, name: str, stage: SFT | Trainer, step: int) -> None:
        """Raises UserError when too many updates were skipped: the settings make training diverge."""
        limit = self.run.faults.max_skipped_updates
        for kind, model in stage.models.items():
            if (skipped := model.num_skipped_updates) > limit:
                optim = "critic.optim" if kind == "critic" else "optim"
                raise UserError(
                    f"{name}, step {step}: {skipped} updates of the {kind} were skipped for a loss or gradient that "
                    f"is not finite (faults.max_skipped_updates={limit}); a lower {optim}.lr or {optim}.clip_grad "
                    "may help"
                )

    def _leave(self, message: str) -> NoReturn:
        self.progress.say(message)
        self._end()
        raise Stopped

    def close(self) -> None:
        """Leave the job in order, when every rank is done; the run is complete."""
        self.cluster.on_first_rank(lambda: mark_finished(self.run))
        self._end()

    def _end(self) -> None:
        self.watchdog.close()
        dist.barrier()
        if self.metarm is not None:
            self.metarm.close()
        self.generator.close()
        cluster_module.stop()


def _check_vocabulary(policy: Policy, critic: Critic) -> None:
    """Raises UserError for a critic whose embedding does not know all of the policy's tokens."""
    known, wanted = critic.hf_config.vocab_size, policy.hf_config.vocab_size
    if known < wanted:
        raise UserError(f"{critic.folder}: the critic knows {known} tokens, the policy has {wanted}")
