"""Two models on the same pairs: how far apart are they, and could it be chance?

Both models' categories on each pair (wrong, Correct, Incorrect, failed) make a 4 x 4 table of counts, and all
three metrics are functions of its margins. So both resampling schemes need that table alone:

- the interval of the difference: pairs drawn with replacement, the table is Multinomial(n, table / n);
- the p-value: if the models were alike, exchanging their results on any one pair would change nothing. Each
  pair is exchanged with probability 1/2, which moves Binomial(table[i, j], 1/2) counts from cell (i, j) to
  (j, i); p is the share of such draws that are at least as far apart as what was seen (Monte Carlo, two-sided,
  the seen table counted among the draws). For L-Acc this is McNemar's exact test.
"""

from typing import Any

import numpy as np
from ralign.engine.judging.metrics import NUM_CATEGORIES, RATIOS

NUM_DRAWS = 20_000
_ROUNDING = 1e-12


def compare(
    baseline: np.ndarray, model: np.ndarray, *, num_draws: int = NUM_DRAWS, seed: int = 0
) -> dict[str, Any]:
    """Each metric's difference, `model` minus `baseline`.

    baseline, model: [num_pairs] int64, the categories of `metrics.categorise` on the same pairs in the same
        order.

    Returns num_pairs, num_different (pairs with other categories), and for each metric {difference, low,
    high, p_value}: fractions, 95 % bootstrap interval; all None where the metric has no denominator.
    """
    assert baseline.shape == model.shape and baseline.size
    num_pairs = len(baseline)
    cells = np.bincount(baseline * NUM_CATEGORIES + model, minlength=NUM_CATEGORIES**2)
    table = cells.reshape(NUM_CATEGORIES, NUM_CATEGORIES)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_pairs, cells / num_pairs, size=num_draws).reshape(-1, *table.shape)
    moved = rng.binomial(table, 0.5, size=(num_draws, *table.shape))
    exchanged = table - moved + moved.transpose(0, 2, 1)
    result: dict[str, Any] = {"num_pairs": num_pairs, "num_different": int(num_pairs - np.trace(table))}
    for name, ratio in RATIOS.items():
        seen = float(_difference(ratio, table))
        if np.isnan(seen):
            result[name] = dict.fromkeys(("difference", "low", "high", "p_value"))
            continue
        low, high = np.nanpercentile(_difference(ratio, drawn), (2.5, 97.5))
        # A draw without a denominator says nothing against chance: it counts as far apart.
        near = np.abs(_difference(ratio, exchanged)) < abs(seen) - _ROUNDING
        p_value = (1 + num_draws - int(near.sum())) / (1 + num_draws)
        result[name] = {"difference": seen, "low": float(low), "high": float(high), "p_value": p_value}
    return result


def _difference(ratio, tables: np.ndarray) -> np.ndarray:
    """tables [..., baseline, model] -> [...]: the metric of the model less that of the baseline."""
    return ratio(tables.sum(-2)) - ratio(tables.sum(-1))
