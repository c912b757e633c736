"""RMSNorm for Megatron's layer specs; works under sequence parallelism, which `WrappedTorchNorm` refuses."""

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer import TransformerConfig
from ralign.kernels.rms_norm import rms_norm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


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
        # Under sequence parallelism a rank has a part of the tokens; Megatron sums the ranks' gradients.
        self.weight.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, implementation=self.implementation)


class AllHeadsNorm(RMSNorm):
    """RMSNorm over all heads of a token together, of which tensor-parallel ranks hold equal parts.

    Every rank holds the whole weight, as in vLLM, and has a gradient for its own part of it: Megatron sums the
    gradients of `q_layernorm` and `k_layernorm` over the ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, *, num_heads: int, **options):
        """`hidden_size`: of one head; `num_heads`: of all ranks."""
        super().__init__(config, hidden_size * num_heads, **options)

    def forward(self, heads: Tensor) -> Tensor:
        """[T, this rank's heads, D] -> the same shape."""
        x = heads.flatten(1)
        width = x.shape[1]
        if width == len(self.weight):
            return super().forward(x).view_as(heads)
        group = parallel_state.get_tensor_model_parallel_group()
        assert isinstance(group, dist.ProcessGroup)
        start = dist.get_rank(group) * width
        own = self.weight[start : start + width]
        return _SplitRMSNorm.apply(x, own, self.eps, group).view_as(heads)


class _SplitRMSNorm(torch.autograd.Function):
    """`kernels.rms_norm` of rows that are split evenly over the ranks of a group: x [T, W], weight [W] on each."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, group: dist.ProcessGroup) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        squares = wide.pow(2).sum(-1, keepdim=True)
        dist.all_reduce(squares, group=group)
        ctx.group, ctx.size = group, x.shape[1] * dist.get_world_size(group)
        r = torch.rsqrt(squares / ctx.size + eps)
        ctx.save_for_backward(x, weight, r)
        return (weight * (wide * r).to(x.dtype)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        x, weight, r = ctx.saved_tensors
        normed, dy = x.to(r.dtype) * r, dy.to(r.dtype)
        g = dy * weight.to(r.dtype)
        dot = (g * normed).sum(-1, keepdim=True)
        dist.all_reduce(dot, group=ctx.group)
        dx = r * (g - normed * (dot / ctx.size))
        return dx.to(x.dtype), (dy * normed).sum(0).to(weight.dtype), None, None
