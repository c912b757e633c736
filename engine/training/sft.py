"""The supervised warm start: learn given judgments, on the same policy and packing as RL."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ralign.engine.algorithms.losses import supervised_loss
from ralign.engine.config.run import Run
from ralign.engine.data.examples import Example
from ralign.engine.data.packing import PackedBatch, Sample
from ralign.engine.data.sampler import PromptSampler
from ralign.engine.policy.policy import Policy
from ralign.engine.runtime.clock import Clock
from ralign.engine.runtime.cluster import Cluster
from ralign.engine.training.trainer import pack
from ralign.kernels.token_weights import token_weights


class SFT:
    """Holds the parts of a warm start; `step` is the algorithm."""

    def __init__(
        self,
        run: Run,
        cluster: Cluster,
        policy: Policy,
        examples: Sequence[Example],
        answers: Sequence[np.ndarray],
        on_phase: Callable[[str], None] = lambda phase: None,
    ):
        """`answers`: token ids of the judgment to learn for each example, end token included.

        `on_phase` hears the name of each stage of a step as it begins.
        """
        self.on_phase = on_phase
        self.run, self.cluster, self.policy = run, cluster, policy
        self.examples, self.answers = examples, answers
        self.sampler = PromptSampler(len(examples), run.sft.num_samples, run.seed)
        self.models = {"policy": policy}
        self.num_steps_done = 0
        policy.start_training(run.sft.optim, run.sft.num_steps)

    def step(self) -> dict[str, float]:
        """One step; returns its metrics, the same on every rank but for times."""
        clock = Clock(self.cluster.device, self.on_phase)
        with clock.stage("plan"):
            micro_batches = self.plan()
        with clock.stage("forward_backward"):
            self.policy.forward_backward(micro_batches, supervised_loss)
        with clock.stage("optimizer"):
            stats = self.policy.optimizer_step()
        self.num_steps_done += 1
        metrics = {"policy/loss": stats.loss, "policy/grad_norm": stats.grad_norm, "policy/lr": stats.lr}
        return {"step": self.num_steps_done} | metrics | clock.times_s()

    def plan(self) -> list[PackedBatch]:
        """This rank's micro-batches of the next judgments; every token of the global batch weighs the same."""
        batch = self.sampler.next_batch()
        lengths = torch.tensor([len(self.answers[i]) for i in batch])
        weights = token_weights(lengths, torch.ones(len(batch), dtype=torch.bool), kind="token")
        samples = [
            Sample(
                prompt_ids=self.examples[i].prompt_ids,
                response_ids=self.answers[i],
                per_response_token={},
                per_sample={"weights": float(weight)},
            )
            for i, weight in zip(batch, weights, strict=True)
        ]
        return pack(samples, self.cluster, self.policy, self.run.token_budget)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the policy's own state."""
        return {"num_steps_done": self.num_steps_done, "sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_steps_done = state["num_steps_done"]
        self.sampler.load_state_dict(state["sampler"])
