"""The supervised warm start: learn given judgments, with the policy and the packing of RL.

It ends after `sft.num_steps` steps or, with `sft.competence`, as soon as the policy has that competence.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from ralign.engine.algorithms.losses import supervised_loss, token_weights
from ralign.engine.config.run import Run
from ralign.engine.data.packing import PackedBatch, Sample
from ralign.engine.data.sampler import PromptSampler
from ralign.engine.policy.megatron_model import MegatronModel
from ralign.engine.runtime.clock import Clock
from ralign.engine.runtime.errors import UserError
from ralign.engine.training.competence import Competence, Probe
from ralign.engine.training.session import Session
from ralign.engine.training.tasks import Prompt
from ralign.engine.training.trainer import pack


class SFT:
    """Trains a policy on given answers; `step` is the algorithm."""

    def __init__(
        self,
        session: Session,
        run: Run,
        examples: Sequence[Prompt],
        answers: Sequence[np.ndarray],
        probe: Probe | None = None,
    ):
        """`answers`: token ids of each example's answer, end token included. `probe`: for `sft.competence`.

        Raises:
            UserError: `sft.competence` is set and there is no probe.
        """
        self.session, self.run, self.examples, self.answers = session, run, examples, answers
        self.cluster, self.policy = session.cluster, session.policy
        self.sampler = PromptSampler(len(examples), run.sft.num_samples, run.seed)
        self.models: dict[str, MegatronModel] = {"policy": self.policy}
        self.num_steps_done = 0
        self.competence: Competence | None = None
        if run.sft.competence:
            if probe is None:
                raise UserError(
                    f"sft.competence={run.sft.competence}: these pairs have no probe; it is for generated pairs"
                )
            self.competence = Competence(session, probe, run.token_budget)
        self.is_complete = False
        self.policy.start_training(run.sft.optim, run.sft.num_steps)

    def step(self) -> tuple[dict[str, float], list]:
        """One step; returns its metrics (the same on every rank but for times), and no responses."""
        clock = Clock(self.cluster.device)
        phase = partial(self.session.phase, clock=clock)
        with phase("plan"):
            micro_batches = self.plan()
        with phase("forward_backward"):
            self.policy.forward_backward(micro_batches, supervised_loss)
        with phase("optimizer"):
            stats = self.policy.optimizer_step()
        self.num_steps_done += 1
        metrics = {"policy/loss": stats.loss, "policy/grad_norm": stats.grad_norm, "policy/lr": stats.lr}
        with phase("probe"):
            metrics |= self.probe()
        return {"step": self.num_steps_done} | metrics | clock.times_s(), []

    def probe(self) -> dict[str, float]:
        """Every `sft.probe_every` steps: the competence, which may complete the stage.

        Raises:
            UserError: the last step is done and the competence is too low.
        """
        sft, step = self.run.sft, self.num_steps_done
        if self.competence is None or (step % sft.probe_every and step != sft.num_steps):
            return {}
        value = self.competence.measure()
        self.is_complete = value >= sft.competence
        if step == sft.num_steps and not self.is_complete:
            raise UserError(
                f"sft.num_steps={step}: the warm start did not learn to judge: its competence is {value:.2f}, "
                f"sft.competence={sft.competence} is wanted; another seed, more steps or another sft.optim.lr may help"
            )
        return {"policy/competence": value}

    def plan(self) -> list[PackedBatch]:
        """This rank's micro-batches of the next answers; every token of the global batch has the same weight."""
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
        """The plain values of a checkpoint; the policy has a state of its own."""
        return {
            "num_steps_done": self.num_steps_done,
            "sampler": self.sampler.state_dict(),
            "is_complete": self.is_complete,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_steps_done = state["num_steps_done"]
        self.is_complete = state["is_complete"]
        self.sampler.load_state_dict(state["sampler"])
