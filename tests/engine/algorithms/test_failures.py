"""Failed reviews by length and by label."""

import math

import numpy as np
from ralign.engine.algorithms.failures import failure_shares


def test_shares_by_hand():
    lengths = np.array([1, 2, 3, 4, 5, 6, 7, 8, 50])
    reviewed = np.array([True] * 8 + [False])
    failed = np.array([False] * 6 + [True, True, False])
    labels = np.array(["A", "B"] * 4 + ["A"])
    shares = failure_shares(failed, reviewed, lengths, labels)
    assert [shares[f"judge/failed_share_length_q{n}"] for n in (1, 2, 3, 4)] == [0, 0, 0, 1]
    assert shares["judge/failed_share_label_a"] == shares["judge/failed_share_label_b"] == 1 / 4


def test_without_reviews_there_is_no_share():
    nothing = failure_shares(np.zeros(2, bool), np.zeros(2, bool), np.array([1, 2]), np.array(["A", "B"]))
    assert len(nothing) == 6 and all(map(math.isnan, nothing.values()))
