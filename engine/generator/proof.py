"""Proves by computation that the engine uses the trainer's weights and agrees with the trainer.

Checksums compare parameters. They do not detect a layer that reads another tensor: some kernels pack a copy of the
weight when the model is loaded, and never update it. So all weights are scrambled in the trainer's memory, and each
layer's output is compared with the product of its parameter: a stale copy then gives an unrelated result, however small
the updates of training are. In addition, the trainer scores a few short sampled answers: the whole computation
(positions, norms, head, temperature) must agree.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from ralign.engine.data.packing import Sample, materialise, plan
from ralign.engine.generator.replicas import Replicas
from ralign.engine.generator.vllm_internals import layer_errors
from ralign.engine.policy.policy import Policy

NUM_PROMPTS, PROMPT_TOKENS = 4, 8
NEW_TOKENS = 8
# Largest mean difference of a sampled token's logprob, by the type of the weights. Seen on CPU, on tokens drawn at
# random: 2e-7 in fp32; in bf16 0.001 (tiny models) to 0.07 (SmolLM2-135M). Other weights give 0.2 to several. On CUDA
# the engine's attention in fp32 multiplies in TF32.
LOGPROB_BOUNDS = {("fp32", "cpu"): 1e-4, ("fp32", "cuda"): 1e-2, ("bf16", "cpu"): 0.2, ("bf16", "cuda"): 0.2}
# Of a layer's product, over its largest entry. Seen on CPU, SmolLM2-135M in bf16: 0 where a layer reads its parameter,
# 0.79 to 1.64 where it reads a stale copy.
LAYER_BOUND = 0.05


class Engine(Protocol):
    """The part of the generator that the proof uses."""

    llm: Any
    replicas: Replicas

    def generate(self, prompts, *, num_samples, max_new_tokens, temperature, seed) -> list: ...

    def weights_changed(self) -> None: ...

    def sync_weights(self) -> None: ...


def prove_computation(policy: Policy, generator: Engine) -> float:
    """Raises unless the engine agrees with the trainer and uses its weights; collective over all ranks.

    Weights, random states and the weight version are restored.

    Returns:
        mean |difference| of a sampled token's logprob.

    Raises:
        RuntimeError: they differ.
    """
    dtype = "bf16" if policy.gpt.config.bf16 else "fp32"
    bound = LOGPROB_BOUNDS[dtype, policy.cluster.device.type]
    difference = logprob_difference(policy, generator)
    if not difference <= bound:  # NaN is no proof
        raise RuntimeError(
            f"engine and trainer differ: logprobs of sampled tokens by {difference:.2g} on average, where {bound:g} is "
            f"allowed in {dtype}"
        )
    with scrambled(policy, generator):
        generator.sync_weights()
        errors = generator.llm.apply_model(layer_errors)[0]
    stale = [name for name, error in errors.items() if not error <= LAYER_BOUND]
    if stale:
        raise RuntimeError(
            f"the engine computes with weights of its own, not with the trainer's, in {len(stale)} of {len(errors)} "
            f"layers, first {stale[0]} (relative error {errors[stale[0]]:.2g} after a change of the weights)"
        )
    return difference


def logprob_difference(policy: Policy, generator: Engine) -> float:
    """Mean |difference| over the tokens of a few sampled answers of every engine; the same on every rank."""
    cluster, replicas = policy.cluster, generator.replicas
    rng = np.random.default_rng(0)
    vocabulary = policy.hf_config.vocab_size
    prompts = [rng.integers(0, vocabulary, PROMPT_TOKENS).tolist() for _ in range(NUM_PROMPTS)]
    rollouts = generator.generate(
        prompts, num_samples=1, max_new_tokens=NEW_TOKENS, temperature=policy.temperature, seed=0
    )
    samples = [
        Sample(
            prompt_ids=np.asarray(prompts[rollout.prompt_index]),
            response_ids=rollout.response_ids,
            per_response_token={"rollout_logprobs": rollout.logprobs},
            per_sample={},
        )
        for rollout in rollouts
    ]
    every = [sample for part in replicas.all_gather_data(samples) for sample in part]
    # One micro-batch of all engines' answers, the same on every rank, whatever the layout.
    layout = plan([len(sample) for sample in every], token_budget=sum(map(len, every)), dp_size=1)
    batches = materialise(every, layout.of_rank(0), pad_multiple=policy.pad_multiple, device=cluster.device)
    total, num_tokens = 0.0, 0
    for batch, output in zip(batches, policy.logprobs(batches), strict=True):
        difference = (output[0] - batch.per_token["rollout_logprobs"])[batch.targets >= 0].abs()
        total, num_tokens = total + float(difference.sum()), num_tokens + difference.numel()
    return total / num_tokens


@contextmanager
def scrambled(policy: Policy, generator: Engine) -> Iterator[None]:
    """Reverse the rows of every weight, in place; on exit they are restored bit for bit."""
    _reverse_rows(policy)
    generator.weights_changed()
    try:
        yield
    finally:
        _reverse_rows(policy)
        generator.weights_changed()


@torch.no_grad()
def _reverse_rows(policy: Policy) -> None:
    for parameter in policy.gpt.parameters():
        parameter.copy_(parameter.flip(0))
