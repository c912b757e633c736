"""One step of reinforcement learning: generate, judge, advantages, plan, update. The task judges."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch
from ralign.engine.algorithms.losses import ReinforceLoss, set_loss_rows, token_weights
from ralign.engine.algorithms.ppo import PPO
from ralign.engine.config.registry import ADVANTAGES
from ralign.engine.config.run import Run
from ralign.engine.data.examples import decode_answer
from ralign.engine.data.packing import PackedBatch, Sample, flops_cost, materialise, plan
from ralign.engine.data.sampler import PromptSampler
from ralign.engine.generator.generator import Rollout
from ralign.engine.judging.judge import JudgeStopped
from ralign.engine.policy.megatron_model import MegatronModel, UpdateStats
from ralign.engine.policy.policy import Policy
from ralign.engine.runtime.clock import Clock
from ralign.engine.runtime.cluster import Cluster
from ralign.engine.runtime.errors import UserError
from ralign.engine.training.session import Session
from ralign.engine.training.tasks import Response, RewardBatch, Task


class Trainer:
    """Trains a policy on a task; `step` is the algorithm."""

    def __init__(self, session: Session, run: Run, task: Task):
        """With `algo.both_orders`, examples 2i and 2i + 1 of the task are the two orders of one pair."""
        self.session, self.run, self.task = session, run, task
        self.cluster, self.policy, self.generator = session.cluster, session.policy, session.generator
        orders = run.algo.num_orders
        self.sampler = PromptSampler(len(task.examples) // orders, run.algo.num_prompts // orders, run.seed)
        self.loss = ReinforceLoss(run.algo, run.kernels.policy_loss)
        self.num_steps_done, self.has_verified, self.proof_is_due = 0, False, False
        assert (session.critic is not None) == run.has_critic
        self.models: dict[str, MegatronModel] = {"policy": self.policy}
        self.ppo = None
        if session.critic is not None:
            self.ppo = PPO(run, self.cluster, session.critic)
            self.models["critic"] = session.critic
        num_policy_steps = run.num_steps - (run.critic.warmup_steps if self.ppo else 0)
        self.policy.start_training(run.optim, num_policy_steps * run.algo.num_updates)
        self.reference_identity: str | None = None
        if run.algo.kl_coef:
            self.policy.freeze_reference()
            self.reference_identity = self.policy.weights_identity()

    def step(self) -> tuple[dict[str, float], list[Response]]:
        """One step; returns its metrics (the same on every rank but for times) and all ranks' judged responses."""
        memory, generator, clock = self.session.memory, self.generator, Clock(self.cluster.device)
        phase = partial(self.session.phase, clock=clock)
        with ExitStack() as judges:
            with phase("generate"):
                memory.offload()  # optimizer state and gradients leave the device
                generator.wake()  # the newest weights and the KV cache
                judges.enter_context(self.judging())  # judges on the same device use the room, too
                rollouts = self.generate()  # the task gets each rollout as soon as it is finished
            with phase("judge"):
                responses = self.judge(rollouts)
                rewards = self.task.reward(responses)
                judges.close()
        with phase("plan"):
            generator.sleep()
            memory.onload()  # starts here and overlaps with the forward passes
            updates = self.plan(responses, rewards)
        with phase("old_logprobs"):
            self.add_old_logprobs(updates)
        if self.ppo:
            with phase("values"):
                self.ppo.add_advantages(updates)
        policy_stats, critic_stats = [], []
        for micro_batches in updates:
            if self.ppo:
                with phase("critic"):
                    memory.wait()
                    critic_stats.append(self.ppo.learn(micro_batches))
                if self.ppo.is_warming_up(self.num_steps_done):
                    continue
            with phase("forward_backward"):
                self.policy.forward_backward(micro_batches, self.loss)
            with phase("optimizer"):
                memory.wait()
                policy_stats.append(self.policy.optimizer_step())
                generator.weights_updated()
        if policy_stats:
            self.verify_weights()
        self.num_steps_done += 1
        metrics = self.metrics(responses, rewards, policy_stats)
        return metrics | (self.ppo.metrics(critic_stats) if self.ppo else {}) | clock.times_s(), responses

    @contextmanager
    def judging(self) -> Iterator[None]:
        """The task's judges are awake. If one stops for good, the sampler goes back to the step's prompts."""
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
            self.generator.wake()
            self.proof_is_due = False
        algo, replicas, examples = self.run.algo, self.generator.replicas, self.task.examples
        orders = range(algo.num_orders)
        batch = [algo.num_orders * pair + order for pair in self.sampler.next_batch() for order in orders]
        mine = replicas.share_of(algo.num_prompts)

        def on_finished(index: int, rollout: Rollout) -> None:
            example = batch[mine[rollout.prompt_index]]
            self.task.on_response(index, example, self.text_of(example, rollout))

        rollouts = self.generator.generate(
            [examples[batch[group]].prompt_ids.tolist() for group in mine],
            num_samples=algo.num_samples,
            max_new_tokens=self.run.generator.max_new_tokens,
            temperature=self.run.generator.temperature,
            seed=hash((self.run.seed, self.num_steps_done, replicas.index)) % 2**31,
            on_finished=on_finished,
        )
        return [(batch[mine[r.prompt_index]], mine[r.prompt_index], r) for r in rollouts]

    def text_of(self, example: int, rollout: Rollout) -> str:
        opens_thinking = self.task.examples[example].opens_thinking
        return decode_answer(rollout.response_ids, self.session.tokenizer, opens_thinking=opens_thinking)

    def judge(self, rollouts: list[tuple[int, int, Rollout]]) -> list[Response]:
        """This engine's rollouts, judged, then gathered with those of all engines."""
        responses = [
            Response(example=example, group=group, rollout=rollout, text=self.text_of(example, rollout))
            for example, group, rollout in rollouts
        ]
        judged = self.task.judge(responses, self.num_steps_done)
        return [response for part in self.generator.replicas.all_gather_data(judged) for response in part]

    def plan(self, responses: list[Response], rewards: RewardBatch) -> list[list[PackedBatch]]:
        """This rank's micro-batches of each update; advantages and denominators are those of the global batch.

        Samples without a gradient are left out: of failed judges and, where the loss has no other term, of advantage 0,
        as in a group without spread. With a critic the micro-batches hold each sample's reward instead of its
        advantage.
        """
        algo = self.run.algo
        valid, per_sample = torch.from_numpy(rewards.valid), torch.from_numpy(rewards.values)
        if not self.ppo:
            groups = torch.tensor([response.group for response in responses])
            estimator = ADVANTAGES.load(algo.advantages)
            per_sample = estimator(per_sample, groups, valid, implementation=self.run.kernels.advantages)
        key = "rewards" if self.ppo else "advantages"
        lengths = torch.tensor([len(response.rollout.response_ids) for response in responses])
        learns = valid & (per_sample != 0) if not self.ppo and not self.loss.needs_all else valid
        updates = []
        for part in torch.arange(len(responses)).chunk(algo.num_updates):
            weights = token_weights(lengths[part], valid[part], kind=algo.normalisation)
            samples = [
                Sample(
                    prompt_ids=self.task.examples[responses[i].example].prompt_ids,
                    response_ids=responses[i].rollout.response_ids,
                    per_response_token={"rollout_logprobs": responses[i].rollout.logprobs},
                    per_sample={key: float(per_sample[i]), "weights": float(weight)},
                )
                for i, weight in zip(part.tolist(), weights, strict=True)
                if learns[i] or (i == part[0] and not learns[part].any())  # an update has at least one sample
            ]
            updates.append(self.pack(samples))
        return updates

    def pack(self, samples: list[Sample]) -> list[PackedBatch]:
        return pack(samples, self.cluster, self.policy, self.run.token_budget, needs_all=self.loss.needs_all)

    def add_old_logprobs(self, updates: list[list[PackedBatch]]) -> None:
        """Logprobs before the first update, and the reference's, on the micro-batches of the updates."""
        if len(updates) > 1:
            for batch, output in _with_outputs(self.policy, updates):
                batch.per_token["old_logprobs"] = output[0]
        if self.run.algo.kl_coef:
            with self.policy.as_reference():
                for batch, output in _with_outputs(self.policy, updates):
                    batch.per_token["ref_logprobs"] = output[0]

    def verify_weights(self) -> None:
        """Verify the engine's weights after the first update of this process, or after every one if so configured.

        After the first, the engine's computation is proved, too, when it generates next.
        """
        if not self.has_verified or self.run.generator.verify == "every":
            self.generator.verify()
            self.proof_is_due = self.proof_is_due or not self.has_verified
            self.has_verified = True

    def state_dict(self) -> dict[str, Any]:
        """The plain values of a checkpoint; the models have states of their own."""
        return {
            "num_steps_done": self.num_steps_done,
            "sampler": self.sampler.state_dict(),
            "weight_version": self.generator.weight_version,
            "reference": self.reference_identity,
            "judge": self.task.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, after the models were restored; the engine's weights are verified.

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

    def metrics(
        self, responses: list[Response], rewards: RewardBatch, policy_stats: list[UpdateStats]
    ) -> dict[str, float]:
        lengths = np.array([len(response.rollout.response_ids) for response in responses])
        groups = np.array([response.group for response in responses])
        parts = [
            {"loss": x.loss, "grad_norm": x.grad_norm, "lr": x.lr, **policy_metrics(x.metrics)}
            for x in policy_stats
        ]
        names = parts[0] if parts else ()  # a critic's warm-up leaves the policy as it is
        means = {f"policy/{name}": float(np.mean([part[name] for part in parts])) for name in names}
        return {
            "step": self.num_steps_done,
            "reward/mean": float(rewards.values[rewards.valid].mean())
            if rewards.valid.any()
            else float("nan"),
            "reward/flat_group_share": flat_group_share(rewards.values, groups, rewards.valid),
            **self.task.metrics(rewards),
            "policy/response_len": float(lengths.mean()),
            "policy/truncated_share": float(
                np.mean([r.rollout.finish_reason == "length" for r in responses])
            ),
            "policy/sampled_entropy": -float(
                np.concatenate([response.rollout.logprobs for response in responses]).mean()
            ),
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


def flat_group_share(values: np.ndarray, groups: np.ndarray, valid: np.ndarray) -> float:
    """Share of groups whose valid rewards are all equal: they teach nothing. All three [num_samples]."""
    ids = np.unique(groups)
    return float(np.mean([len(np.unique(values[(groups == group) & valid])) < 2 for group in ids]))


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
