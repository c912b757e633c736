"""Correlation of judge metrics with actor quality, for one seed and over several.

x is a judge's L-Acc or F-Score in distribution, like a benchmark. y is the true quality of the actor trained against
it, or its gain over the seed's warm start. r is Pearson's. The actors of a seed share their start, and so do their
judges, so they are not independent samples. Intervals are 95 % ones:

    one run        Fisher's interval, which assumes independence and is therefore too narrow
    several seeds  a bootstrap clustered by seed: seeds are drawn with replacement, and actors within each seed. With
                   two or three seeds it is still too narrow: other seeds may differ more than these
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ralign.engine.report.summary import METRICS

PREDICTORS = ("l_acc", "f_score")  # metrics of a judge
OUTCOMES = ("quality", "gain")  # of an actor: true quality, and its gain over the warm start
_NUM_DRAWS = 10_000


def points(
    judges: Mapping, actors: Mapping, metric: str, outcome: str = "quality", test: str = "in_distribution"
) -> np.ndarray:
    """[n, 2]: for each actor trained against a judge, the judge's metric and the actor's outcome."""
    start = next((actor["quality"]["value"] for actor in actors.values() if actor["judge"] is None), 0.0)
    level = start if outcome == "gain" else 0.0
    found = [
        (judges[actor["judge"]][test][metric]["value"], actor["quality"]["value"] - level)
        for actor in actors.values()
        if actor["judge"] is not None
    ]
    return np.array(found, dtype=float).reshape(-1, 2)


def pearson(xy: np.ndarray) -> float | None:
    """r of [n, 2] points; None for fewer than four points, or without variance."""
    if len(xy) < 4 or np.ptp(xy[:, 0]) == 0 or np.ptp(xy[:, 1]) == 0:
        return None
    return float(np.corrcoef(xy.T)[0, 1])


def correlation(xy: np.ndarray) -> dict[str, float] | None:
    """r of one seed's [n, 2] points, with Fisher's 95 % interval for independent points."""
    r = pearson(xy)
    if r is None:
        return None
    z, half = math.atanh(max(min(r, 1 - 1e-12), -1 + 1e-12)), 1.96 / math.sqrt(len(xy) - 3)
    return {"value": r, "low": math.tanh(z - half), "high": math.tanh(z + half), "num": len(xy)}


def pooled(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Correlations over the actors of several seeds' summaries.

    Returns:
        {"seeds": […], "num_actors": n, "per_seed": {SEED: {"l_acc": r or null, "f_score": r or null}},
         OUTCOME: {"l_acc": {"value", "low", "high"}, "f_score": {…}, "difference": {…}}}
        for the outcomes `quality` and `gain`. `difference` is the r of F-Score less that of L-Acc, in the same
        resamples. Within a seed both outcomes have the same r. An undefined r is null.
    """
    of_seeds = [_points(summary, PREDICTORS[0], "quality") for summary in summaries]
    weights = _draws([len(xy) for xy in of_seeds])
    found: dict[str, Any] = {
        "seeds": [summary["seed"] for summary in summaries],
        "num_actors": sum(map(len, of_seeds)),
        "per_seed": {
            str(summary["seed"]): {name: pearson(_points(summary, name, "quality")) for name in PREDICTORS}
            for summary in summaries
        },
    }
    for outcome in OUTCOMES:
        values, drawn = {}, {}
        for name in PREDICTORS:
            xy = np.concatenate([_points(summary, name, outcome) for summary in summaries])
            r = pearson(xy)
            values[name] = math.nan if r is None else r
            drawn[name] = _weighted_pearson(xy, weights)
        for of in (values, drawn):
            of["difference"] = of["f_score"] - of["l_acc"]
        found[outcome] = {name: _with_interval(values[name], drawn[name]) for name in values}
    return found


def _points(summary: Mapping[str, Any], metric: str, outcome: str) -> np.ndarray:
    return points(summary["models"], summary["actors"], metric, outcome)


def _draws(num_actors: Sequence[int]) -> np.ndarray:
    """[draws, n] count of each actor in a resample, with as many seeds and actors per seed as in the data."""
    rng, num_seeds = np.random.default_rng(0), len(num_actors)
    times = rng.multinomial(num_seeds, [1 / num_seeds] * num_seeds, _NUM_DRAWS)
    of_seed = [rng.multinomial(times[:, i] * n, [1 / n] * n) for i, n in enumerate(num_actors)]
    return np.concatenate(of_seed, axis=1)


def _weighted_pearson(xy: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[draws] r of [n, 2] points under [draws, n] weights; NaN for resamples without variance."""
    share = weights / weights.sum(1, keepdims=True)
    x, y = (xy - xy.mean(0)).T
    covariance = share @ (x * y) - (share @ x) * (share @ y)
    variances = [share @ (z * z) - (share @ z) ** 2 for z in (x, y)]
    # A variance of 0 may be a rounding error instead of 0.
    spread = (variances[0] > 1e-12) & (variances[1] > 1e-12)
    return np.where(spread, covariance / np.sqrt(np.where(spread, variances[0] * variances[1], 1)), math.nan)


def _with_interval(value: float, drawn: np.ndarray) -> dict[str, float | None]:
    if math.isnan(value):
        return {"value": None, "low": None, "high": None}
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return {"value": value, "low": float(low), "high": float(high)}


def correlation_table(found: Mapping[str, Mapping[str, float] | None]) -> list[list[str]]:
    """Heading and a row for each metric of a judge, of one seed."""
    rows = [["judge's metric", "r", "95 % if actors were independent", "actors"]]
    for name, r in found.items():
        cells = [f"{r['value']:.2f}", f"{r['low']:.2f} to {r['high']:.2f}", str(r["num"])] if r else ["–"] * 3
        rows.append([METRICS[name], *cells])
    return rows


def pooled_table(found: Mapping[str, Any]) -> list[list[str]]:
    """Heading and rows: r of each seed, then of all actors by outcome, with intervals."""
    rows = [["r with the actor's", "judge's L-Acc", "judge's F-Score", "F-Score less L-Acc"]]
    for seed, r in found["per_seed"].items():
        less = None if None in r.values() else r["f_score"] - r["l_acc"]
        rows.append([f"quality, seed {seed}", *(_cell(value) for value in (*r.values(), less))])
    for outcome in OUTCOMES:
        cells = [_cell(r["value"], r["low"], r["high"]) for r in found[outcome].values()]
        rows.append([f"{outcome}, all {found['num_actors']} actors", *cells])
    return rows


def _cell(value: float | None, low: float | None = None, high: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low is not None else "")
