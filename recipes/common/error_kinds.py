"""Which errors the rationales of a judge have, in JudgeWorld's second edition."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ralign.engine.judging.metarm import Outcome
from ralign.engine.judging.second_edition_rule import audit, factors_of
from ralign.engine.runtime.files import replacing


def count_kinds(records: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Kind of error -> number, of the right verdicts with an Incorrect rationale in records of judged pairs."""
    kinds: Counter[str] = Counter()
    for record in records:
        if record.get("metarm_verdict") != Outcome.INCORRECT.value or not factors_of(record["gt_judgment"]):
            continue
        kind = audit(record["gt_judgment"], record["model_judgment"])
        # Another MetaRM than the rule may find a rationale Incorrect that the rule does not.
        kinds["not by the rule" if kind is None else kind.value] += 1
    return kinds


def write_error_kinds(folder: Path, models: Iterable[str], tests: Iterable[str]) -> str:
    """Write report/error_kinds.json of a run; returns one line for the terminal, empty without an error.

    folder: of the run, with MODEL/judgments_TEST.jsonl for each model and test.
    """
    tests = list(tests)
    found: dict[str, dict[str, dict[str, int]]] = {}
    total: dict[str, Counter[str]] = {}
    for model in models:
        counts = {test: count_kinds(_records(folder / model / f"judgments_{test}.jsonl")) for test in tests}
        found[model] = {test: dict(count.most_common()) for test, count in counts.items()}
        total[model] = sum(counts.values(), Counter())
    with replacing(folder / "report" / "error_kinds.json") as file:
        json.dump(found, file, indent=1)
    shown = [f"{model}: {count.most_common(1)[0][0]}" for model, count in total.items() if count]
    return f"most frequent error of rationales: {', '.join(shown)}" if shown else ""


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
