"""A fresh model: a Hugging Face folder with configuration, tokenizer and random weights."""

from pathlib import Path

import torch
from ralign.engine.config.registry import FAMILIES
from ralign.engine.config.run import ModelConfig


def create_model_folder(folder: str | Path, model: ModelConfig, tokenizer, seed: int) -> None:
    """Draws a model of the configured shape and writes it with its tokenizer; call it on one rank.

    Random weights go through a Hugging Face folder, as pretrained ones do, so that they do not depend on the job's
    layout.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    family = FAMILIES.load(model.family)
    config = AutoConfig.for_model(
        family.model_type,
        vocab_size=len(tokenizer),
        num_hidden_layers=model.num_layers,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_query_groups,
        head_dim=model.head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        rms_norm_eps=model.norm_eps,
        tie_word_embeddings=model.tie_embeddings,
        max_position_embeddings=model.max_position_embeddings,
        initializer_range=model.init_std,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    for name, value in family.required.items():
        if hasattr(
            config, name
        ):  # its default may be what the family refuses, such as Mistral's sliding window
            setattr(config, name, value)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        weights = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
