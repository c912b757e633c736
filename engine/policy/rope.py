"""Rotary position embeddings of packed tokens, by each token's position in its own sequence."""

import torch
from ralign.engine.policy.sizes import head_size
from ralign.engine.runtime.errors import UserError
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def inverse_frequencies(hf_config: PretrainedConfig) -> Tensor:
    """[head_dim / 2] fp32, by the Hugging Face rule that the config names: default, linear or llama3.

    Raises:
        UserError: another rule; most rescale attention or depend on the sequence length.
    """
    parameters = hf_config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        head_dim = head_size(hf_config.to_dict())
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        return 1.0 / (parameters["rope_theta"] ** exponents)
    if kind not in ("llama3", "linear"):
        raise UserError(
            f"rope_type {kind!r} of the model's config.json is not supported (default, linear, llama3)"
        )
    frequencies, attention_scaling = ROPE_INIT_FUNCTIONS[kind](hf_config, torch.device("cpu"))
    assert attention_scaling == 1.0
    return frequencies.float()


def rotary_table(position_ids: Tensor, frequencies: Tensor, dtype: torch.dtype) -> Tensor:
    """[2, T, head_dim / 2]: cosines and sines, computed in fp32 and rounded once to dtype, as vLLM does."""
    angles = position_ids.float()[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()]).to(dtype)


def apply_rotary(x: Tensor, table: Tensor) -> Tensor:
    """Rotates the halves of each head; x [T, num_heads, head_dim], `table` from `rotary_table`."""
    cos, sin = table[0, :, None, :], table[1, :, None, :]
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
