"""The metrics of judged files, whoever judged them: whole tests, subsets, and models against each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ralign.engine.evaluation.compare import compare
from ralign.engine.evaluation.records import JudgedPair, by_subset, read_judged, test_of
from ralign.engine.judging.metarm import Outcome
from ralign.engine.judging.metrics import categorise, measure
from ralign.engine.runtime.errors import UserError

Judged = dict[str, dict[str, list[JudgedPair]]]  # by model and test


def read_files(paths: Sequence[str], *, max_bad_lines: int = 0) -> Judged:
    """Judged files by model and test.

    The test is the file's name without its suffix, or BENCH where the released evaluator named the file
    (`records.test_of`). The model is ``meta.model_name``, or for lines without it the file's folder; ``NAME=FILE``
    names it outright. Raises `UserError` for a bad file, and if two files give the same test of the same model.
    """
    judged: Judged = {}
    for argument in paths:
        name, path = _split(argument)
        parts: dict[tuple[str, str], list[JudgedPair]] = {}
        for pair in read_judged(path, max_bad_lines=max_bad_lines):
            model = name or pair.model or path.resolve().parent.name
            parts.setdefault((model, test_of(path, pair.model)), []).append(pair)
        for (model, test), pairs in parts.items():
            tests = judged.setdefault(model, {})
            if test in tests:
                raise UserError(
                    f"{argument}: model {model!r} has the test {test!r} from another file already;"
                    " name the model with NAME=FILE, or the file otherwise"
                )
            tests[test] = pairs
    return judged


def _split(argument: str) -> tuple[str | None, Path]:
    if not Path(argument).exists() and "=" in argument:
        name, _, path = argument.partition("=")
        return name, Path(path)
    return None, Path(argument)


def score(judged: Judged, *, subset_field: str, num_bootstrap: int, seed: int) -> dict[str, dict[str, Any]]:
    """Results by model and test, as `report.summary` takes them; with `subsets` where a test has several."""
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
    """`measure` on judged pairs, with failures by kind; both orders where every pair has them.

    num_call_fail: pairs without a verdict since the judge's call failed; they are among num_parse_fail, and wrong.
    num_swapped_call_fail: the same of the second order. num_metarm_call_fail, num_metarm_parse_fail: the MetaRM's,
    together num_judge_fail.
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
    """Every model against the first one, on each test that both have, over the pairs that both judged."""
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
    """`compare` on the pairs with the same id; None if there are none, `UserError` if labels differ."""
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
