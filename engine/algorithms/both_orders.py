"""Rewards of a pair that was judged in both orders.

A sample earns its value times the mean value of the pair's samples in the other order:

    earned_i = v_i · mean_j max(v'_j, 0)      for v_i > 0;      earned_i = v_i      otherwise

For values of 0 and 1, one random sample of the other order as partner gives the same expectation; the mean over all of
them is its Rao-Blackwellisation, with less variance. An unknown value (NaN) is left out of the mean. A sample is
unknown if its own value is, or if no value of the other order is known, unless the product is 0 in any case.

S: samples.
"""

import math

import numpy as np


def couple(values: np.ndarray, groups: np.ndarray, other_groups: np.ndarray) -> np.ndarray:
    """What each sample earns.

    values: [S] float, NaN where unknown. groups: [S] int. other_groups: [S] int, the group in the other order.

    Returns [S] float64, NaN where unknown.
    """
    earned = values.astype(np.float64)
    for group in np.unique(groups):
        own = groups == group
        others = values[groups == other_groups[own][0]]
        assert len(others), f"group {group} has no samples in the other order"
        known = np.maximum(others[~np.isnan(others)], 0)
        mean = known.mean() if len(known) else np.nan
        nothing = len(known) == len(others) and mean == 0  # whatever the own value is
        mine = earned[own]
        unknown = np.isnan(mine)
        earned[own] = np.where(unknown & nothing, 0.0, np.where(mine > 0, mine * mean, mine))
    return earned


def swap_consistency(
    correct: np.ndarray,
    invalid: np.ndarray,
    groups: np.ndarray,
    other_groups: np.ndarray,
    *,
    counted: np.ndarray | None = None,
) -> float:
    """Share of couples of samples, one in each order, that name the same response; over all couples of a pair.

    correct, invalid: [S] bool, the verdict equals the label, or there is none. groups, other_groups: [S] int.
    counted: [S] bool, other samples are in no couple; None: all are. NaN without a couple.
    """
    counted = np.ones(len(groups), dtype=bool) if counted is None else counted
    wrong, shares = ~correct & ~invalid, {}
    for group in np.unique(groups[counted]):
        own = counted & (groups == group)
        shares[group] = (correct[own].mean(), wrong[own].mean())
    # Right twice or wrong twice is the same response twice: the label is swapped, too.
    both = [
        np.dot(shares[own], shares[other])
        for own, other in zip(groups[counted], other_groups[counted], strict=True)
        if other in shares
    ]
    return float(np.mean(both)) if both else math.nan
