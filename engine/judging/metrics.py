"""L-Acc, S-Corr, F-Score and flip rates of a judge: how often is it right, for the right reason, and by the surface?

Each pair is in one of four categories: wrong (another verdict than the label, or none), Correct, Incorrect, and failed
(the verdict is the label, but the MetaRM gave no usable answer). The released R-Align evaluator defines

    L-Acc   = (Correct + Incorrect + failed) / all
    S-Corr  = Incorrect / (Correct + Incorrect)
    F-Score = Correct / (all - failed)

so that F-Score = L-Acc (1 - S-Corr) without failures. A judge may name the right reason and still take its side from
a surface cue, such as the layout; S-Corr does not show that. Two further metrics do:

    worst-group L-Acc = right verdicts / pairs, of the pairs whose cue points to the worse response
    flip rate         = verdicts that change / pairs with a verdict on both twins

Twins are a pair and the same pair under another surface (`data.twins`), both judged greedily, so that sampling changes
no verdict. `intervals` has the 95 % intervals, which take the pairs of a prompt together.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ralign.engine.judging.intervals import Ratio, clusters_of, ratio_of, share_interval
from ralign.engine.judging.metarm import Outcome
from ralign.engine.runtime.errors import UserError

NUM_CATEGORIES = 4
_WRONG, _CORRECT, _INCORRECT, _FAILED = range(NUM_CATEGORIES)
_OTHER = {"A": "B", "B": "A", None: None}


class Metric(NamedTuple):
    """A ratio of counts of categories: which ones count, and among which."""

    numerator: tuple[int, ...]
    denominator: tuple[int, ...]

    def of(self, counts: np.ndarray) -> np.ndarray:
        """counts [..., NUM_CATEGORIES] -> [...], NaN where the denominator is 0."""
        above, below = counts[..., self.numerator].sum(-1), counts[..., self.denominator].sum(-1)
        return np.where(below > 0, above / np.maximum(below, 1), np.nan)

    def ratio(self, counts: np.ndarray) -> Ratio:
        """counts [num_prompts, NUM_CATEGORIES] -> the ratio over prompts, for its interval."""
        above, below = (counts[:, part].sum(1) for part in (self.numerator, self.denominator))
        return Ratio(above.astype(np.float64), below.astype(np.float64))


METRICS = {
    "l_acc": Metric((_CORRECT, _INCORRECT, _FAILED), (_WRONG, _CORRECT, _INCORRECT, _FAILED)),
    "s_corr": Metric((_INCORRECT,), (_CORRECT, _INCORRECT)),
    "f_score": Metric((_CORRECT,), (_WRONG, _CORRECT, _INCORRECT)),
}


def measure(
    verdicts: Sequence[str | None],
    labels: Sequence[str],
    outcomes: Sequence[Outcome | str],
    *,
    swapped_verdicts: Sequence[str | None] | None = None,
    clusters: Sequence[str] | None = None,
    cue_sides: Sequence[str | None] | None = None,
) -> dict[str, Any]:
    """The metrics of one model on one test, in the form of `report/summary.json`.

    Args:
        verdicts: "A", "B" or None (no verdict: wrong).
        labels: "A" or "B".
        outcomes: `Outcome`s, or their names in a judged file; SkippedLabelMismatch exactly where the verdict is not
            the label.
        swapped_verdicts: verdicts on the same pairs with the responses swapped, as written (an "A" names the response
            that is B in `labels`). Without them swap_consistency is None, and there is no both_order_l_acc.
        clusters: the key of each pair's prompt (`prompt_key`); pairs of one prompt are not independent, which widens
            the intervals. None: every pair has its own prompt.
        cue_sides: the response of each pair to which a surface cue points; None where it points to neither.

    Returns:
        num_pairs; l_acc, s_corr, f_score, swap_consistency and both_order_l_acc as {value, low, high} (fractions; all
        None where the denominator is 0); num_parse_fail (no verdict) and num_judge_fail (the review failed). If any
        pair has a cue, also worst_group_l_acc, likewise, and num_worst_group, its number of pairs.

    Raises:
        UserError: sequences of different lengths, unknown names, or outcomes that contradict the verdicts.
    """
    categories = categorise(verdicts, labels, outcomes)
    if swapped_verdicts is not None and len(swapped_verdicts) != len(labels):
        raise UserError(f"{len(swapped_verdicts)} swapped verdicts for {len(labels)} pairs")
    if clusters is not None and len(clusters) != len(labels):
        raise UserError(f"{len(clusters)} prompts for {len(labels)} pairs")
    if cue_sides is not None and len(cue_sides) != len(labels):
        raise UserError(f"{len(cue_sides)} cues for {len(labels)} pairs")
    numbers = clusters_of(clusters, len(labels))
    counts = count_by_prompt(categories, numbers)
    result: dict[str, Any] = {
        "num_pairs": len(categories),
        **{name: share_interval(metric.ratio(counts)) for name, metric in METRICS.items()},
        "num_parse_fail": sum(verdict is None for verdict in verdicts),
        "num_judge_fail": int(counts[:, _FAILED].sum()),
        "swap_consistency": None,
    }
    if swapped_verdicts is not None:
        second = [_OTHER[verdict] for verdict in swapped_verdicts]
        same = [v is not None and v == s for v, s in zip(verdicts, second, strict=True)]
        right = [s and v == label for s, v, label in zip(same, verdicts, labels, strict=True)]
        result["swap_consistency"] = share_interval(ratio_of(np.array(same), numbers))
        result["both_order_l_acc"] = share_interval(ratio_of(np.array(right), numbers))
    if cue_sides is not None and any(cue_sides):
        misled = np.array([side not in (None, label) for side, label in zip(cue_sides, labels, strict=True)])
        right = np.array([verdict == label for verdict, label in zip(verdicts, labels, strict=True)])
        result["worst_group_l_acc"] = share_interval(ratio_of(right[misled], numbers[misled]))
        result["num_worst_group"] = int(misled.sum())
    return result


def flip_rates(
    verdicts: Sequence[str | None],
    twins: Sequence[Mapping[str, str | None]],
    *,
    clusters: Sequence[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """How often the verdict changes if only the surface does, for each kind of twins.

    Args:
        verdicts: the greedy verdict on each pair, "A", "B" or None.
        twins: of each pair, kind -> the greedy verdict on its twin, by the response that it names: "A" is what
            `response_A` says in the pair itself, also if the twin has it as B. Without the kind: no twin.
        clusters: as of `measure`.

    Returns:
        kind -> {value, low, high, num_pairs, num_without_verdict, num_without_twin}: the share of num_pairs, the pairs
        with a verdict on both twins (None without any); pairs without a verdict on one of them; pairs without a twin.

    Raises:
        UserError: sequences of different lengths.
    """
    if not len(verdicts) == len(twins) == len(verdicts if clusters is None else clusters):
        raise UserError(f"{len(verdicts)} verdicts and {len(twins)} pairs with twins")
    numbers = clusters_of(clusters, len(verdicts))
    found = {}
    for kind in dict.fromkeys(kind for of_pair in twins for kind in of_pair):
        has_twin = np.array([kind in of_pair for of_pair in twins])
        both = np.array(
            [
                None not in (verdict, of_pair.get(kind))
                for verdict, of_pair in zip(verdicts, twins, strict=True)
            ]
        )
        flips = np.array(
            [verdict != of_pair.get(kind) for verdict, of_pair in zip(verdicts, twins, strict=True)]
        )
        found[kind] = {
            **share_interval(ratio_of(flips[both], numbers[both])),
            "num_pairs": int(both.sum()),
            "num_without_verdict": int((has_twin & ~both).sum()),
            "num_without_twin": int((~has_twin).sum()),
        }
    return found


def prompt_key(
    id: str, conversations: Sequence[Mapping[str, Any]] | None, meta: Mapping[str, Any] | None
) -> str:
    """The key of a pair's prompt, for `clusters`: of two pairs it is equal if they ask the same.

    That is `meta.prompt_id` where it is given, else a hash of the turns; `id`, the pair's own, where it has no turns.
    """
    if meta and meta.get("prompt_id") is not None:
        return f"prompt_id {meta['prompt_id']}"
    if not conversations:
        return f"id {id}"
    turns = json.dumps([[turn.get("role"), turn.get("content")] for turn in conversations])
    return f"turns {hashlib.blake2b(turns.encode(), digest_size=16).hexdigest()}"


def count_by_prompt(
    categories: np.ndarray, clusters: np.ndarray, num_categories: int = NUM_CATEGORIES
) -> np.ndarray:
    """[num_prompts, num_categories] int64: the pairs of each prompt in each category."""
    num_prompts = int(clusters.max()) + 1
    cells = np.bincount(clusters * num_categories + categories, minlength=num_prompts * num_categories)
    return cells.reshape(num_prompts, num_categories)


def categorise(
    verdicts: Sequence[str | None], labels: Sequence[str], outcomes: Sequence[Outcome | str]
) -> np.ndarray:
    """[num_pairs] int64: the category of each pair, from 0 to NUM_CATEGORIES - 1. Raises as `measure`."""
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
