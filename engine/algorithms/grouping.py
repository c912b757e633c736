"""The samples that a group advantage compares: those of one prompt, or also those of a pair's other order.

With algo.group=pair (after EIS-GRPO, arXiv:2505.13346) an advantage is the mean of two: within the pair, over both
orders, and within the order. They differ where the orders have different mean rewards. Rewards of 0 and 1 have the same
mean in both orders, since each is multiplied by the other order's mean; invalid and failed samples make the difference.
"""

from typing import Literal

from ralign.kernels.advantages import AdvantageEstimator
from torch import Tensor


def grouped(
    estimator: AdvantageEstimator,
    kind: Literal["prompt", "pair"],
    rewards: Tensor,
    groups: Tensor,
    valid: Tensor,
    *,
    implementation: str,
) -> Tensor:
    """Advantages [num_samples] of the settings.

    rewards: [num_samples] or [num_samples, num_parts] float. groups: [num_samples] int64; 2i and 2i + 1 are the orders
        of one pair. valid: [num_samples] bool.
    """
    within = estimator(rewards, groups, valid, implementation=implementation)
    if kind == "prompt":
        return within
    return (estimator(rewards, groups // 2, valid, implementation=implementation) + within) / 2
