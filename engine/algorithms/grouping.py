"""The samples that a group advantage compares: those of one prompt, or also those of the pair's twin.

With algo.group=pair (after EIS-GRPO, arXiv:2505.13346) an advantage is the mean of two: within the pair and its twin
together, and within the prompt. They differ where the twins have different mean rewards. With algo.couple, rewards of 0
and 1 have the same mean in both, since each is multiplied by the other's; invalid and failed samples make the
difference.
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

    rewards: [num_samples] or [num_samples, num_parts] float. groups: [num_samples] int64; 2i and 2i + 1 are those of a
        pair and its twin. valid: [num_samples] bool.
    """
    within = estimator(rewards, groups, valid, implementation=implementation)
    if kind == "prompt":
        return within
    return (estimator(rewards, groups // 2, valid, implementation=implementation) + within) / 2
