"""Tiny models and batches that the programs share."""

import numpy as np
import torch
from ralign.engine.data.packing import Sample, materialise, plan

VOCAB = 301  # not a multiple of the vocabulary padding


def make_model(folder, family: str, *, tied: bool, seed: int = 0, **overrides) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = dict(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=16, max_position_embeddings=256, tie_word_embeddings=tied,
        eos_token_id=0, bos_token_id=None, initializer_range=0.1, sliding_window=None,
    )  # fmt: skip
    config = AutoConfig.for_model(family, **(shape | overrides))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # norms and biases start as constants; constants would hide a mixed-up mapping
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)


def make_samples(num_samples: int, seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(num_samples):
        prompt, response = (rng.integers(1, VOCAB, rng.integers(2, 24)) for _ in range(2))
        samples.append(
            Sample(
                prompt_ids=prompt,
                response_ids=response,
                per_response_token={
                    "rollout_logprobs": rng.normal(-5, 0.3, len(response)).astype(np.float32)
                },
                per_sample={"advantages": float(rng.normal()), "weights": 1.0 / (16 * num_samples)},
            )
        )
    return samples


def pack(samples, cluster, *, token_budget: int, pad_multiple: int):
    """This rank's micro-batches, on the cluster's device."""
    layout = plan([len(s) for s in samples], token_budget=token_budget, dp_size=cluster.dp_size)
    mine = layout.of_rank(cluster.dp_rank)
    return materialise(samples, mine, pad_multiple=pad_multiple, device=cluster.device)
