"""RMSNorm for Megatron's layer spec; works under sequence parallelism, which `WrappedTorchNorm` refuses."""

import torch
from megatron.core.transformer import TransformerConfig
from ralign.kernels.rms_norm import rms_norm
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """weight * x / rms(x), statistics in fp32. The weight's gradient is summed over sequence shards."""

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float = 1e-6,
        implementation: str = "auto",
        **_,
    ):
        super().__init__()
        self.eps, self.implementation = eps, implementation
        self.weight = nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device())
        )
        # Each rank sees its own tokens only, so Megatron must reduce this gradient over the tensor group.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, implementation=self.implementation)
