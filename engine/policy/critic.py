"""The critic of PPO: the policy's architecture with a value head in place of the LM head.

The value at a position estimates the return of the answer from there on. At a position where the policy predicts a
response token, it is the value of the state in which that token is chosen. The critic's Hugging Face form is a reward
model, `*ForSequenceClassification` with one label: a critic is loaded from one and exported as one.
"""

from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist
from megatron.core.transformer import TransformerConfig
from ralign.engine.config.run import KernelsConfig
from ralign.engine.data.packing import PackedBatch
from ralign.engine.policy.context import gather_tokens
from ralign.engine.policy.megatron_model import MegatronModel
from ralign.engine.policy.model import PackedGPT
from ralign.engine.runtime.cluster import Cluster
from torch import Tensor, nn
from transformers import PretrainedConfig


class ValueGPT(PackedGPT):
    """`PackedGPT` whose last stage returns the value of each token."""

    num_outputs = 1
    has_lm_head = False

    def __init__(
        self, hf_config: PretrainedConfig, config: TransformerConfig, cluster: Cluster, kernels: KernelsConfig
    ):
        super().__init__(hf_config, config, cluster, kernels)
        if self.post_process:
            del self.output_layer
            options = {"dtype": config.params_dtype, "device": cluster.device}
            self.value_head = nn.Linear(config.hidden_size, 1, bias=False, **options)
            # Under sequence parallelism a rank has a part of the tokens; Megatron sums the ranks' gradients.
            weight = self.value_head.weight
            weight.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]

    def _postprocess(self, hidden_states: Tensor, **_):
        """[1, T] values, fp32, on the last stage, hidden states [T / cp, 1, H] on the others.

        Ranks that share a micro-batch compute the values of their own tokens and gather the results.
        """
        if not self.post_process:
            return hidden_states
        values = nn.functional.linear(hidden_states.squeeze(1).float(), self.value_head.weight.float()).t()
        if self.config.sequence_parallel:
            values = gather_tokens(values, self.cluster.tp_group)
        return gather_tokens(values, self.cluster.cp_group)


class Critic(MegatronModel):
    """A value model: computes values and is updated. From a folder without a value head, all values start at 0."""

    def _module(self, config: TransformerConfig) -> ValueGPT:
        return ValueGPT(self.hf_config, config, self.cluster, self.kernels)

    def values(self, micro_batches: Sequence[PackedBatch]) -> list[Tensor]:
        """[T] fp32 for each micro-batch, on every rank that has the micro-batch."""
        return [output[0] for output in self.outputs(micro_batches)]

    def export(self, target: str | Path) -> None:
        """Write a folder that `AutoModelForSequenceClassification` loads; collective over all ranks."""
        super().export(target)
        if self.cluster.is_first_rank:
            from transformers.models.auto.modeling_auto import (
                MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSES,
            )

            one_label = {"id2label": {0: "value"}, "label2id": {"value": 0}}
            config = type(self.hf_config).from_dict({**self.hf_config.to_dict(), **one_label})
            config.architectures = [CLASSES[config.model_type]]
            config.save_pretrained(target)
        dist.barrier()
