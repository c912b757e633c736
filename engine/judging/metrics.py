"""How good a judge is, and how far it is right for the right reason: L-Acc, S-Corr, F-Score with intervals.

With each pair in one of the categories wrong (label missed, or no verdict), Correct, Incorrect and failed
(label right, but the MetaRM gave no usable answer), the released R-Align evaluator defines

    L-Acc   = (Correct + Incorrect + failed) / all
    S-Corr  = Incorrect / (Correct + Incorrect)
    F-Score = Correct / (all - failed)

so that without failures F-Score = L-Acc (1 - S-Corr). All three depend on the pairs through the category
counts alone, and drawing n pairs with replacement draws these counts from Multinomial(n, counts / n): that is
how the bootstrap is done here, without touching the pairs again. Intervals are 95 % percentile intervals; at
0 and 1 they close up, as every such interval does.
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
    """One model on one test, as `report/summary.json` holds it.

    verdicts: "A", "B" or None (unparsable: wrong). labels: "A" or "B". outcomes: the MetaRM's, `Outcome`s or
        the names in a judged file; SkippedLabelMismatch exactly where the verdict misses the label.
    swapped_verdicts: verdicts on the same pairs with the responses swapped, as written (an "A" names the
        response that is B in `labels`); without them swap_consistency is None, and both_order_l_acc left out.

    Returns num_pairs, l_acc, s_corr, f_score, swap_consistency and both_order_l_acc as {value, low, high}
    (fractions; None in each where the denominator is 0), num_parse_fail (no verdict) and num_judge_fail
    (MetaRM failed). Raises UserError for sequences of other lengths, unknown names, and outcomes that
    contradict the verdicts.
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
        **{name: _interval(ratio(counts), ratio(draws)) for name, ratio in RATIOS.items()},
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
    """[num_pairs] int64: the category of each pair, from 0 to NUM_CATEGORIES - 1; checks as `measure` does."""
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
    """The value with the percentiles of its bootstrap draws; draws without a value (NaN) are left out."""
    if math.isnan(value):
        return {"value": None, "low": None, "high": None}
    low, high = np.nanpercentile(draws, _INTERVAL)
    return {"value": float(value), "low": float(low), "high": float(high)}


def _share(count: int, num_pairs: int, num_bootstrap: int, rng: np.random.Generator) -> dict[str, Any]:
    share = count / num_pairs
    return _interval(share, rng.binomial(num_pairs, share, size=num_bootstrap) / num_pairs)
