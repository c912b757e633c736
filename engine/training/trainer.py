"""One step of reinforcement learning: generate, judge, advantages, plan, update. The task judges."""

from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch
from ralign.engine.algorithms.grouping import grouped
from ralign.engine.algorithms.losses import ReinforceLoss, set_loss_rows, token_weights
from ralign.engine.algorithms.mismatch import add_quantile
from ralign.engine.algorithms.ppo import PPO
from ralign.engine.config.registry import ADVANTAGES
from ralign.engine.config.run import Run
from ralign.engine.data.packing import PackedBatch, Sample, flops_cost, materialise, plan
from ralign.engine.policy.megatron_model import MegatronModel, UpdateStats
from ralign.engine.policy.policy import Policy
from ralign.engine.runtime.clock import Clock
from ralign.engine.runtime.cluster import Cluster
from ralign.engine.runtime.errors import UserError
from ralign.engine.training.sampling import Sampling, StepSamples, flat_units
from ralign.engine.training.session import Session
from ralign.engine.training.tasks import Response, Task
from torch import Tensor


class Trainer:
    """Trains a policy on a task; `step` is the algorithm."""

    is_complete = False  # only its number of steps ends it

    def __init__(self, session: Session, run: Run, task: Task):
        """With `algo.partner`, examples 2i and 2i + 1 of the task are a pair and its twin."""
        self.session, self.run, self.task = session, run, task
        self.cluster, self.policy, self.generator = session.cluster, session.policy, session.generator
        self.sampling = Sampling(session, run, task)
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
                judges.enter_context(self.sampling.judging())  # judges on the same device use the room, too
                self.prove_if_due()
            samples = self.sampling.collect(self.num_steps_done, phase)
            with phase("judge"):
                judges.close()
        with phase("plan"):
            generator.sleep()
            memory.onload()  # starts here and overlaps with the forward passes
            updates = self.plan(samples)
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
                policy_stats.append(self.policy.optimizer_step(self.objection))
                generator.weights_updated()
            if reason := policy_stats[-1].skipped:
                self.session.progress.say(f"step {self.num_steps_done + 1}: update skipped: {reason}")
        if policy_stats:
            self.verify_weights()
        self.num_steps_done += 1
        critic_metrics = self.ppo.metrics(critic_stats) if self.ppo else {}
        return self.metrics(samples, policy_stats) | critic_metrics | clock.times_s(), samples.responses

    def prove_if_due(self) -> None:
        """Prove the engine's computation, here, where memory is the engine's."""
        if self.proof_is_due:
            self.generator.prove()
            self.generator.wake()
            self.proof_is_due = False

    def objection(self, metrics: dict[str, float]) -> str:
        """Why an update with these sums of the loss must not be made; "" if it may."""
        bound, num_tokens = self.run.algo.max_rollout_kl, metrics["num_tokens"]
        if not num_tokens:  # Adam's momentum would move the weights
            return "no sample has a valid reward"
        if bound is None or (kl := metrics["rollout_k3_sum"] / num_tokens) <= bound:
            return ""
        return f"the KL divergence between engine and trainer is {kl:.3g} a token (algo.max_rollout_kl={bound:g})"

    def plan(self, samples: StepSamples) -> list[list[PackedBatch]]:
        """This rank's micro-batches of each update; advantages and denominators are those of the global batch.

        Samples without a gradient are left out: of failed judges and, where the loss has no other term, of advantage 0,
        as in a group without spread. With a critic the micro-batches hold each sample's reward instead of its
        advantage.
        """
        algo = self.run.algo
        responses = [samples.responses[i] for i in samples.learned]
        valid = torch.from_numpy(samples.rewards.valid[samples.learned])
        per_sample = self.advantages(samples)
        key = "rewards" if self.ppo else "advantages"
        lengths = torch.tensor([response.num_tokens for response in responses])
        learns = valid & (per_sample != 0) if not self.ppo and not self.loss.needs_all else valid
        updates = []
        for part in torch.arange(len(responses)).chunk(algo.num_updates):
            weights = token_weights(
                lengths[part],
                valid[part],
                kind=algo.loss_normalisation,
                max_new_tokens=self.run.generator.max_new_tokens,
            )
            chosen = [
                Sample(
                    prompt_ids=self.task.examples[responses[i].example].prompt_ids,
                    response_ids=responses[i].rollout.response_ids,
                    per_response_token={"rollout_logprobs": responses[i].rollout.logprobs},
                    per_sample={key: float(per_sample[i]), "weights": float(weight)},
                )
                for i, weight in zip(part.tolist(), weights, strict=True)
                if learns[i] or (i == part[0] and not learns[part].any())  # an update has at least one sample
            ]
            updates.append(self.pack(chosen))
        return updates

    def advantages(self, samples: StepSamples) -> Tensor:
        """[num_learned] float32 of the learned samples: advantages or, with a critic, rewards."""
        algo, rewards = self.run.algo, samples.rewards
        valid = torch.from_numpy(rewards.valid[samples.learned])
        values = torch.from_numpy(rewards.values[samples.learned])
        if not self.ppo:
            groups = torch.tensor([samples.responses[i].group for i in samples.learned])
            estimator = ADVANTAGES.load(algo.advantages)
            if getattr(estimator, "takes_parts", False):
                values = torch.from_numpy(rewards.parts[samples.learned])
            implementation = self.run.kernels.advantages
            values = grouped(estimator, algo.group, values, groups, valid, implementation=implementation)
        if rewards.bonus is not None:
            values = values + torch.from_numpy(rewards.bonus[samples.learned])
        return values

    def pack(self, samples: list[Sample]) -> list[PackedBatch]:
        return pack(samples, self.cluster, self.policy, self.run.token_budget, needs_all=self.loss.needs_all)

    def add_old_logprobs(self, updates: list[list[PackedBatch]]) -> None:
        """Logprobs before the first update, and the reference's, on the micro-batches of the updates."""
        if len(updates) > 1 or self.run.algo.kl_in_reward:
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
            "sampler": self.sampling.sampler.state_dict(),
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
        self.sampling.sampler.load_state_dict(state["sampler"])
        self.task.load_state_dict(state["judge"])
        self.generator.weights_updated()
        self.generator.weight_version = state["weight_version"]
        self.generator.verify()

    def metrics(self, samples: StepSamples, policy_stats: list[UpdateStats]) -> dict[str, float]:
        responses, rewards = samples.responses, samples.rewards
        lengths = np.array([response.num_tokens for response in responses])
        flat = flat_units([response.group for response in responses], rewards, groups_per_unit=1)
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
            "reward/flat_group_share": float(flat.mean()),
            "reward/num_rounds": samples.num_rounds,
            **self.task.metrics(rewards),
            "policy/response_len": float(lengths.mean()),
            "policy/truncated_share": float(np.mean([response.is_cut for response in responses])),
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


def policy_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Per-token means of the loss's sums; extremes as they are; a quantile in place of its counts."""
    sums = add_quantile(sums)
    num_tokens = max(sums["num_tokens"], 1.0)
    means = {
        name.removesuffix("_sum"): value / num_tokens for name, value in sums.items() if name.endswith("_sum")
    }
    return means | {name: value for name, value in sums.items() if not name.endswith("_sum")}


def _with_outputs(policy: Policy, updates: list[list[PackedBatch]]):
    for micro_batches in updates:
        yield from zip(micro_batches, policy.logprobs(micro_batches), strict=True)
