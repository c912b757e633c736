"""A preference for the shorter of equally good answers, on a fixed scale."""

import numpy as np


def length_bonus(
    rewards: np.ndarray,
    valid: np.ndarray,
    lengths: np.ndarray,
    groups: np.ndarray,
    *,
    coefficient: float,
    max_new_tokens: int,
) -> np.ndarray:
    """What is added to each answer's advantage; it sums to 0 over the valid answers of a group.

        -coefficient · w · (length - mean length of the group) / max_new_tokens

    w, the share of the group's valid answers with a positive reward, makes the penalty dynamic: a group with few good
    answers does not learn brevity alone. The scale is fixed, and the bonus comes after the normalisation of rewards:
    in a group of equal rewards the standard deviation would be that of the penalty, and raise it to full size.

    rewards: [S] float. valid: [S] bool. lengths: [S] tokens. groups: [S] int.

    Returns [S] float32, 0 where not valid.
    """
    bonus = np.zeros(len(rewards))
    for group in np.unique(groups):
        counted = valid & (groups == group)
        if counted.any():
            share = float((rewards[counted] > 0).mean())
            excess = lengths[counted] - lengths[counted].mean()
            bonus[counted] = -coefficient * share * excess / max_new_tokens
    return bonus.astype(np.float32)
