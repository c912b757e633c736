r"""Judgments that the released evaluator's rule and the rule of training read differently.

The metrics of judged files are by the released rule: the first ``\boxed{A}`` of the whole text. Training reads the one
verdict of the visible text. A judge that quotes a verdict, or gives a second one, is measured by another verdict than
it was paid for.
"""

from collections.abc import Mapping, Sequence

from ralign.engine.data.verdicts import released_verdict, verdict_of
from ralign.engine.evaluation.records import JudgedPair

FIELD = "num_rules_differ"
_TEXTS = ("model_judgment", "model_judgment_swapped")


def num_rules_differ(pairs: Sequence[JudgedPair]) -> int:
    """Judgments, those of both orders, to which the two rules give different verdicts."""
    texts = [text for pair in pairs for name in _TEXTS if (text := pair.record.get(name))]
    return sum(released_verdict(text) != verdict_of(text) for text in texts)


def rules_notes(judged: Mapping[str, Mapping[str, Sequence[JudgedPair]]]) -> list[str]:
    """A sentence for each test of a model with such judgments; `judged` is by model and test."""
    notes = []
    for model, tests in judged.items():
        for test, pairs in tests.items():
            if count := num_rules_differ(pairs):
                notes.append(
                    f"{FIELD}={count}, {model} on {test}: training reads another verdict than the released rule, by"
                    " which all metrics are (thinking, a second verdict, or spaces in the box)"
                )
    return notes
