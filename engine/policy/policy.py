"""The policy: the model that is trained to answer. The generator's engine shares its weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from megatron.core.transformer import TransformerConfig
from ralign.engine.data.packing import PackedBatch
from ralign.engine.policy import hf
from ralign.engine.policy.host_memory import HostMemory
from ralign.engine.policy.megatron_model import MegatronModel
from ralign.engine.policy.model import PackedGPT
from ralign.engine.runtime.cluster import Cluster
from torch import Tensor

REFERENCE_PART = 1 << 26  # elements copied at once: small enough to fill the blocks of host memory


class Policy(MegatronModel):
    """A language model: computes logprobs and is updated."""

    def __init__(self, folder: str | Path, cluster: Cluster, *, temperature: float = 1.0, **options):
        """`temperature` divides the logits; `options` are those of `MegatronModel`."""
        self.temperature = temperature
        self._reference: list[tuple[Tensor, Tensor]] | None = None  # part of the weights, its copy
        super().__init__(folder, cluster, **options)

    def _module(self, config: TransformerConfig) -> PackedGPT:
        return PackedGPT(self.hf_config, config, self.cluster, self.kernels, self.temperature)

    def logprobs(self, micro_batches: Sequence[PackedBatch]) -> list[Tensor]:
        """[2, T] (logprobs, entropy) fp32 for each micro-batch, on every rank that has the micro-batch."""
        return self.outputs(micro_batches)

    def freeze_reference(self) -> None:
        """Copies the present weights to (pinned) host memory: they are the reference of KL terms."""
        if self._reference is None:
            memory = HostMemory(pin=self.cluster.device.type == "cuda")
            self._reference = [
                (part, memory.empty(part.shape, part.dtype))
                for weights in self.weight_buffers
                for part in weights.split(REFERENCE_PART)
            ]
        for weights, copy in self._reference:
            copy.copy_(weights)

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """While open, the model has the reference's weights; afterwards its own, bit for bit."""
        assert self._reference is not None, "freeze_reference comes first"
        own = [weights.clone() for weights in self.weight_buffers]
        for weights, copy in self._reference:
            weights.copy_(copy, non_blocking=True)
        yield
        for weights, copy in zip(self.weight_buffers, own, strict=True):
            weights.copy_(copy)

    def vllm_parameters(self) -> dict[str, Tensor]:
        """This stage's parameters by vLLM's names: the trainer's own memory, not copies."""
        maps = hf.parameter_maps(self.gpt, self.cluster)
        return {mapping.vllm: parameter.data for _, parameter, mapping in maps}
