"""The stages of an experiment on one policy and one generator: warm start, RL runs, evaluations.

One process keeps one Megatron model and one vLLM engine for the whole experiment; a stage that starts from a
checkpoint loads it into the same memory, which the engine reads too.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch.distributed as dist
from ralign.engine import cluster as cluster_module
from ralign.engine.checkpoint import create_model_folder
from ralign.engine.config import Run, save_config
from ralign.engine.data.examples import Example, encode, encode_answer
from ralign.engine.data.pairs import Pair
from ralign.engine.data.tokenizer import build_tokenizer
from ralign.engine.evaluate import judge_pairs, summarise, write_judgments
from ralign.engine.generator.generator import Generator
from ralign.engine.judging.metarm import MetaRM
from ralign.engine.judging.prompts import load_template, render
from ralign.engine.policy.policy import Policy
from ralign.engine.report.metrics_log import MetricsLog
from ralign.engine.report.progress import Progress
from ralign.engine.sft import run_sft
from ralign.engine.trainer import JudgedRollout, Trainer

NUM_TOKENIZER_PAIRS = 4000  # enough of a generated world to see every word


class Experiment:
    """A run folder, a job, a policy with its generator; every method is collective over all ranks."""

    def __init__(self, run: Run, pairs: Sequence[Pair], metarm: MetaRM | None, *, vocab_size: int):
        """Start the job; make tokenizer and fresh model from `pairs` unless `run.model.hf_path` names one."""
        self.run, self.metarm = run, metarm
        self.cluster = cluster_module.start(tensor=run.parallel.tensor, pipeline=run.parallel.pipeline)
        self.progress = Progress(enabled=self.cluster.is_first_rank)
        self.template = load_template(run.data.template)
        with self.progress.stage("start", "Model and engine"):
            folder = Path(run.model.hf_path) if run.model.hf_path else self._new_model(pairs, vocab_size)
            from transformers import AutoTokenizer

            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.policy = Policy(
                folder,
                self.cluster,
                dtype=run.parallel.dtype,
                sequence_parallel=run.parallel.sequence,
                recompute=run.parallel.recompute,
                temperature=run.generator.temperature,
            )
            longest_answer = max(run.generator.max_new_tokens, run.eval.max_new_tokens)
            self.generator = Generator(
                self.policy,
                self.cluster,
                run.generator,
                max_model_len=run.data.max_prompt_tokens + longest_answer,
                eos_token_id=self.tokenizer.eos_token_id,
            )
            self.generator.verify()

    def _new_model(self, pairs: Sequence[Pair], vocab_size: int) -> Path:
        folder = self.run.folder / "model"
        if self.cluster.is_first_rank:
            save_config(self.run, self.run.folder / "config.json")
            seen = pairs[:NUM_TOKENIZER_PAIRS]
            texts = [text for pair in seen for text in (render(self.template, pair), pair.gt_judgment)]
            tokenizer = build_tokenizer(texts, folder, vocab_size)
            create_model_folder(folder, self.run.model, tokenizer, self.run.seed)
        dist.barrier()
        return folder

    def examples(self, pairs: Sequence[Pair]) -> list[Example]:
        """Tokenized pairs; those whose prompt is too long are left out and counted aloud."""
        examples, num_too_long = encode(pairs, self.tokenizer, self.template, self.run.data.max_prompt_tokens)
        if num_too_long:
            limit = self.run.data.max_prompt_tokens
            self.progress.say(
                f"{num_too_long} of {len(pairs)} pairs left out: over data.max_prompt_tokens={limit}"
            )
        return examples

    def warm_start(self, name: str, examples: Sequence[Example], judgments: Sequence[str]) -> Path:
        """Supervised training on the given judgments; returns the exported folder."""
        answers: list[np.ndarray] = [encode_answer(text, self.tokenizer) for text in judgments]
        log = self._log(name)

        def report(metrics: dict[str, float]) -> None:
            log.write(metrics.pop("step"), metrics)
            self.progress.step(loss=metrics["policy/loss"])

        with self.progress.stage(name, "SFT warm start", num_steps=self.run.sft.num_steps):
            run_sft(self.run, self.cluster, self.policy, examples, answers, report)
            return self._export(name)

    def reinforce(self, name: str, start: Path, examples: Sequence[Example], reward: str) -> Path:
        """RL from a checkpoint with the `label` or the `r_align` reward; returns the exported folder."""
        run = replace(self.run, algo=replace(self.run.algo, reward=reward))
        self.load(start)
        trainer = Trainer(
            run, self.cluster, self.policy, self.generator, self.tokenizer, examples, self.metarm
        )
        log = self._log(name)
        with self.progress.stage(name, f"RL, reward {reward}", num_steps=run.num_steps):
            for _ in range(run.num_steps):
                metrics, judged = trainer.step()
                step = metrics.pop("step")
                log.write(step, metrics)
                if run.rollouts_every and step % run.rollouts_every == 0:
                    self._write_rollouts(name, step, judged, examples)
                shown = {
                    key.split("/")[1]: metrics[key] for key in ("reward/mean", "judge/l_acc", "judge/s_corr")
                }
                self.progress.step(**shown)
            return self._export(name)

    def evaluate(self, name: str, tests: dict[str, list[Example]]) -> dict[str, dict]:
        """Metrics of the current weights on each test, by name; the judgments go to the run folder."""
        results = {}
        with self.progress.stage(f"evaluate_{name}", f"Evaluation of {name}", num_steps=len(tests)):
            for number, (test, examples) in enumerate(tests.items()):
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

    def _log(self, name: str) -> MetricsLog:
        return MetricsLog(self.run.folder / name / "metrics.jsonl", enabled=self.cluster.is_first_rank)

    def _export(self, name: str) -> Path:
        folder = self.run.folder / name / "hf"
        self.policy.export(folder)
        return folder

    def _write_rollouts(
        self, name: str, step: int, judged: list[JudgedRollout], examples: Sequence[Example]
    ) -> None:
        if not self.cluster.is_first_rank:
            return
        path = self.run.folder / name / "rollouts" / f"step{step:05d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for sample in judged:
                record = {
                    "id": examples[sample.example].pair.id,
                    "group": sample.group,
                    "text": sample.text,
                    "verdict": sample.verdict,
                    "outcome": sample.outcome.value,
                    "finish_reason": sample.rollout.finish_reason,
                    "weight_version": sample.rollout.weight_version,
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Leave the job in order, when every rank is done."""
        dist.barrier()
        self.generator.close()
        cluster_module.stop()
