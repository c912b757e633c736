"""Rewards of a pair and its twin, whose samples are in the same batch.

With algo.couple a sample earns its value times the mean value of the samples of its pair's twin:

    earned_i = v_i · mean_j max(v'_j, 0)      for v_i > 0;      earned_i = v_i      otherwise

For values of 0 and 1, one random sample of the twin as partner gives the same expectation; the mean over all of them is
its Rao-Blackwellisation, with less variance. An unknown value (NaN) is left out of the mean. A sample is unknown if its
own value is, or if no value of the twin is known, unless the product is 0 in any case.

The mean is the same for all samples of a group. An advantage that divides by the group's std cancels it
(`config/algo_validation.py` refuses those).

S: samples.
"""

import math

import numpy as np


def coupled(values: np.ndarray, groups: np.ndarray, twin_groups: np.ndarray) -> np.ndarray:
    """What each sample earns.

    values: [S] float, NaN where unknown. groups: [S] int. twin_groups: [S] int, the group of the pair's twin.

    Returns [S] float64, NaN where unknown.
    """
    earned = values.astype(np.float64)
    for group in np.unique(groups):
        own = groups == group
        others = values[groups == twin_groups[own][0]]
        assert len(others), f"the twin of group {group} has no samples"
        known = np.maximum(others[~np.isnan(others)], 0)
        mean = known.mean() if len(known) else np.nan
        nothing = len(known) == len(others) and mean == 0  # whatever the own value is
        mine = earned[own]
        unknown = np.isnan(mine)
        earned[own] = np.where(unknown & nothing, 0.0, np.where(mine > 0, mine * mean, mine))
    return earned


def twin_consistency(
    correct: np.ndarray,
    invalid: np.ndarray,
    groups: np.ndarray,
    twin_groups: np.ndarray,
    *,
    counted: np.ndarray | None = None,
) -> float:
    """Share of couples of samples, one in each twin, that name the same response; over all couples of a pair.

    correct, invalid: [S] bool, the verdict equals the label, or there is none. groups, twin_groups: [S] int.
    counted: [S] bool, other samples are in no couple; None: all are. NaN without a couple.
    """
    counted = np.ones(len(groups), dtype=bool) if counted is None else counted
    wrong, shares = ~correct & ~invalid, {}
    for group in np.unique(groups[counted]):
        own = counted & (groups == group)
        shares[group] = (correct[own].mean(), wrong[own].mean())
    # The labels of twins name the same response: right twice, or wrong twice, is the same response twice.
    both = [
        np.dot(shares[own], shares[twin])
        for own, twin in zip(groups[counted], twin_groups[counted], strict=True)
        if twin in shares
    ]
    return float(np.mean(both)) if both else math.nan
