"""Checks of a pairs file: errors, warnings and statistics."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ralign.engine.data.pairs import NO_PROMPT, Pair, ends_otherwise, prompt_text, scan_pairs
from ralign.engine.data.swap import why_not_swapped
from ralign.engine.data.verdicts import verdict_of, visible

_UNBALANCED = 0.1  # distance of the share of label A from one half that counts as unbalanced


@dataclass(slots=True, kw_only=True)
class Report:
    """errors: lines that no command reads. warnings: kind -> ids of readable pairs that are probably mistakes."""

    num_pairs: int
    errors: list[str]
    warnings: dict[str, list[str]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def check_file(path: str | Path, *, need_golden: bool = True) -> Report:
    """Checks every line and pair of a file. Raises UserError only if it cannot be read."""
    pairs, errors = scan_pairs(path, need_golden=need_golden)
    warnings = {kind: ids for kind, ids in _warnings(pairs).items() if ids}
    return Report(num_pairs=len(pairs), errors=errors, warnings=warnings, facts=_facts(pairs))


def _warnings(pairs: Sequence[Pair]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {
        kind: []
        for kind in (
            "the golden judgment's verdict is not the label",
            "the golden judgment is empty",
            "the golden judgment is only thinking, which the MetaRM does not read",
            "the golden judgment cannot be swapped reliably",
            "the two responses are the same",
            "prompt and responses are those of an earlier pair",
        )
    }
    wrong, empty, hidden, unsure, same, repeated = found.values()
    seen: set[tuple[str, frozenset[str]]] = set()
    for pair in pairs:
        golden = visible(pair.gt_judgment)
        verdict = verdict_of(golden)
        if not pair.gt_judgment.strip():
            empty.append(pair.id)
        elif not golden:
            hidden.append(pair.id)
        else:
            if verdict is not None and verdict != pair.gt_label:
                wrong.append(pair.id)
            if why_not_swapped(pair):
                unsure.append(pair.id)
        responses = frozenset((pair.response_A.strip(), pair.response_B.strip()))
        if len(responses) == 1:
            same.append(pair.id)
        content = (prompt_text(pair).strip(), responses)
        if content in seen:
            repeated.append(pair.id)
        seen.add(content)
    return found | {
        f"the conversation ends in {role}: {NO_PROMPT}": ids for role, ids in ends_otherwise(pairs).items()
    }


def _facts(pairs: Sequence[Pair]) -> dict[str, Any]:
    if not pairs:
        return {}
    lengths = sorted(len(prompt_text(pair)) + len(pair.response_A) + len(pair.response_B) for pair in pairs)
    labels = Counter(pair.gt_label for pair in pairs)
    longer = sum(
        (len(pair.response_A) > len(pair.response_B)) == (pair.gt_label == "A") for pair in pairs
    ) / len(pairs)
    share = labels["A"] / len(pairs)
    return {
        "label_A": labels["A"],
        "label_B": labels["B"],
        "balanced": abs(share - 0.5) <= _UNBALANCED,
        "longer_is_better": longer,  # share of pairs; far from one half, length predicts the label
        "num_with_golden": sum(bool(pair.gt_judgment.strip()) for pair in pairs),
        "num_multi_turn": sum(len(pair.conversations) > 1 for pair in pairs),
        "chars_median": lengths[len(lengths) // 2],
        "chars_p95": lengths[int(0.95 * (len(lengths) - 1))],
        "chars_max": lengths[-1],
    }
