"""The supervised warm start: learn given judgments, on the same policy and packing as RL."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from ralign.engine.cluster import Cluster
from ralign.engine.config import Run
from ralign.engine.data.examples import Example
from ralign.engine.data.sampler import PromptSampler
from ralign.engine.losses import supervised_loss
from ralign.engine.packing import Sample
from ralign.engine.policy.policy import Policy
from ralign.engine.trainer import Clock, pack
from ralign.kernels.policy_loss import token_weights


def run_sft(
    run: Run,
    cluster: Cluster,
    policy: Policy,
    examples: Sequence[Example],
    answers: Sequence[np.ndarray],
    report: Callable[[dict[str, float]], None],
) -> None:
    """Train for `run.sft.num_steps` steps; `report` gets each step's metrics.

    Args:
        answers: token ids of the judgment to learn for each example, end token included.
    """
    sampler = PromptSampler(len(examples), run.sft.num_samples, run.seed)
    policy.start_training(run.sft.optim, run.sft.num_steps)
    for step in range(1, run.sft.num_steps + 1):
        clock = Clock()
        with clock.stage("plan"):
            batch = sampler.next_batch()
            lengths = torch.tensor([len(answers[i]) for i in batch])
            weights = token_weights(lengths, torch.ones(len(batch), dtype=torch.bool), kind="token")
            samples = [
                Sample(
                    prompt_ids=examples[i].prompt_ids,
                    response_ids=answers[i],
                    per_response_token={},
                    per_sample={"weights": float(weight)},
                )
                for i, weight in zip(batch, weights, strict=True)
            ]
            micro_batches = pack(samples, cluster, policy, run.token_budget)
        with clock.stage("forward_backward"):
            loss, _ = policy.forward_backward(micro_batches, supervised_loss)
        with clock.stage("optimizer"):
            grad_norm, lr = policy.optimizer_step()
        report(
            {"step": step, "policy/loss": loss, "policy/grad_norm": grad_norm, "policy/lr": lr}
            | clock.times_s()
        )
