"""Baselines that need no model: the L-Acc of rules that read neither the prompt nor what the responses say.

    longer        the response with more characters; a tie counts half
    first_side    always A
    cue           the side of the spurious cue, in a world that marks it (`meta.cue_side`)

A judge that is not better than these on a test has not shown there that it reads. A rule gives no rationale, so S-Corr
and F-Score do not exist.

The same features say where a surface cue points: the worst group of a feature is the pairs whose worse response has it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from ralign.engine.data.markup import num_marks
from ralign.engine.data.pairs import SIDES, Pair
from ralign.engine.judging.intervals import clusters_of, ratio_of, share_interval
from ralign.engine.judging.metrics import prompt_key

Record = Mapping[str, Any]
Baselines = dict[str, dict[str, dict[str, Any]]]  # by rule and test


def _more(record: Record, amount: Callable[[str], int]) -> str | None:
    """The side with the larger amount: "A", "B" or "tie"; None without both texts."""
    a, b = record.get("response_A"), record.get("response_B")
    if a is None or b is None:
        return None
    amount_a, amount_b = amount(a), amount(b)
    if amount_a == amount_b:
        return "tie"
    return "A" if amount_a > amount_b else "B"


def _longer(record: Record) -> str | None:
    return _more(record, len)


def _cue(record: Record) -> str | None:
    side = (record.get("meta") or {}).get("cue_side")
    return side if side in SIDES else None


_RULES: dict[str, Callable[[Record], str | None]] = {
    "longer": _longer,
    "first_side": lambda record: "A",
    "cue": _cue,
}
MARKED = "marked"
CUES: dict[str, Callable[[Record], str | None]] = {
    MARKED: _cue,
    "longer": _longer,
    "markdown": lambda record: _more(record, num_marks),
}
_MISLED = {"longer": "longer response is the worse one", "markdown": "worse response has more Markdown"}


def cue_sides(records: Sequence[Record], cue: str = MARKED) -> list[str | None]:
    """The side to which the surface feature `cue`, of `CUES`, points in each record; None where it does not."""
    sides = [CUES[cue](record) for record in records]
    return [side if side in SIDES else None for side in sides]


def cue_notes(cue: str) -> list[str]:
    """What the worst group of a report is, unless the pairs mark their cue themselves."""
    return [f"Worst group: the pairs whose {_MISLED[cue]}."] if cue in _MISLED else []


def baselines_of(tests: Mapping[str, Sequence[Record | Pair]]) -> Baselines:
    """{RULE: {TEST: {"num_pairs": n, "l_acc": {value, low, high}}}}, for `report.summary.make_summary`.

    A rule is left out of a test in which it decides not every pair. Intervals are clustered by prompt.

    tests: the pairs of each test, or their records in a judged file.
    """
    found: Baselines = {}
    for test, pairs in tests.items():
        records = [asdict(pair) if isinstance(pair, Pair) else pair for pair in pairs]
        keys = [
            prompt_key(str(record["id"]), record.get("conversations"), record.get("meta"))
            for record in records
        ]
        clusters = clusters_of(keys, len(records))
        for name, rule in _RULES.items():
            sides = [rule(record) for record in records]
            if not sides or None in sides:
                continue
            hits = [
                0.5 if side == "tie" else float(side == record["gt_label"])
                for side, record in zip(sides, records, strict=True)
            ]
            interval = share_interval(ratio_of(np.array(hits), clusters))
            found.setdefault(name, {})[test] = {"num_pairs": len(records), "l_acc": interval}
    return found
