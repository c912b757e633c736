"""One step of reinforcement learning on a GenRM: generate, judge, advantages, plan, learn."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from ralign.engine.cluster import Cluster
from ralign.engine.config import Run
from ralign.engine.data.examples import Example, decode_answers
from ralign.engine.data.sampler import PromptSampler
from ralign.engine.generator.generator import Generator, Rollout
from ralign.engine.judging.metarm import MetaRM, Outcome
from ralign.engine.judging.verdicts import parse_verdict
from ralign.engine.losses import reinforce_loss
from ralign.engine.packing import PackedBatch, Sample, materialise, plan
from ralign.engine.policy.policy import Policy
from ralign.engine.rewards import Rewards, ask_metarm, score
from ralign.kernels.advantages import group_advantages
from ralign.kernels.policy_loss import token_weights


@dataclass(kw_only=True, slots=True)
class JudgedRollout:
    """A rollout, the example it answers, and what the judges made of it."""

    example: int  # index into the trainer's examples
    group: int  # position of its prompt in the global batch
    rollout: Rollout
    text: str
    verdict: str | None
    outcome: Outcome


class Trainer:
    """Holds the parts of a run; `step` is the algorithm."""

    def __init__(
        self,
        run: Run,
        cluster: Cluster,
        policy: Policy,
        generator: Generator,
        tokenizer,
        examples: Sequence[Example],
        metarm: MetaRM | None,
    ):
        """`metarm` may be None where the reward is the label's alone; then S-Corr is not watched either."""
        self.run, self.cluster, self.policy, self.generator = run, cluster, policy, generator
        self.tokenizer, self.examples, self.metarm = tokenizer, examples, metarm
        self.sampler = PromptSampler(len(examples), run.algo.num_prompts, run.seed)
        self.loss = reinforce_loss(run.algo)
        self.num_steps_done = 0
        policy.start_training(run.optim, run.num_steps * run.algo.num_updates)
        if run.algo.kl_coef:
            policy.freeze_reference()

    def step(self) -> tuple[dict[str, float], list[JudgedRollout]]:
        """One step; returns its metrics (the same on every rank but for times) and all ranks' judged rollouts."""
        clock = Clock()
        with clock.stage("generate"):
            rollouts = self.generate()
        with clock.stage("judge"):
            judged = self.judge(rollouts)
            rewards = self.reward(judged)
        with clock.stage("plan"):
            updates = self.plan(judged, rewards)
        with clock.stage("old_logprobs"):
            self.add_old_logprobs(updates)
        learned = []
        for micro_batches in updates:
            with clock.stage("forward_backward"):
                loss, sums = self.policy.forward_backward(micro_batches, self.loss)
            with clock.stage("optimizer"):
                grad_norm, lr = self.policy.optimizer_step()
                self.generator.weights_updated()
            learned.append({"loss": loss, "grad_norm": grad_norm, "lr": lr, **policy_metrics(sums)})
        self.verify_weights()
        self.num_steps_done += 1
        return self.metrics(judged, rewards, learned) | clock.times_s(), judged

    def generate(self) -> list[tuple[int, int, Rollout]]:
        """(example, group, rollout) of this data-parallel rank's share of the step's prompts."""
        algo, cluster = self.run.algo, self.cluster
        batch = self.sampler.next_batch()
        share = algo.num_prompts // cluster.dp_size
        mine = range(cluster.dp_rank * share, (cluster.dp_rank + 1) * share)
        rollouts = self.generator.generate(
            [self.examples[batch[group]].prompt_ids.tolist() for group in mine],
            num_samples=algo.num_samples,
            max_new_tokens=self.run.generator.max_new_tokens,
            temperature=self.run.generator.temperature,
            seed=hash((self.run.seed, self.num_steps_done, cluster.dp_rank)) % 2**31,
        )
        return [(batch[mine[r.prompt_index]], mine[r.prompt_index], r) for r in rollouts]

    def judge(self, rollouts: list[tuple[int, int, Rollout]]) -> list[JudgedRollout]:
        """Read verdicts and ask the MetaRM about this rank's rollouts; then everybody gets all of them."""
        texts = decode_answers([rollout.response_ids for *_, rollout in rollouts], self.tokenizer)
        verdicts = [parse_verdict(text) for text in texts]
        pairs = [self.examples[example].pair for example, *_ in rollouts]
        outcomes = [Outcome.SKIPPED] * len(texts)
        if self.metarm is not None:
            goldens, labels = [pair.gt_judgment for pair in pairs], [pair.gt_label for pair in pairs]
            outcomes = ask_metarm(self.metarm, texts, goldens, verdicts, labels)
        judged = [
            JudgedRollout(
                example=example, group=group, rollout=rollout, text=text, verdict=verdict, outcome=outcome
            )
            for (example, group, rollout), text, verdict, outcome in zip(
                rollouts, texts, verdicts, outcomes, strict=True
            )
        ]
        return [sample for part in self.cluster.all_gather_data(judged) for sample in part]

    def reward(self, judged: list[JudgedRollout]) -> Rewards:
        return score(
            self.run.algo.reward,
            [sample.verdict for sample in judged],
            [self.examples[sample.example].pair.gt_label for sample in judged],
            [sample.outcome for sample in judged] if self.metarm is not None else None,
            invalid_reward=self.run.algo.invalid_reward,
        )

    def plan(self, judged: list[JudgedRollout], rewards: Rewards) -> list[list[PackedBatch]]:
        """This rank's micro-batches of each update; advantages and denominators are those of the global batch."""
        algo = self.run.algo
        valid = torch.from_numpy(rewards.valid)
        groups = torch.tensor([sample.group for sample in judged])
        advantages = group_advantages(torch.from_numpy(rewards.values), groups, valid, kind=algo.advantages)
        lengths = torch.tensor([len(sample.rollout.response_ids) for sample in judged])
        updates = []
        for part in torch.arange(len(judged)).chunk(algo.num_updates):
            weights = token_weights(lengths[part], valid[part], kind=algo.normalisation)
            samples = [
                Sample(
                    prompt_ids=self.examples[judged[i].example].prompt_ids,
                    response_ids=judged[i].rollout.response_ids,
                    per_response_token={"rollout_logprobs": judged[i].rollout.logprobs},
                    per_sample={"advantages": float(advantages[i]), "weights": float(weight)},
                )
                for i, weight in zip(part.tolist(), weights, strict=True)
            ]
            updates.append(self.pack(samples))
        return updates

    def pack(self, samples: list[Sample]) -> list[PackedBatch]:
        return pack(samples, self.cluster, self.policy, self.run.token_budget)

    def add_old_logprobs(self, updates: list[list[PackedBatch]]) -> None:
        """Logprobs before the first update, and the reference's, on the very batches that will be learned."""
        if len(updates) > 1:
            for batch, output in _with_outputs(self.policy, updates):
                batch.per_token["old_logprobs"] = output[0]
        if self.run.algo.kl_coef:
            with self.policy.as_reference():
                for batch, output in _with_outputs(self.policy, updates):
                    batch.per_token["ref_logprobs"] = output[0]

    def verify_weights(self) -> None:
        """After the first update of the run always; after every one if so configured."""
        if self.num_steps_done == 0 or self.run.generator.verify == "every":
            self.generator.verify()

    def metrics(self, judged: list[JudgedRollout], rewards: Rewards, learned: list[dict]) -> dict[str, float]:
        lengths = np.array([len(sample.rollout.response_ids) for sample in judged])
        means = {f"policy/{name}": float(np.mean([part[name] for part in learned])) for name in learned[0]}
        return {
            "step": self.num_steps_done,
            "reward/mean": float(rewards.values[rewards.valid].mean())
            if rewards.valid.any()
            else float("nan"),
            "reward/num_invalid": rewards.num_invalid,
            "judge/l_acc": rewards.l_acc,
            "judge/s_corr": rewards.s_corr,
            "judge/f_score": rewards.f_score if self.metarm is not None else float("nan"),
            "judge/num_failed": rewards.num_judge_failed,
            "policy/response_len": float(lengths.mean()),
            "policy/truncated_share": float(np.mean([s.rollout.finish_reason == "length" for s in judged])),
            "policy/weight_version": self.generator.weight_version,
            "memory/host_gib": psutil.Process().memory_info().rss / 2**30,
            **means,
        }


def pack(samples: list[Sample], cluster: Cluster, policy: Policy, token_budget: int) -> list[PackedBatch]:
    """This rank's micro-batches of a global batch of samples."""
    layout = plan([len(sample) for sample in samples], token_budget=token_budget, dp_size=cluster.dp_size)
    return [
        materialise(samples, indices, pad_multiple=policy.pad_multiple).to(cluster.device)
        for indices in layout.micro_batches[cluster.dp_rank]
    ]


def policy_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Per-token means of the loss's sums; extremes as they are."""
    num_tokens = max(sums["num_tokens"], 1.0)
    means = {
        name.removesuffix("_sum"): value / num_tokens for name, value in sums.items() if name.endswith("_sum")
    }
    return means | {name: value for name, value in sums.items() if not name.endswith("_sum")}


def _with_outputs(policy: Policy, updates: list[list[PackedBatch]]):
    for micro_batches in updates:
        yield from zip(micro_batches, policy.logprobs(micro_batches), strict=True)


class Clock:
    """Wall time of each stage of a step; what no stage covers is `other`."""

    def __init__(self):
        self._start = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._stages[name] = self._stages.get(name, 0.0) + time.perf_counter() - start

    def times_s(self) -> dict[str, float]:
        total = time.perf_counter() - self._start
        stages = self._stages | {"other": total - sum(self._stages.values()), "total": total}
        return {f"time_s/{name}": seconds for name, seconds in stages.items()}
