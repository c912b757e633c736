"""One step of reinforcement learning: generate, judge, advantages, plan, learn. What is judged is the task's."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import psutil
import torch
from ralign.engine.algorithms.losses import ReinforceLoss, set_loss_rows
from ralign.engine.algorithms.ppo import PPO
from ralign.engine.config.run import Run
from ralign.engine.data.examples import decode_answers
from ralign.engine.data.packing import PackedBatch, Sample, flops_cost, materialise, plan
from ralign.engine.data.sampler import PromptSampler
from ralign.engine.generator.generator import Generator, Rollout
from ralign.engine.judging.judge import JudgeStopped
from ralign.engine.policy.critic import Critic
from ralign.engine.policy.megatron_model import TrainedModel, UpdateStats
from ralign.engine.policy.policy import Policy
from ralign.engine.runtime.clock import Clock
from ralign.engine.runtime.cluster import Cluster
from ralign.engine.runtime.errors import UserError
from ralign.engine.training.tasks import Answered, Paid, Prompted, Task
from ralign.kernels.advantages import group_advantages
from ralign.kernels.token_weights import token_weights


class Trainer:
    """Holds the parts of a run; `step` is the algorithm."""

    def __init__(
        self,
        run: Run,
        cluster: Cluster,
        policy: Policy,
        generator: Generator,
        tokenizer,
        examples: Sequence[Prompted],
        task: Task,
        on_phase: Callable[[str], None] = lambda phase: None,
        critic: Critic | None = None,
    ):
        """`task` judges the answers to `examples`; `critic` is there where `run.has_critic`.

        With `algo.both_orders`, `examples` 2i and 2i + 1 are the two orders of one pair.
        `on_phase` hears the name of each stage of a step as it begins.
        """
        self.on_phase = on_phase
        self.run, self.cluster, self.policy, self.generator = run, cluster, policy, generator
        self.tokenizer, self.examples, self.task = tokenizer, examples, task
        orders = run.algo.num_orders
        self.sampler = PromptSampler(len(examples) // orders, run.algo.num_prompts // orders, run.seed)
        self.loss = ReinforceLoss(run.algo, run.kernels.policy_loss)
        self.num_steps_done, self.has_verified, self.proof_is_due = 0, False, False
        assert (critic is not None) == run.has_critic
        self.ppo = PPO(run, cluster, critic) if critic is not None else None
        self.models: dict[str, TrainedModel] = {"policy": policy}
        self.models |= {"critic": critic} if critic is not None else {}
        num_policy_steps = run.num_steps - (run.critic.warmup_steps if self.ppo else 0)
        policy.start_training(run.optim, num_policy_steps * run.algo.num_updates)
        self.reference_identity: str | None = None
        if run.algo.kl_coef:
            policy.freeze_reference()
            self.reference_identity = policy.weights_identity()

    def step(self) -> tuple[dict[str, float], list[Answered]]:
        """One step; returns its metrics (the same on every rank but for times) and all ranks' judged rollouts."""
        clock = Clock(self.cluster.device, self.on_phase)
        with ExitStack() as judging:
            with clock.stage("generate"):  # which makes room on the device before judges that share it wake
                judging.enter_context(self.judging())
                rollouts = self.generate()  # the task hears of each as soon as it is finished
            with clock.stage("judge"):
                judged = self.judge(rollouts)
                rewards = self.task.reward(judged)
                judging.close()
        with clock.stage("plan"):
            updates = self.plan(judged, rewards)
        with clock.stage("old_logprobs"):
            self.add_old_logprobs(updates)
        if self.ppo:
            with clock.stage("values"):
                self.ppo.add_advantages(updates)
        learned, criticised = [], []
        for micro_batches in updates:
            if self.ppo:
                with clock.stage("critic"):
                    criticised.append(self.ppo.learn(micro_batches))
                if self.ppo.is_warming_up(self.num_steps_done):
                    continue
            with clock.stage("forward_backward"):
                self.policy.forward_backward(micro_batches, self.loss)
            with clock.stage("optimizer"):
                learned.append(self.policy.optimizer_step())
                self.generator.weights_updated()
        if learned:
            self.verify_weights()
        self.num_steps_done += 1
        metrics = self.metrics(judged, rewards, learned) | (self.ppo.metrics(criticised) if self.ppo else {})
        return metrics | clock.times_s(), judged

    @contextmanager
    def judging(self) -> Iterator[None]:
        """The task's judges are awake. If one stops for good in here, the step's prompts are still to come."""
        before = self.sampler.state_dict()
        try:
            with self.task.judging():
                yield
        except JudgeStopped:
            self.sampler.load_state_dict(before)
            raise

    def generate(self) -> list[tuple[int, int, Rollout]]:
        """(example, group, rollout) of this engine's share of the step's prompts."""
        if self.proof_is_due:  # here, where memory is the engine's
            self.generator.prove()
            self.proof_is_due = False
        algo, replicas = self.run.algo, self.generator.replicas
        orders = range(algo.num_orders)
        batch = [algo.num_orders * pair + order for pair in self.sampler.next_batch() for order in orders]
        mine = replicas.share_of(algo.num_prompts)

        def review(index: int, rollout: Rollout) -> None:
            text = decode_answers([rollout.response_ids], self.tokenizer)[0]
            self.task.finished(index, batch[mine[rollout.prompt_index]], text)

        rollouts = self.generator.generate(
            [self.examples[batch[group]].prompt_ids.tolist() for group in mine],
            num_samples=algo.num_samples,
            max_new_tokens=self.run.generator.max_new_tokens,
            temperature=self.run.generator.temperature,
            seed=hash((self.run.seed, self.num_steps_done, replicas.index)) % 2**31,
            on_finished=review,
        )
        return [(batch[mine[r.prompt_index]], mine[r.prompt_index], r) for r in rollouts]

    def judge(self, rollouts: list[tuple[int, int, Rollout]]) -> list[Answered]:
        """This engine's rollouts, judged; then everybody gets all of them."""
        texts = decode_answers([rollout.response_ids for *_, rollout in rollouts], self.tokenizer)
        samples = [
            Answered(example=example, group=group, rollout=rollout, text=text)
            for (example, group, rollout), text in zip(rollouts, texts, strict=True)
        ]
        judged = self.task.judge(samples)
        return [sample for part in self.generator.replicas.all_gather_data(judged) for sample in part]

    def plan(self, judged: list[Answered], rewards: Paid) -> list[list[PackedBatch]]:
        """This rank's micro-batches of each update; advantages and denominators are those of the global batch.

        Where a critic gives the advantages, the batches bring each sample's reward instead.
        """
        algo = self.run.algo
        valid, values = torch.from_numpy(rewards.valid), torch.from_numpy(rewards.values)
        learned_from = "rewards"
        if not self.ppo:
            learned_from = "advantages"
            groups = torch.tensor([sample.group for sample in judged])
            kernel = self.run.kernels.advantages
            values = group_advantages(values, groups, valid, kind=algo.advantages, implementation=kernel)
        lengths = torch.tensor([len(sample.rollout.response_ids) for sample in judged])
        updates = []
        for part in torch.arange(len(judged)).chunk(algo.num_updates):
            weights = token_weights(lengths[part], valid[part], kind=algo.normalisation)
            samples = [
                Sample(
                    prompt_ids=self.examples[judged[i].example].prompt_ids,
                    response_ids=judged[i].rollout.response_ids,
                    per_response_token={"rollout_logprobs": judged[i].rollout.logprobs},
                    per_sample={learned_from: float(values[i]), "weights": float(weight)},
                )
                for i, weight in zip(part.tolist(), weights, strict=True)
            ]
            updates.append(self.pack(samples))
        return updates

    def pack(self, samples: list[Sample]) -> list[PackedBatch]:
        return pack(samples, self.cluster, self.policy, self.run.token_budget, needs_all=self.loss.needs_all)

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
        """After the first update of this process always; after every one if so configured.

        After the first, what the engine computes is proved too, when it generates next.
        """
        if not self.has_verified or self.run.generator.verify == "every":
            self.generator.verify()
            self.proof_is_due = self.proof_is_due or not self.has_verified
            self.has_verified = True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the models' own states."""
        return {
            "num_steps_done": self.num_steps_done,
            "sampler": self.sampler.state_dict(),
            "weight_version": self.generator.weight_version,
            "reference": self.reference_identity,
            "judge": self.task.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, after the models were restored; the engine is proved to have them.

        Raises:
            UserError: the KL reference is not the one that the checkpoint was trained with.
        """
        if state["reference"] != self.reference_identity:
            raise UserError(
                f"the KL reference has other weights than the checkpoint's (identity {self.reference_identity}, "
                f"then {state['reference']}): start from the same model, or under another name"
            )
        self.num_steps_done = state["num_steps_done"]
        self.sampler.load_state_dict(state["sampler"])
        self.task.load_state_dict(state["judge"])
        self.generator.weights_updated()
        self.generator.weight_version = state["weight_version"]
        self.generator.verify()

    def metrics(self, judged: list[Answered], rewards: Paid, learned: list[UpdateStats]) -> dict[str, float]:
        lengths = np.array([len(sample.rollout.response_ids) for sample in judged])
        parts = [
            {"loss": x.loss, "grad_norm": x.grad_norm, "lr": x.lr, **policy_metrics(x.metrics)}
            for x in learned
        ]
        names = parts[0] if parts else ()  # a critic's warm-up leaves the policy as it is
        means = {f"policy/{name}": float(np.mean([part[name] for part in parts])) for name in names}
        return {
            "step": self.num_steps_done,
            "reward/mean": float(rewards.values[rewards.valid].mean())
            if rewards.valid.any()
            else float("nan"),
            **self.task.metrics(rewards),
            "policy/response_len": float(lengths.mean()),
            "policy/truncated_share": float(np.mean([s.rollout.finish_reason == "length" for s in judged])),
            "policy/weight_version": self.generator.weight_version,
            "memory/host_gib": psutil.Process().memory_info().rss / 2**30,
            **means,
        }


def pack(
    samples: list[Sample], cluster: Cluster, policy: Policy, token_budget: int, *, needs_all: bool = False
) -> list[PackedBatch]:
    """This rank's micro-batches of a global batch of samples; `needs_all` as in `set_loss_rows`."""
    layout = plan(
        [len(sample) for sample in samples],
        token_budget=token_budget,
        dp_size=cluster.dp_size,
        multiple=cluster.pp_size,  # so that no pipeline stage runs short of micro-batches
        pad_multiple=policy.pad_multiple,
        cost=flops_cost(policy.hf_config),
    )
    mine = layout.of_rank(cluster.dp_rank)
    batches = materialise(samples, mine, pad_multiple=policy.pad_multiple, device=cluster.device)
    for batch in batches:
        set_loss_rows(batch, samples, needs_all=needs_all)
    return batches


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
