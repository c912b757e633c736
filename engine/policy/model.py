"""Megatron's GPTModel for the families of `policy.families`, from a Hugging Face config.

The last pipeline stage returns per-token logprob and entropy straight from hidden states; logits of the
whole vocabulary are never held.
"""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from ralign.engine.config.run import KernelsConfig
from ralign.engine.policy.context import gather_tokens
from ralign.engine.policy.families.family import family_of
from ralign.engine.policy.norm import RMSNorm
from ralign.engine.policy.rope import inverse_frequencies, rotary_table
from ralign.engine.policy.sizes import head_size, padded_vocab_size, sizes_of
from ralign.engine.runtime.cluster import Cluster
from ralign.kernels.linear_logprob import linear_logprob
from torch import Tensor
from transformers import PretrainedConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def transformer_config(
    hf_config: PretrainedConfig, cluster: Cluster, *, dtype: str, sequence_parallel: bool, recompute: bool
) -> TransformerConfig:
    """Megatron's configuration for a Hugging Face model.

    Raises:
        UserError: a family, or a feature of the model, that is not supported.
    """
    family = family_of(hf_config.model_type)
    settings = hf_config.to_dict()
    family.check(settings)
    recomputation: dict[str, Any] = {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    }
    return TransformerConfig(
        num_layers=hf_config.num_hidden_layers,
        hidden_size=hf_config.hidden_size,
        ffn_hidden_size=hf_config.intermediate_size,
        num_attention_heads=hf_config.num_attention_heads,
        num_query_groups=hf_config.num_key_value_heads,
        kv_channels=head_size(settings),
        add_bias_linear=False,
        normalization="RMSNorm",
        layernorm_epsilon=hf_config.rms_norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        # What vLLM computes unfused stays unfused here: fusions are where trainer and engine drift apart.
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=cluster.tp_size,
        pipeline_model_parallel_size=cluster.pp_size,
        context_parallel_size=cluster.cp_size,
        sequence_parallel=sequence_parallel,
        # Micro-batches are packed to different lengths; Megatron then requires alltoall, even in dense models.
        variable_seq_lengths=True,
        batch_p2p_sync=False,  # otherwise the host waits after every exchange, for the sake of old versions of torch
        moe_token_dispatcher_type="alltoall",
        params_dtype=DTYPES[dtype],
        pipeline_dtype=DTYPES[dtype],
        bf16=dtype == "bf16",
        perform_initialization=False,
        **family.megatron,
        **(recomputation if recompute else {}),
    )


class PackedGPT(GPTModel):
    """GPTModel on packed tokens whose last stage returns logprobs and entropies instead of logits.

    Attributes:
        family, sizes: describe the parameters (`param_names.param_map`).
        loss_from_hidden: None, or what the last stage computes from its hidden states and the LM head instead.
    """

    num_outputs = 2  # rows of the last stage's output
    has_lm_head = True

    def __init__(
        self,
        hf_config: PretrainedConfig,
        config: TransformerConfig,
        cluster: Cluster,
        kernels: KernelsConfig,
        temperature: float = 1.0,
    ):
        family = family_of(hf_config.model_type)
        norm = ModuleSpec(module=RMSNorm, params={"implementation": kernels.rms_norm})
        layer = family.layer_spec(config, norm)
        super().__init__(
            config=config,
            transformer_layer_spec=TransformerBlockSubmodules(  # pyright: ignore[reportArgumentType]
                layer_specs=[layer] * (config.num_layers // cluster.pp_size), layer_norm=norm
            ),
            vocab_size=padded_vocab_size(hf_config.vocab_size),
            max_sequence_length=hf_config.max_position_embeddings,
            pre_process=cluster.pp_rank == 0,
            post_process=cluster.pp_rank == cluster.pp_size - 1,
            share_embeddings_and_output_weights=hf_config.tie_word_embeddings and self.has_lm_head,
            position_embedding_type="none",
        )
        self.family, self.cluster, self.kernels = family, cluster, kernels
        self.sizes = sizes_of(
            vocab_size=hf_config.vocab_size,
            hidden_size=hf_config.hidden_size,
            ffn_hidden_size=hf_config.intermediate_size,
            num_attention_heads=hf_config.num_attention_heads,
            num_query_groups=hf_config.num_key_value_heads,
            head_dim=head_size(hf_config.to_dict()),
        )
        self.loss_from_hidden: Callable[..., tuple[Tensor, dict[str, Tensor]]] | None = None
        self.valid_vocab = hf_config.vocab_size
        self.temperature = temperature
        self.frequencies = inverse_frequencies(hf_config).to(cluster.device)

    def _preprocess(self, input_ids, position_ids, **_):
        """Embeddings on the first stage; on every stage, the rotary table of the tokens' positions."""
        embedded = (
            self.embedding(input_ids=input_ids, position_ids=position_ids) if self.pre_process else None
        )
        table = rotary_table(position_ids[0], self.frequencies, self.config.params_dtype)
        return embedded, table, None, None, None, None

    def _postprocess(self, hidden_states: Tensor, labels: Tensor, packed_seq_params, **_):
        """[2, T] logprobs and entropy on the last stage, hidden states [T / cp, 1, H] on the others.

        With `loss_from_hidden` set, the last stage returns its result instead.

        Context-parallel ranks compute their own tokens and gather the results, so that everything behind the model
        (losses, metrics) gets whole micro-batches.
        """
        if not self.post_process:
            return hidden_states
        shared = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if shared else self.output_layer.weight
        assert weight is not None
        hidden_states = hidden_states.squeeze(1)
        head: dict[str, Any] = {
            "temperature": self.temperature,
            "valid_vocab": self.valid_vocab,
            "vocab_start": self.cluster.tp_rank * weight.shape[0],
            "group": self.cluster.tp_group if self.cluster.tp_size > 1 else None,
            "sequence_parallel": self.config.sequence_parallel,
            "implementation": self.kernels.linear_logprob,
        }
        if self.loss_from_hidden is not None:
            return self.loss_from_hidden(hidden_states, weight, **head)
        logprobs, entropy = linear_logprob(
            hidden_states, weight, labels[0], rows=packed_seq_params.target_rows, **head
        )
        assert entropy is not None
        return gather_tokens(torch.stack([logprobs, entropy]), self.cluster.cp_group)
