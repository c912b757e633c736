"""Metrics of judged files: tests, subsets and comparisons of models, and the outputs of an evaluation.

Two models on the same pairs: how far apart are they, and could the difference be chance? The categories of both models
on each pair (wrong, Correct, Incorrect, failed) make a 4 x 4 table of counts, and all three metrics are functions of
its margins. Both resampling schemes therefore need only that table:

- the interval of the difference: pairs drawn with replacement make a table from Multinomial(n, table / n);
- the p-value: if the models were alike, an exchange of their results on any pair would change nothing. Each pair is
  exchanged with probability 1/2, which moves Binomial(table[i, j], 1/2) counts from cell (i, j) to (j, i); p is the
  share of such draws that are at least as far apart as the observed table (Monte Carlo, two-sided, the observed table
  counted among the draws). For L-Acc this is McNemar's exact test.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ralign.engine.evaluation.records import (
    JudgedPair,
    by_subset,
    read_judged,
    released_name,
    subset_of,
    test_of,
    write_records,
)
from ralign.engine.judging.metarm import Outcome
from ralign.engine.judging.metrics import NUM_CATEGORIES, RATIOS, categorise, measure
from ralign.engine.report.browser import write_browser
from ralign.engine.report.metrics_csv import write_csv
from ralign.engine.report.plots import plot_judgments
from ralign.engine.report.summary import make_summary, write_summary
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import check_output, check_output_folder
from ralign.engine.runtime.problems import Problems

NUM_DRAWS = 20_000
_OUTPUTS = ("summary.json", "metrics.csv", "judgments.png", "index.html")
_ROUNDING = 1e-12

Judged = dict[str, dict[str, list[JudgedPair]]]  # by model and test


def read_files(arguments: Sequence[str], *, max_bad_lines: int = 0) -> Judged:
    """Judged files, `FILE` or `NAME=FILE`, by model and test, as `read_named` reads them."""
    return read_named([split_name(argument) for argument in arguments], max_bad_lines=max_bad_lines)


def split_name(argument: str) -> tuple[str | None, Path]:
    """(NAME, FILE) of `NAME=FILE`, or (None, FILE)."""
    if not os.path.exists(argument) and "=" in argument:
        name, _, path = argument.partition("=")
        return name, Path(path)
    return None, Path(argument)


def read_named(files: Sequence[tuple[str | None, Path]], *, max_bad_lines: int = 0) -> Judged:
    """Judged files by model and test.

    The test is the file's name without its suffix, or BENCH in a name by the released evaluator (`records.test_of`).
    The model is the name beside the file, else ``meta.model_name``, else the file's folder.

    Raises:
        UserError: bad files, or two files with the same test of the same model.
    """
    judged: Judged = {}
    problems = Problems()
    for name, path in files:
        with problems.collect():
            parts: dict[tuple[str, str], list[JudgedPair]] = {}
            for pair in read_judged(path, max_bad_lines=max_bad_lines):
                model = name or pair.model or path.resolve().parent.name
                parts.setdefault((model, test_of(path, pair.model)), []).append(pair)
            for (model, test), pairs in parts.items():
                tests = judged.setdefault(model, {})
                if test in tests:
                    raise UserError(
                        f"{path}: model {model!r} has the test {test!r} from another file already;"
                        " name the model with NAME=FILE, or rename the file"
                    )
                tests[test] = pairs
    problems.check()
    return judged


def score(judged: Judged, *, subset_field: str, num_bootstrap: int, seed: int) -> dict[str, dict[str, Any]]:
    """Results by model and test, in the form that `report.summary` needs; with `subsets` for a test of several."""
    results: dict[str, dict[str, Any]] = {}
    for model, tests in judged.items():
        for test, pairs in tests.items():
            result = measure_judged(pairs, num_bootstrap=num_bootstrap, seed=seed)
            subsets = by_subset(pairs, subset_field)
            if len(subsets) > 1:
                result["subsets"] = {
                    name or "(none)": measure_judged(part, num_bootstrap=num_bootstrap, seed=seed)
                    for name, part in subsets.items()
                }
            results.setdefault(model, {})[test] = result
    return results


def measure_judged(pairs: Sequence[JudgedPair], *, num_bootstrap: int, seed: int) -> dict[str, Any]:
    """`measure` on judged pairs, and failures by kind; both orders if every pair has them.

    num_call_fail: pairs without a verdict because the judge's call failed; they are also in num_parse_fail, and wrong.
    num_swapped_call_fail: the same for the second order. num_metarm_call_fail, num_metarm_parse_fail: the MetaRM's
    failures, whose sum is num_judge_fail.
    """
    both_orders = all(pair.in_both_orders for pair in pairs)
    result = measure(
        *_columns(pairs),
        swapped_verdicts=[pair.swapped_verdict for pair in pairs] if both_orders else None,
        num_bootstrap=num_bootstrap,
        seed=seed,
    )
    result["num_call_fail"] = sum(pair.call_failed for pair in pairs)
    if both_orders:
        result["num_swapped_call_fail"] = sum(pair.swapped_call_failed for pair in pairs)
    result["num_metarm_call_fail"] = sum(pair.outcome is Outcome.CALL_FAIL for pair in pairs)
    result["num_metarm_parse_fail"] = sum(pair.outcome is Outcome.PARSE_FAIL for pair in pairs)
    return result


def compare_models(judged: Judged, *, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Every model against the first one, on each test of both, over the pairs that both judged."""
    comparisons: dict[str, list[dict[str, Any]]] = {}
    baseline, *others = judged
    for test, pairs in judged[baseline].items():
        for model in others:
            if test not in judged[model]:
                continue
            found = compare_pairs(pairs, judged[model][test], seed=seed)
            if found is not None:
                names = {"baseline": baseline, "model": model}
                comparisons.setdefault(test, []).append({**names, **found})
    return comparisons


def compare_pairs(
    baseline: Sequence[JudgedPair], model: Sequence[JudgedPair], *, seed: int
) -> dict[str, Any] | None:
    """`compare` on the pairs with the same id; None if there are none. UserError if labels differ."""
    of_baseline: Mapping[str, JudgedPair] = {pair.id: pair for pair in baseline}
    of_model = {pair.id: pair for pair in model}
    shared = [id for id in of_baseline if id in of_model]
    for id in shared:
        if of_baseline[id].label != of_model[id].label:
            raise UserError(f"cannot compare: pair {id!r} is labelled A in one file and B in the other")
    if not shared:
        return None
    categories: list[np.ndarray] = [
        categorise(*_columns([pairs[id] for id in shared])) for pairs in (of_baseline, of_model)
    ]
    return compare(*categories, seed=seed)


def _columns(pairs: Sequence[JudgedPair]) -> tuple[list, list, list]:
    """Verdicts, labels, outcomes."""
    return (
        [pair.verdict for pair in pairs],
        [pair.label for pair in pairs],
        [pair.outcome for pair in pairs],
    )


def compare(
    baseline: np.ndarray, model: np.ndarray, *, num_draws: int = NUM_DRAWS, seed: int = 0
) -> dict[str, Any]:
    """The difference of each metric, `model` minus `baseline`.

    Args:
        baseline, model: [num_pairs] int64, the categories of `metrics.categorise` on the same pairs in the same order.
        num_draws, seed: of both resampling schemes.

    Returns:
        num_pairs; num_different (pairs with different categories); for each metric {difference, low, high, p_value}:
        fractions, 95 % bootstrap interval; all None where the metric has no denominator.
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
        observed = float(_difference(ratio, table))
        if np.isnan(observed):
            result[name] = dict.fromkeys(("difference", "low", "high", "p_value"))
            continue
        low, high = np.nanpercentile(_difference(ratio, drawn), (2.5, 97.5))
        # A draw without a denominator is no evidence against chance: it counts as far apart.
        near = np.abs(_difference(ratio, exchanged)) < abs(observed) - _ROUNDING
        p_value = (1 + num_draws - int(near.sum())) / (1 + num_draws)
        result[name] = {"difference": observed, "low": float(low), "high": float(high), "p_value": p_value}
    return result


def _difference(ratio: Callable[[np.ndarray], np.ndarray], tables: np.ndarray) -> np.ndarray:
    """tables [..., baseline, model] -> [...]: the model's metric minus the baseline's."""
    return ratio(tables.sum(-2)) - ratio(tables.sum(-1))


def summarise(
    judged: Judged,
    *,
    subset_field: str,
    num_bootstrap: int,
    seed: int,
    time_s: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The summary of judged files, comparisons included."""
    results = score(judged, subset_field=subset_field, num_bootstrap=num_bootstrap, seed=seed)
    return make_summary(
        results, seed=seed, time_s=time_s or {}, comparisons=compare_models(judged, seed=seed)
    )


def check_outputs(folder: str | Path, inputs: Sequence[str | Path]) -> None:
    """Raises UserError if `write_outputs` cannot write into this folder, or would replace an input."""
    for name in _OUTPUTS:
        check_output(check_output_folder(folder) / name, inputs)


def write_outputs(
    summary: Mapping[str, Any], judged: Judged, folder: str | Path, *, subset_field: str
) -> Path:
    """Write summary.json, metrics.csv, the bar chart and the page into `folder`; returns the page's path."""
    summary_file, table, figure, page = (Path(folder) / name for name in _OUTPUTS)
    write_summary(summary, summary_file)
    write_csv(summary, table)
    plot_judgments(summary, figure)
    records = {
        model: {test: [pair.record for pair in pairs] for test, pairs in tests.items()}
        for model, tests in judged.items()
    }
    return write_browser(
        summary,
        records,
        page,
        subset_of=lambda record: subset_of(record, subset_field),
        figure=figure,
    )


def write_released(judged: Judged, folder: str | Path, inputs: Sequence[str | Path]) -> None:
    """Write each test of each model into `folder`, under the released summary's name for it.

    Raises:
        UserError: two would have the same name, one would have no name or replace one of `inputs`, or the disk is full.
    """
    named: dict[Path, tuple[str, str]] = {}
    for model, tests in judged.items():
        for test in tests:
            path = check_output(check_output_folder(folder) / released_name(test, model), inputs)
            if path in named:
                other_model, other_test = named[path]
                raise UserError(
                    f"--released {folder}: {model} on {test} and {other_model} on {other_test} would both be"
                    f" {path.name}; give one of the models another name with NAME=FILE"
                )
            named[path] = model, test
    for path, (model, test) in named.items():
        records = (pair.record for pair in judged[model][test])
        write_records(
            ({**record, "meta": {**(record.get("meta") or {}), "model_name": model}} for record in records),
            path,
        )
