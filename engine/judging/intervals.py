"""95 % intervals of shares, and of the difference of two shares, for pairs that share prompts.

Pairs of one prompt are not independent: a judge that reads the prompt wrongly is wrong in all of them. A share is
therefore a ratio of sums over prompts, p = sum x_i / sum d_i, with x_i of the d_i pairs of prompt i, and one rule makes
every interval: Wilson's score interval for n / D pairs, where n = sum d_i and D is the design effect

    D = max(1, V / (p (1 - p) / (n - 1))),   V = C / (C - 1) sum ((x_i - p d_i) / n)²

of C prompts: the variance of p over prompts, against that of independent pairs. D is 1 where every prompt has one pair,
and 3 where each prompt has three pairs of the same result. At p = 0 and p = 1 nothing can be said about D, and n / D is
C, the number of prompts. So no interval has width 0, and 0 of 512 is [0, 0.0074].

Sources: Wilson, Probable inference (1927). Its use with an effective sample size for clustered data: Franco, Little,
Louis and Slud, Comparative study of confidence intervals for proportions in complex sample surveys (2019). A bootstrap
over prompts has intervals that are too narrow near 0 and 1, and of width 0 there.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z = 1.959963984540054  # 97.5 % quantile of the normal distribution

Interval = dict[str, float | None]


class Ratio(NamedTuple):
    """A share of pairs, prompt by prompt."""

    numerators: np.ndarray  # [num_prompts] float64: the pairs that count, of each prompt
    denominators: np.ndarray  # [num_prompts] float64: the pairs among which they count


def clusters_of(keys: Sequence[str] | None, num_pairs: int) -> np.ndarray:
    """[num_pairs] int64: the number of each pair's prompt, from 0; without keys every pair is its own prompt."""
    if keys is None:
        return np.arange(num_pairs)
    assert len(keys) == num_pairs, f"{len(keys)} keys of {num_pairs} pairs"
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def ratio_of(hits: np.ndarray, clusters: np.ndarray) -> Ratio:
    """The mean of `hits` [num_pairs], from 0 to 1, as a ratio over prompts; `clusters` as of `clusters_of`."""
    return Ratio(
        np.bincount(clusters, weights=np.asarray(hits, dtype=np.float64)),
        np.bincount(clusters).astype(np.float64),
    )


def wilson(share: float, num: float) -> tuple[float, float]:
    """Wilson's score interval for a share of `num` independent pairs, at a level of 95 %."""
    scale = 1 + Z**2 / num
    centre = (share + Z**2 / (2 * num)) / scale
    half = Z * math.sqrt(share * (1 - share) / num + Z**2 / (4 * num**2)) / scale
    # At 0 and 1 one bound is the share itself, but for rounding.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def effective_num(ratio: Ratio) -> float:
    """The number of independent pairs that would tell as much about the share: at least 1, at most the pairs' number.

    The denominator is not 0.
    """
    num = float(ratio.denominators.sum())
    num_prompts = int(np.count_nonzero(ratio.denominators))
    share = float(ratio.numerators.sum()) / num
    if not 0 < share < 1 or num_prompts == 1:
        return float(num_prompts)
    of_prompts = num_prompts / (num_prompts - 1) * float((_residuals(ratio) ** 2).sum())
    of_pairs = share * (1 - share) / (num - 1)
    return max(1.0, num / max(1.0, of_prompts / of_pairs))


def share_interval(ratio: Ratio) -> Interval:
    """{value, low, high} of a share; all None where its denominator is 0."""
    num = float(ratio.denominators.sum())
    if not num:
        return {"value": None, "low": None, "high": None}
    share = float(ratio.numerators.sum()) / num
    low, high = wilson(share, effective_num(ratio))
    return {"value": share, "low": low, "high": high}


def mean_interval(first: Ratio, second: Ratio) -> Interval:
    """{value, low, high} of the mean of two shares over the same prompts, weighted equally.

    As `difference_interval`, with the intervals of both and their correlation. All None where a denominator is 0.
    """
    one, other = share_interval(first), share_interval(second)
    if one["value"] is None or other["value"] is None:
        return {"value": None, "low": None, "high": None}
    correlation = -_correlation(_residuals(first), _residuals(second))
    below, above = (
        _combined(one["value"] - (one[bound] or 0.0), other["value"] - (other[bound] or 0.0), correlation)
        for bound in ("low", "high")
    )
    value = (one["value"] + other["value"]) / 2
    return {"value": value, "low": max(0.0, value - below / 2), "high": min(1.0, value + above / 2)}


def difference_interval(baseline: Ratio, model: Ratio) -> Interval:
    """{difference, low, high} of `model` minus `baseline`, two ratios over the same prompts in the same order.

    Newcombe's interval for paired shares (Improved confidence intervals for the difference between binomial proportions
    based on paired data, 1998, method 10), with the intervals above and the correlation over prompts. Where the two do
    not differ in any prompt, so that it would have width 0, the bound is that of 0 in C prompts. All None where a
    denominator is 0.
    """
    of_baseline, of_model = share_interval(baseline), share_interval(model)
    first, second = of_baseline["value"], of_model["value"]
    if first is None or second is None:
        return {"difference": None, "low": None, "high": None}
    difference = second - first
    one, other = _residuals(baseline), _residuals(model)
    if np.allclose(one, other, rtol=0, atol=1e-12):
        _, below = wilson(0.0, int(np.count_nonzero(baseline.denominators + model.denominators)))
        above = below
    else:
        correlation = _correlation(one, other)
        (low, high), (model_low, model_high) = (
            (found["low"] or 0.0, found["high"] or 0.0) for found in (of_baseline, of_model)
        )
        below = _combined(second - model_low, high - first, correlation)
        above = _combined(model_high - second, first - low, correlation)
    return {
        "difference": difference,
        "low": max(-1.0, difference - below),
        "high": min(1.0, difference + above),
    }


def _residuals(ratio: Ratio) -> np.ndarray:
    """[num_prompts] (x_i - p d_i) / n, whose sum is 0: the linear part of each prompt's influence on the share."""
    num = ratio.denominators.sum()
    return (ratio.numerators - ratio.numerators.sum() / num * ratio.denominators) / num


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of two lists of residuals; 0 where one of them is 0 everywhere."""
    scale = math.sqrt(float((one**2).sum()) * float((other**2).sum()))
    return float((one * other).sum()) / scale if scale else 0.0


def _combined(one: float, other: float, correlation: float) -> float:
    """The half-width of a difference, of the half-widths of both shares."""
    return math.sqrt(max(0.0, one**2 - 2 * correlation * one * other + other**2))
