"""report/summary.json: the results of an evaluation by model and test, in a stable format for other tools.

    {"models": {MODEL: {TEST: {"num_pairs": n, "l_acc": {"value": v, "low": l, "high": h}, "s_corr": {…},
     "f_score": {…}, "num_parse_fail": n, "num_judge_fail": n, "swap_consistency": {…} or null}}},
     "seed": n, "time_s": {STAGE: t}}

Metrics are fractions from 0 to 1; a metric without a denominator has nulls. A result of judged files also has
`num_call_fail` (the judge's failed calls, which `num_parse_fail` includes), `num_metarm_call_fail` and
`num_metarm_parse_fail` (their sum is `num_judge_fail`), and, if pairs were judged in both orders, `both_order_l_acc`
and `num_swapped_call_fail`. Where a surface cue points to one of the responses, a result has `worst_group_l_acc`, the
L-Acc over the pairs whose cue misleads, and their number, `num_worst_group`. If twins were judged, it has `flip_rate`,
{KIND: {"value": v, "low": l, "high": h, "num_pairs": n, "num_without_verdict": n, "num_without_twin": n}}. It may have
`subsets`, {SUBSET: result}. A summary may have `comparisons`, {TEST: [comparison of two models]}; `baselines`,
{RULE: {TEST: {"num_pairs": n, "l_acc": {…}}}}, with the rules of `BASELINES`, which are not models; and `notes`,
sentences on how the figures may be read.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import read_json_object, write_text
from ralign.engine.runtime.text import printable

METRICS = {"l_acc": "L-Acc", "s_corr": "S-Corr", "f_score": "F-Score"}
OPTIONAL_METRICS = {
    "worst_group_l_acc": "Worst group",
    "swap_consistency": "Swap",
    "both_order_l_acc": "Both orders",
}
_COUNTS = ("num_pairs", "num_parse_fail", "num_judge_fail")
CALL_COUNTS = ("num_call_fail", "num_swapped_call_fail", "num_metarm_call_fail", "num_metarm_parse_fail")
FLIP_COUNTS = ("num_pairs", "num_without_verdict", "num_without_twin")
_OPTIONAL = {
    *OPTIONAL_METRICS,
    *CALL_COUNTS,
    *("num_worst_group", "flip_rate", "num_rules_differ", "subsets"),
}
BASELINES = {
    "longer": "no model: the longer response",
    "first_side": "no model: always A",
    "cue": "no model: the cue's side",
}
_MAY_HAVE = {"comparisons", "baselines", "notes"}
Interval = Mapping[str, float | None]  # value, low and high
_NAMES = {"sft": "SFT", "rlvr": "RLVR", "r_align": "R-Align"}


def make_summary(
    models: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    seed: int,
    time_s: Mapping[str, float],
    comparisons: Mapping[str, list[dict[str, Any]]] | None = None,
    baselines: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The summary of an evaluation; `models[MODEL][TEST]` is a result of `judging.metrics.measure`."""
    summary: dict[str, Any] = {
        "models": {
            model: {test: dict(result) for test, result in tests.items()} for model, tests in models.items()
        },
        "seed": seed,
        "time_s": {stage: float(seconds) for stage, seconds in time_s.items()},
    }
    if comparisons:
        summary["comparisons"] = {test: list(found) for test, found in comparisons.items()}
    if baselines:
        summary["baselines"] = {rule: dict(tests) for rule, tests in baselines.items()}
    if notes:
        summary["notes"] = list(notes)
    _check(summary, "summary")
    return summary


def write_summary(summary: Mapping[str, Any], path: str | Path) -> None:
    """Write a summary as JSON, whole or not at all, and create its folder."""
    _check(summary, "summary")
    write_text(path, json.dumps(summary, indent=2, allow_nan=False) + "\n")


def read_summary(path: str | Path) -> dict[str, Any]:
    """Reads a summary; UserError if the file cannot be read or has another format."""
    summary = read_json_object(path)
    _check(summary, str(path))
    return summary


def display(name: str) -> str:
    """A name for display: `r_align` -> `R-Align`, `rlvr_twins` -> `RLVR twins`, `in_distribution` -> `in distribution`.

    The name may come from a file: characters that are not printable are escaped.
    """
    for short, shown in _NAMES.items():
        if name == short or name.startswith(f"{short}_"):
            return printable(f"{shown}{name[len(short) :].replace('_', ' ')}")
    return printable(name.replace("_", " "))


def tests_of(summary: Mapping[str, Any]) -> list[str]:
    """All tests of a summary, in the order in which they first appear."""
    return list(dict.fromkeys(test for tests in summary["models"].values() for test in tests))


def metric_columns(
    results: Sequence[Mapping[str, Any]],
) -> dict[str, Callable[[Mapping[str, Any]], Interval | None]]:
    """The columns of metrics that some of the results have: title -> function from a result to its interval."""
    names = METRICS | {
        name: title for name, title in OPTIONAL_METRICS.items() if any(result.get(name) for result in results)
    }
    columns = {title: partial(_interval_of, name) for name, title in names.items()}
    return columns | {f"Flip rate, {kind}": partial(_flips_of, kind) for kind in flip_kinds(results)}


def flip_kinds(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The kinds of twins of which any result has a flip rate."""
    return list(dict.fromkeys(kind for result in results for kind in result.get("flip_rate", {})))


def _interval_of(name: str, result: Mapping[str, Any]) -> Interval | None:
    return result.get(name)


def _flips_of(kind: str, result: Mapping[str, Any]) -> Interval | None:
    return result.get("flip_rate", {}).get(kind)


def flip_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """The flip rates as a table, one row for each test, model and kind of twins, after a heading; [] without any."""
    rows = [
        [display(test), display(model), kind, percent(found), *(str(found[count]) for count in FLIP_COUNTS)]
        for test in tests_of(summary)
        for model, tests in summary["models"].items()
        for kind, found in tests.get(test, {}).get("flip_rate", {}).items()
    ]
    heading = ["Test", "Model", "Twins", "Flip rate", "Pairs", "Without a verdict", "Without a twin"]
    return [heading, *rows] if rows else []


def baselines_on(summary: Mapping[str, Any], test: str) -> dict[str, dict[str, Any]]:
    """The results of the rules on a test, by the title that a table shows."""
    found = summary.get("baselines", {}).items()
    return {BASELINES[rule]: tests[test] for rule, tests in found if test in tests}


def percent(interval: Interval | None, *, bounds: bool = True) -> str:
    """`97.3 [96.0, 98.4]`, in per cent; `–` without the metric, or without a denominator."""
    if interval is None or interval["value"] is None:
        return "–"
    value = f"{100 * interval['value']:.1f}"
    if not bounds:
        return value
    low, high = interval["low"], interval["high"]
    assert low is not None and high is not None
    return f"{value} [{100 * low:.1f}, {100 * high:.1f}]"


def _check(summary: Any, where: str) -> None:
    if not isinstance(summary, dict) or set(summary) - _MAY_HAVE != {"models", "seed", "time_s"}:
        raise UserError(f"{where}: expected an object with models, seed and time_s")
    for model, tests in _object(summary["models"], f"{where}: models").items():
        for test, result in _object(tests, f"{where}: {model}").items():
            _check_result(result, f"{where}: {model} on {test}")
            subsets = result.get("subsets", {})
            for subset, part in _object(subsets, f"{where}: {model} on {test}: subsets").items():
                _check_result(part, f"{where}: {model} on {test}, {subset}")
    for rule, tests in _object(summary.get("baselines", {}), f"{where}: baselines").items():
        if rule not in BASELINES:
            raise UserError(f"{where}: unknown baseline {rule!r}; there are {', '.join(BASELINES)}")
        for test, result in _object(tests, f"{where}: {rule}").items():
            if set(_object(result, f"{where}: {rule} on {test}")) != {"num_pairs", "l_acc"}:
                raise UserError(f"{where}: {rule} on {test} needs num_pairs and l_acc")
            _check_interval(result["l_acc"], f"{where}: {rule} on {test}", "l_acc")
    notes = summary.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise UserError(f"{where}: notes: expected a list of strings, got {notes!r}")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object, got {value!r}")
    return value


def _check_result(result: Any, where: str) -> None:
    required = {*METRICS, *_COUNTS, "swap_consistency"}
    if odd := required - set(_object(result, where)) | (set(result) - required - _OPTIONAL):
        odd = ", ".join(sorted(odd))
        raise UserError(f"{where}: missing or unknown fields: {odd}")
    for name in (*METRICS, *OPTIONAL_METRICS):
        if name not in METRICS and result.get(name) is None:
            continue
        _check_interval(result[name], where, name)
    for kind, found in _object(result.get("flip_rate", {}), f"{where}: flip_rate").items():
        name = f"flip_rate of {kind}"
        counts = {*FLIP_COUNTS} & set(_object(found, f"{where}: {name}"))
        if len(counts) < len(FLIP_COUNTS):
            raise UserError(f"{where}: {name} needs {', '.join(FLIP_COUNTS)}")
        _check_interval({key: value for key, value in found.items() if key not in counts}, where, name)


def _check_interval(found: Any, where: str, name: str) -> None:
    interval = _object(found, f"{where}: {name}")
    if set(interval) != {"value", "low", "high"}:
        raise UserError(f"{where}: {name} needs value, low and high")
    if not all(
        bound is None or (isinstance(bound, float | int) and 0 <= bound <= 1) for bound in interval.values()
    ):
        raise UserError(f"{where}: {name} is not a fraction: {interval}")
