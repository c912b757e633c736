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
from ralign.engine.checkpoint.settings import mark_finished, open_folder
from ralign.engine.config.run import Run
from ralign.engine.data.examples import Example, encode, encode_answer
from ralign.engine.data.pairs import Pair
from ralign.engine.data.prompts import load_template, render
from ralign.engine.data.swap import swap_all, swap_sides
from ralign.engine.data.tokenizer import build_tokenizer
from ralign.engine.generator.generator import Generator
from ralign.engine.judging.factory import open_metarm
from ralign.engine.policy.critic import Critic
from ralign.engine.policy.fresh import create_model_folder
from ralign.engine.policy.offload import TrainingState
from ralign.engine.policy.policy import Policy
from ralign.engine.report.progress import Progress
from ralign.engine.runtime import cluster as cluster_module
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.signals import Stopped, StopSignal
from ralign.engine.runtime.watchdog import Watchdog
from ralign.engine.training.evaluate import judge_pairs, summarise, write_judgments
from ralign.engine.training.loop import StageLoop
from ralign.engine.training.memory_phases import MemoryPhases, plan_memory
from ralign.engine.training.sft import SFT
from ralign.engine.training.tasks import Answered, GenRMTask, Prompted, Task
from ralign.engine.training.trainer import Trainer

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
            deterministic=run.deterministic,
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
                check_vocabulary(self.policy, self.critic)
            # Before the engine, whose KV cache takes the place of gradients that are away while generating.
            self.training = [
                TrainingState(model) for model in (self.policy, self.critic) if model is not None
            ]
            if plan.offload:
                for state in self.training:
                    state.leave()
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
            self.generator.prove()
            for part in (self.policy, self.critic, self.generator):
                if part is not None:
                    part.on_progress = self.watchdog.moves
            self.memory = MemoryPhases(plan, self.generator, self.training)
            self.memory.measure("start")
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
        limit, chat = self.run.data.max_prompt_tokens, self.run.data.chat
        examples, num_too_long = encode(pairs, self.tokenizer, self.template, limit, chat=chat)
        if num_too_long:
            self.progress.say(
                f"{num_too_long} of {len(pairs)} pairs left out: over data.max_prompt_tokens={limit}"
            )
        return examples

    def _both_orders(self, examples: Sequence[Example], *, reads_golden: bool) -> list[Example]:
        """Each example followed by the same pair with its sides swapped, where that fits too.

        Where golden judgments are read, pairs are left out, and counted aloud, whose golden judgment cannot surely be
        rewritten for the other order.
        """
        pairs = [example.pair for example in examples]
        turned, left_out = swap_all(pairs) if reads_golden else ([swap_sides(pair) for pair in pairs], {})
        if left_out:
            self.progress.say(
                f"{len(left_out)} of {len(pairs)} pairs left out: names in their golden judgments cannot surely be "
                "swapped (ralign-data validate tells which)"
            )
        swapped = {example.pair.id: example for example in self.examples(turned)}
        couples = [(example, swapped[example.pair.id]) for example in examples if example.pair.id in swapped]
        if not couples:
            raise UserError("algo.both_orders=True: no pair can be asked about in both orders")
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

        self._loop().train(name, "SFT warm start", sft, step, self.run.sft.num_steps)
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
            examples = self._both_orders(examples, reads_golden=self.metarm is not None)
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
            return metrics

        self._loop().train(name, title, trainer, step, run.num_steps, after_step)
        if self.critic is not None:
            self.watchdog.phase("export")
            self.critic.export(run.folder / name / "critic_hf")
        return self._export(name)

    def _loop(self) -> StageLoop:
        return StageLoop(
            self.run, self.cluster, self.memory, self.progress, self.watchdog, self.stop, self._leave
        )

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
        if not self.policy.has_weights_of(folder):  # a run's start was read when the model was made
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
        self.memory.close()
        self.generator.close()
        cluster_module.stop()


def check_vocabulary(policy: Policy, critic: Critic) -> None:
    """Raises UserError for a critic whose embedding does not know all of the policy's tokens."""
    known, wanted = critic.hf_config.vocab_size, policy.hf_config.vocab_size
    if known < wanted:
        raise UserError(f"{critic.folder}: the critic knows {known} tokens, the policy has {wanted}")
