"""L-Acc, S-Corr and F-Score of a judge, with intervals: how often is it right, and how often for the right reason?

Each pair is in one of four categories: wrong (another verdict than the label, or none), Correct, Incorrect, and failed
(the verdict is the label, but the MetaRM gave no usable answer). The released R-Align evaluator defines

    L-Acc   = (Correct + Incorrect + failed) / all
    S-Corr  = Incorrect / (Correct + Incorrect)
    F-Score = Correct / (all - failed)

so that F-Score = L-Acc (1 - S-Corr) without failures. All three depend only on the counts of the categories. A
bootstrap sample of n pairs has counts from Multinomial(n, counts / n), so the bootstrap draws those and not the pairs.
Intervals are 95 % percentile intervals; at 0 and 1 their width is 0.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from ralign.engine.judging.metarm import Outcome
from ralign.engine.runtime.errors import UserError

NUM_CATEGORIES = 4
_WRONG, _CORRECT, _INCORRECT, _FAILED = range(NUM_CATEGORIES)
_OTHER = {"A": "B", "B": "A", None: None}
_INTERVAL = (2.5, 97.5)


def measure(
    verdicts: Sequence[str | None],
    labels: Sequence[str],
    outcomes: Sequence[Outcome | str],
    *,
    swapped_verdicts: Sequence[str | None] | None = None,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """The metrics of one model on one test, in the form of `report/summary.json`.

    Args:
        verdicts: "A", "B" or None (no verdict: wrong).
        labels: "A" or "B".
        outcomes: `Outcome`s, or their names in a judged file; SkippedLabelMismatch exactly where the verdict is not
            the label.
        swapped_verdicts: verdicts on the same pairs with the responses swapped, as written (an "A" names the response
            that is B in `labels`). Without them swap_consistency is None, and there is no both_order_l_acc.
        num_bootstrap, seed: of the bootstrap.

    Returns:
        num_pairs; l_acc, s_corr, f_score, swap_consistency and both_order_l_acc as {value, low, high} (fractions; all
        None where the denominator is 0); num_parse_fail (no verdict) and num_judge_fail (the review failed).

    Raises:
        UserError: sequences of different lengths, unknown names, or outcomes that contradict the verdicts.
    """
    categories = categorise(verdicts, labels, outcomes)
    if swapped_verdicts is not None and len(swapped_verdicts) != len(labels):
        raise UserError(f"{len(swapped_verdicts)} swapped verdicts for {len(labels)} pairs")
    num_pairs = len(categories)
    counts = np.bincount(categories, minlength=NUM_CATEGORIES)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(num_pairs, counts / num_pairs, size=num_bootstrap)
    result = {
        "num_pairs": num_pairs,
        **{name: _interval(float(ratio(counts)), ratio(draws)) for name, ratio in RATIOS.items()},
        "num_parse_fail": sum(verdict is None for verdict in verdicts),
        "num_judge_fail": int(counts[_FAILED]),
        "swap_consistency": None,
    }
    if swapped_verdicts is not None:
        second = [_OTHER[verdict] for verdict in swapped_verdicts]
        same = [v is not None and v == s for v, s in zip(verdicts, second, strict=True)]
        right = [s and v == label for s, v, label in zip(same, verdicts, labels, strict=True)]
        result["swap_consistency"] = _share(sum(same), num_pairs, num_bootstrap, rng)
        result["both_order_l_acc"] = _share(sum(right), num_pairs, num_bootstrap, rng)
    return result


def categorise(
    verdicts: Sequence[str | None], labels: Sequence[str], outcomes: Sequence[Outcome | str]
) -> np.ndarray:
    """[num_pairs] int64: the category of each pair, from 0 to NUM_CATEGORIES - 1. Raises as `measure`."""
    if not len(verdicts) == len(labels) == len(outcomes):
        raise UserError(f"{len(verdicts)} verdicts, {len(labels)} labels and {len(outcomes)} outcomes")
    if not len(labels):
        raise UserError("no pairs to measure")
    by_outcome = {
        Outcome.SKIPPED: _WRONG,
        Outcome.CORRECT: _CORRECT,
        Outcome.INCORRECT: _INCORRECT,
        Outcome.CALL_FAIL: _FAILED,
        Outcome.PARSE_FAIL: _FAILED,
    }
    categories = np.empty(len(labels), dtype=np.int64)
    for n, (verdict, label, name) in enumerate(zip(verdicts, labels, outcomes, strict=True)):
        if label not in ("A", "B") or verdict not in ("A", "B", None):
            raise UserError(
                f"pair {n}: verdict {verdict!r}, label {label!r}: expected A or B (or no verdict)"
            )
        try:
            outcome = Outcome(name)
        except ValueError:
            raise UserError(f"pair {n}: unknown MetaRM outcome {name!r}") from None
        if (verdict == label) == (outcome is Outcome.SKIPPED):
            raise UserError(f"pair {n}: outcome {outcome.value} with verdict {verdict} and label {label}")
        categories[n] = by_outcome[outcome]
    return categories


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, NaN where the denominator is 0."""
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), math.nan)


# counts [..., NUM_CATEGORIES] -> [...], NaN where the denominator is 0
RATIOS = {
    "l_acc": lambda counts: _ratio(counts.sum(-1) - counts[..., _WRONG], counts.sum(-1)),
    "s_corr": lambda counts: _ratio(counts[..., _INCORRECT], counts[..., _CORRECT] + counts[..., _INCORRECT]),
    "f_score": lambda counts: _ratio(counts[..., _CORRECT], counts.sum(-1) - counts[..., _FAILED]),
}


def _interval(value: float, draws: np.ndarray) -> dict[str, float | None]:
    """The value with percentiles of its bootstrap draws, those without a value (NaN) left out."""
    if math.isnan(value):
        return {"value": None, "low": None, "high": None}
    low, high = np.nanpercentile(draws, _INTERVAL)
    return {"value": float(value), "low": float(low), "high": float(high)}


def _share(count: int, num_pairs: int, num_bootstrap: int, rng: np.random.Generator) -> dict[str, Any]:
    share = count / num_pairs
    return _interval(share, rng.binomial(num_pairs, share, size=num_bootstrap) / num_pairs)
