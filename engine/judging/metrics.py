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
from ralign.engine.errors import UserError
from ralign.engine.judging.metarm import Outcome

_WRONG, _CORRECT, _INCORRECT, _FAILED = range(4)
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
    swapped_verdicts: verdicts on the same pairs with the responses swapped; `swap_consistency` is the share
        of pairs for which both were read and name the same response, or None without them.

    Returns num_pairs, l_acc, s_corr, f_score and swap_consistency as {value, low, high} (fractions; None in
    each where the denominator is 0), num_parse_fail (no verdict) and num_judge_fail (MetaRM failed).
    Raises UserError for sequences of other lengths, unknown names, and outcomes that contradict the verdicts.
    """
    categories = _categories(verdicts, labels, outcomes)
    if swapped_verdicts is not None and len(swapped_verdicts) != len(labels):
        raise UserError(f"{len(swapped_verdicts)} swapped verdicts for {len(labels)} pairs")
    num_pairs = len(categories)
    counts = np.bincount(categories, minlength=4)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(num_pairs, counts / num_pairs, size=num_bootstrap)
    swap_consistency = None
    if swapped_verdicts is not None:
        other = {"A": "B", "B": "A"}
        num_same = sum(
            v is not None and other[v] == s for v, s in zip(verdicts, swapped_verdicts, strict=True)
        )
        same_draws = rng.binomial(num_pairs, num_same / num_pairs, size=num_bootstrap)
        swap_consistency = _interval(num_same / num_pairs, same_draws / num_pairs)
    return {
        "num_pairs": num_pairs,
        **{name: _interval(ratio(counts), ratio(draws)) for name, ratio in _RATIOS.items()},
        "num_parse_fail": sum(verdict is None for verdict in verdicts),
        "num_judge_fail": int(counts[_FAILED]),
        "swap_consistency": swap_consistency,
    }


def _categories(verdicts, labels, outcomes) -> np.ndarray:
    """[num_pairs] int64: the category of each pair."""
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


# counts [..., 4] -> [...]
_RATIOS = {
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
