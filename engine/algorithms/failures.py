"""Shares of failed reviews by length and by label: whether failures are independent of what they leave out.

Only a sample with the right verdict is reviewed. Failures that depend on the length or the side bias the group's
baseline, which is taken over the others.
"""

import math

import numpy as np

NUM_QUARTILES = 4


def failure_shares(
    failed: np.ndarray, reviewed: np.ndarray, lengths: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Metrics `judge/failed_share_*`: of each quartile of the reviewed samples' lengths, and of each label.

    failed, reviewed: [num_samples] bool; a failed review is a reviewed sample. lengths: [num_samples] tokens.
    labels: [num_samples] "A" or "B".

    NaN where nothing was reviewed. Equal lengths are in the same quartile.
    """
    shares: dict[str, float] = {}
    bounds = np.quantile(lengths[reviewed], [0.25, 0.5, 0.75]) if reviewed.any() else np.zeros(3)
    quartiles = np.searchsorted(bounds, lengths, side="left")
    for quartile in range(NUM_QUARTILES):
        shares[f"judge/failed_share_length_q{quartile + 1}"] = _share(
            failed, reviewed & (quartiles == quartile)
        )
    for label in ("A", "B"):
        shares[f"judge/failed_share_label_{label.lower()}"] = _share(failed, reviewed & (labels == label))
    return shares


def _share(failed: np.ndarray, among: np.ndarray) -> float:
    return float(failed[among].mean()) if among.any() else math.nan
