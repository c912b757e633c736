"""Metrics of judged files: tests, subsets and comparisons of models, and the outputs of an evaluation.

Two models on the same pairs: how far apart are they, and could the difference be chance? The pairs of a prompt stay
together. `judging.intervals` has the interval of the difference. The p-value: if the models were alike, an exchange of
their results on any prompt would change nothing. The categories of both models (wrong, Correct, Incorrect, failed) make
a 4 x 4 table of counts for each prompt, and an exchange transposes it. Each prompt is exchanged with probability 1/2;
prompts with the same table are drawn together, as a binomial number. p is the share of such draws that are at least as
far apart as the observed sum (Monte Carlo, two-sided, the observed one counted among the draws). For L-Acc, where every
prompt has one pair, this is McNemar's exact test.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ralign.engine.evaluation.baselines import MARKED, baselines_of, cue_notes, cue_sides
from ralign.engine.evaluation.records import (
    JudgedPair,
    by_subset,
    read_judged,
    released_name,
    subset_of,
    test_of,
    write_records,
)
from ralign.engine.evaluation.rules import FIELD, num_rules_differ, rules_notes
from ralign.engine.judging.intervals import clusters_of, difference_interval
from ralign.engine.judging.metarm import Outcome
from ralign.engine.judging.metrics import (
    METRICS,
    NUM_CATEGORIES,
    Metric,
    categorise,
    count_by_prompt,
    flip_rates,
    measure,
    prompt_key,
)
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
_MAX_NUMBERS = 4_000_000  # random numbers drawn at once

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


def score(judged: Judged, *, subset_field: str, cue: str = MARKED) -> dict[str, dict[str, Any]]:
    """Results by model and test, in the form that `report.summary` needs; with `subsets` for a test of several."""
    results: dict[str, dict[str, Any]] = {}
    for model, tests in judged.items():
        for test, pairs in tests.items():
            result = measure_judged(pairs, cue)
            subsets = by_subset(pairs, subset_field)
            if len(subsets) > 1:
                result["subsets"] = {
                    name or "(none)": measure_judged(part, cue) for name, part in subsets.items()
                }
            results.setdefault(model, {})[test] = result
    return results


def measure_judged(pairs: Sequence[JudgedPair], cue: str = MARKED) -> dict[str, Any]:
    """`measure` on judged pairs, flip rates of those with twins, and failures by kind; both orders if every pair has
    them. The worst group is by `cue`, of `baselines.CUES`.

    num_call_fail: pairs without a verdict because the judge's call failed; they are also in num_parse_fail, and wrong.
    num_swapped_call_fail: the same for the second order. num_metarm_call_fail, num_metarm_parse_fail: the MetaRM's
    failures, whose sum is num_judge_fail. num_rules_differ: see `rules.py`.
    """
    both_orders = all(pair.in_both_orders for pair in pairs)
    result = measure(
        *_columns(pairs),
        swapped_verdicts=[pair.swapped_verdict for pair in pairs] if both_orders else None,
        clusters=_prompts(pairs),
        cue_sides=cue_sides([pair.record for pair in pairs], cue),
    )
    if rates := _flip_rates(pairs):
        result["flip_rate"] = rates
    result["num_call_fail"] = sum(pair.call_failed for pair in pairs)
    if both_orders:
        result["num_swapped_call_fail"] = sum(pair.swapped_call_failed for pair in pairs)
    result["num_metarm_call_fail"] = sum(pair.outcome is Outcome.CALL_FAIL for pair in pairs)
    result["num_metarm_parse_fail"] = sum(pair.outcome is Outcome.PARSE_FAIL for pair in pairs)
    result[FIELD] = num_rules_differ(pairs)
    return result


def _flip_rates(pairs: Sequence[JudgedPair]) -> dict[str, dict[str, Any]]:
    """By kind, over the pairs whose twins were judged; empty if there are none."""
    found = [(pair, pair.twin_verdicts) for pair in pairs if pair.twin_verdicts is not None]
    judged = [pair for pair, _ in found]
    verdicts = [pair.greedy_verdict for pair in judged]
    return flip_rates(verdicts, [twins for _, twins in found], clusters=_prompts(judged)) if found else {}


def compare_models(
    judged: Judged, *, num_draws: int = NUM_DRAWS, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Every model against the first one, on each test of both, over the pairs that both judged."""
    comparisons: dict[str, list[dict[str, Any]]] = {}
    baseline, *others = judged
    for test, pairs in judged[baseline].items():
        for model in others:
            if test not in judged[model]:
                continue
            found = compare_pairs(pairs, judged[model][test], num_draws=num_draws, seed=seed)
            if found is not None:
                names = {"baseline": baseline, "model": model}
                comparisons.setdefault(test, []).append({**names, **found})
    return comparisons


def compare_pairs(
    baseline: Sequence[JudgedPair], model: Sequence[JudgedPair], *, num_draws: int, seed: int
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
    prompts = _prompts([of_baseline[id] for id in shared])
    return compare(*categories, clusters=prompts, num_draws=num_draws, seed=seed)


def _columns(pairs: Sequence[JudgedPair]) -> tuple[list, list, list]:
    """Verdicts, labels, outcomes."""
    return (
        [pair.verdict for pair in pairs],
        [pair.label for pair in pairs],
        [pair.outcome for pair in pairs],
    )


def _prompts(pairs: Sequence[JudgedPair]) -> list[str]:
    """The key of each pair's prompt."""
    return [prompt_key(pair.id, pair.record.get("conversations"), pair.record.get("meta")) for pair in pairs]


def compare(
    baseline: np.ndarray,
    model: np.ndarray,
    *,
    clusters: Sequence[str] | None = None,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """The difference of each metric, `model` minus `baseline`.

    Args:
        baseline, model: [num_pairs] int64, the categories of `metrics.categorise` on the same pairs in the same order.
        clusters: the key of each pair's prompt; None: every pair has its own prompt.
        num_draws, seed: of the permutation test.

    Returns:
        num_pairs; num_different (pairs with different categories); for each metric {difference, low, high, p_value}:
        fractions, 95 % interval; all None where the metric has no denominator.
    """
    assert baseline.shape == model.shape and baseline.size
    numbers = clusters_of(clusters, len(baseline))
    cells = count_by_prompt(baseline * NUM_CATEGORIES + model, numbers, NUM_CATEGORIES**2)
    tables = cells.reshape(-1, NUM_CATEGORIES, NUM_CATEGORIES)  # [num_prompts, of the baseline, of the model]
    table = tables.sum(0)
    exchanged = _exchanged(cells, num_draws, np.random.default_rng(seed))
    result: dict[str, Any] = {
        "num_pairs": len(baseline),
        "num_different": int(len(baseline) - np.trace(table)),
    }
    for name, metric in METRICS.items():
        found: dict[str, Any] = difference_interval(*(metric.ratio(tables.sum(axis)) for axis in (2, 1)))
        found["p_value"] = None
        if found["difference"] is not None:
            # A draw without a denominator is no evidence against chance: it counts as far apart.
            least = abs(float(_difference(metric, table))) - _ROUNDING
            near = np.abs(_difference(metric, exchanged)) < least
            found["p_value"] = (1 + num_draws - int(near.sum())) / (1 + num_draws)
        result[name] = found
    return result


def _exchanged(cells: np.ndarray, num_draws: int, rng: np.random.Generator) -> np.ndarray:
    """[num_draws, NUM_CATEGORIES, NUM_CATEGORIES]: sums of the prompts' tables, each exchanged with probability 1/2.

    cells: [num_prompts, NUM_CATEGORIES**2], the tables.
    """
    kinds, counts = np.unique(cells, axis=0, return_counts=True)
    square = kinds.reshape(-1, NUM_CATEGORIES, NUM_CATEGORIES)
    moves = (square.transpose(0, 2, 1) - square).reshape(kinds.shape)
    changes = moves.any(1)
    moves, counts = moves[changes], counts[changes]
    size = max(1, _MAX_NUMBERS // max(1, len(counts)))
    drawn = [
        rng.binomial(counts, 0.5, size=(min(size, num_draws - start), len(counts))) @ moves
        for start in range(0, num_draws, size)
    ]
    return (cells.sum(0) + np.concatenate(drawn)).reshape(-1, NUM_CATEGORIES, NUM_CATEGORIES)


def _difference(metric: Metric, tables: np.ndarray) -> np.ndarray:
    """tables [..., baseline, model] -> [...]: the model's metric minus the baseline's."""
    return metric.of(tables.sum(-2)) - metric.of(tables.sum(-1))


def summarise(
    judged: Judged,
    *,
    subset_field: str,
    cue: str = MARKED,
    num_draws: int = NUM_DRAWS,
    seed: int,
    time_s: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The summary of judged files, with comparisons and the baselines that need no model.

    cue: the surface feature of the worst group, of `baselines.CUES`.
    num_draws, seed: of the comparisons' permutation test.
    """
    return make_summary(
        score(judged, subset_field=subset_field, cue=cue),
        seed=seed,
        time_s=time_s or {},
        comparisons=compare_models(judged, num_draws=num_draws, seed=seed),
        baselines=baselines_of(_records_by_test(judged)),
        notes=[*cue_notes(cue), *rules_notes(judged)],
    )


def _records_by_test(judged: Judged) -> dict[str, list[dict[str, Any]]]:
    """The pairs of each test that any model judged."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for tests in judged.values():
        for test, pairs in tests.items():
            for pair in pairs:
                found.setdefault(test, {}).setdefault(pair.id, pair.record)
    return {test: list(records.values()) for test, records in found.items()}


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
