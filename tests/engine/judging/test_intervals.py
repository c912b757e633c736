"""Do the intervals cover the truth as often as they say, also near 0 and 1 and for pairs that share prompts?"""

import time

import numpy as np
import pytest
from ralign.engine.judging.intervals import (
    Ratio,
    clusters_of,
    difference_interval,
    effective_num,
    mean_interval,
    ratio_of,
    share_interval,
    wilson,
)

_NUM_RUNS = 2000
_DEVIATION = (0.95 * 0.05 / _NUM_RUNS) ** 0.5  # of a measured coverage of 95 %


def _coverage(draw, share):
    """The share of `_NUM_RUNS` intervals that contain `share`."""
    rng = np.random.default_rng(0)
    found = [share_interval(draw(rng)) for _ in range(_NUM_RUNS)]
    return sum(one["low"] <= share <= one["high"] for one in found) / _NUM_RUNS


def _exact_coverage(share, num):
    """The coverage of Wilson's interval for `num` pairs, summed over all numbers of hits."""
    hits = np.arange(num + 1)
    logs = np.cumsum(np.log(np.concatenate([[1.0], (num - hits[:-1]) / hits[1:]])))
    chances = np.exp(logs + hits * np.log(share) + (num - hits) * np.log(1 - share))
    covers = [low <= share <= high for low, high in (wilson(n / num, num) for n in hits)]
    return float(chances[covers].sum())


@pytest.mark.parametrize("num", [50, 512])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_independent_pairs(share, num):
    expected = _exact_coverage(
        share, num
    )  # 0.911 at 0.99 of 50, which has 51 possible intervals; else 0.93 to 0.97
    assert 0.91 < expected < 0.98 and (num < 512 or 0.945 < expected < 0.965)
    measured = _coverage(lambda rng: ratio_of(rng.random(num) < share, np.arange(num)), share)
    assert abs(measured - expected) < 4 * _DEVIATION


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_three_alike_pairs_of_each_prompt(share):
    def draw(rng):
        return ratio_of(np.repeat(rng.random(512) < share, 3), np.repeat(np.arange(512), 3))

    assert abs(_coverage(draw, share) - _exact_coverage(share, 512)) < 4 * _DEVIATION

    def naive(rng):
        return ratio_of(np.repeat(rng.random(512) < share, 3), np.arange(3 * 512))

    assert _coverage(naive, share) < 0.80  # 1.96 / sqrt(3) deviations: 74 %


def test_prompts_of_one_to_five_pairs_that_agree_in_part():
    def draw(rng):
        sizes = rng.integers(1, 6, size=300)
        return Ratio(rng.binomial(sizes, rng.beta(1.8, 0.2, size=300)).astype(float), sizes.astype(float))

    assert 0.92 < _coverage(draw, 0.9) < 0.965


def test_no_interval_of_a_share_at_the_edge_is_empty():
    nothing = share_interval(ratio_of(np.zeros(512), np.arange(512)))
    assert (nothing["value"], nothing["low"]) == (0, 0) and nothing["high"] == pytest.approx(
        0.00745, abs=1e-5
    )
    everything = share_interval(ratio_of(np.ones(512), np.arange(512)))
    assert everything["high"] == 1 and everything["low"] == pytest.approx(1 - nothing["high"])
    shared = share_interval(ratio_of(np.zeros(1536), np.repeat(np.arange(512), 3)))
    assert shared == nothing  # 512 prompts, whatever the number of their pairs


def test_the_effective_number_is_between_one_and_all_pairs():
    rng = np.random.default_rng(0)
    for _ in range(300):
        sizes = rng.integers(0, 4, size=rng.integers(1, 12)).astype(float)
        ratio = Ratio(np.floor(rng.random(len(sizes)) * (sizes + 1)), sizes)
        if sizes.sum():
            assert 1 <= effective_num(ratio) <= sizes.sum()
            found = share_interval(ratio)
            assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1 and found["low"] < found["high"]
    singles = ratio_of(rng.random(200) < 0.3, np.arange(200))
    assert effective_num(singles) == pytest.approx(200)
    opposed = ratio_of(np.tile([1.0, 0.0], 50), np.repeat(np.arange(50), 2))
    assert effective_num(opposed) == 100  # pairs that cancel are no reason for a shorter interval
    assert effective_num(ratio_of([1, 0, 1], np.zeros(3, dtype=int))) == 1


def test_differences_of_two_models_cover_the_truth():
    rng, hits, num = np.random.default_rng(0), 0, 1000
    for _ in range(num):
        # Prompts of two alike pairs; the second model is right in 0.85, the first in 0.8, mostly together.
        level = rng.random(200)
        noise = rng.random((2, 200))
        right = np.where(noise < 0.5, level, rng.random((2, 200))) < np.array([[0.8], [0.85]])
        ratios = [ratio_of(np.repeat(one, 2), np.repeat(np.arange(200), 2)) for one in right]
        found = difference_interval(*ratios)
        hits += found["low"] <= 0.05 <= found["high"]
    assert abs(hits / num - 0.95) < 4 * (0.95 * 0.05 / num) ** 0.5


def test_the_mean_of_two_shares_covers_the_truth():
    """True errors and others of the same prompts, each from 1 to 3 times, whose results depend on each other."""
    rng, hits, num = np.random.default_rng(0), 0, 1000
    for _ in range(num):
        level = rng.random(150)
        sizes = rng.integers(1, 4, size=150)
        first = Ratio(sizes * (level < 0.9), sizes)
        second = Ratio(3.0 * sizes * (np.where(rng.random(150) < 0.5, level, 1 - level) < 0.6), 3.0 * sizes)
        found = mean_interval(first, second)
        hits += found["low"] <= 0.75 <= found["high"]
    assert abs(hits / num - 0.95) < 4 * (0.95 * 0.05 / num) ** 0.5
    perfect = ratio_of(np.ones(50), np.arange(50))
    assert mean_interval(perfect, perfect)["high"] == 1 > mean_interval(perfect, perfect)["low"] > 0.9


def test_a_difference_of_nothing_is_not_certain():
    same = ratio_of(np.arange(512) % 2, np.arange(512))
    found = difference_interval(same, same)
    assert found["difference"] == 0 and found["high"] == -found["low"] == pytest.approx(0.00745, abs=1e-5)
    perfect = ratio_of(np.ones(512), np.arange(512))
    assert difference_interval(perfect, perfect)["high"] == pytest.approx(0.00745, abs=1e-5)
    opposite = difference_interval(
        ratio_of(np.zeros(50), np.arange(50)), ratio_of(np.ones(50), np.arange(50))
    )
    assert opposite["difference"] == opposite["high"] == 1 > opposite["low"] > 0.85
    none = Ratio(np.zeros(3), np.zeros(3))
    assert difference_interval(none, none) == {"difference": None, "low": None, "high": None}


def test_keys_are_numbered_and_ten_thousand_pairs_take_no_time():
    assert list(clusters_of(["b", "a", "b"], 3)) == [0, 1, 0] and list(clusters_of(None, 3)) == [0, 1, 2]
    start_s = time.perf_counter()
    clusters = clusters_of([str(n // 3) for n in range(30_000)], 30_000)
    share_interval(ratio_of(np.arange(30_000) % 2, clusters))
    assert time.perf_counter() - start_s < 1  # measured: 0.02 s
