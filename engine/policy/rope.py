"""Rotary position embeddings of packed tokens, from each token's own position in its sequence."""

import torch
from ralign.engine.runtime.errors import UserError
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def inverse_frequencies(hf_config: PretrainedConfig) -> Tensor:
    """[head_dim / 2] fp32, by the Hugging Face rule that the config names (default, llama3, ...).

    Raises:
        UserError: a rule that rescales attention or depends on the sequence length.
    """
    parameters = hf_config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        head_dim = head_size(hf_config)
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        return 1.0 / (parameters["rope_theta"] ** exponents)
    if kind not in ("llama3", "linear"):
        raise UserError(
            f"rope_type {kind!r} of the model's config.json is not supported (default, linear, llama3)"
        )
    frequencies, attention_scaling = ROPE_INIT_FUNCTIONS[kind](hf_config, torch.device("cpu"))
    assert attention_scaling == 1.0
    return frequencies.float()


def head_size(hf_config: PretrainedConfig) -> int:
    return getattr(hf_config, "head_dim", None) or hf_config.hidden_size // hf_config.num_attention_heads


def rotary_table(position_ids: Tensor, frequencies: Tensor, dtype: torch.dtype) -> Tensor:
    """[2, T, head_dim / 2]: cosines and sines, computed in fp32 and rounded once to dtype, as vLLM does."""
    angles = position_ids.float()[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()]).to(dtype)


def apply_rotary(x: Tensor, table: Tensor) -> Tensor:
    """Rotate halves of each head: x is [T, num_heads, head_dim], table is from `rotary_table`."""
    cos, sin = table[0, :, None, :], table[1, :, None, :]
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
