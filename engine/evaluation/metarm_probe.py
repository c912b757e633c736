"""How well does a MetaRM tell the true reason from others? Rationales built from pairs whose error is known.

RM-Bench's chat pairs plant one error in one response and say which (``meta.error_key``: the words it is about;
the golden judgment: what is true). For each pair four rationales are built, all with the right verdict:

    true_error      names the planted error (by its words, or by the fact that it breaks): Correct
    other_error     blames the same response for something else; in half of the pairs it mentions the words of
                    the true error on the way, as a merit: Incorrect
    style_praise    praises form and tone of the better response: Incorrect
    vague           says that it is more accurate, and not where: Incorrect

A judge that looks for the error's words (`metarms.KeywordMetaRM`) is the baseline: it is fooled by half of the
other errors. The intervals draw prompts, not pairs: variants of one prompt share their error.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ralign.engine.data.pairs import Pair, other_side, prompt_text
from ralign.engine.judging.lm_metarm import Review
from ralign.engine.judging.metarm import Outcome
from ralign.engine.runtime.errors import UserError

KINDS = ("true_error", "other_error", "style_praise", "vague")
_FACT = re.compile(
    r"Correct fact:\s*(.+?)\s*(?:Style, length and formatting are not decisive\.)?\s*$", re.DOTALL
)
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]{4,}")
_NUM_DRAWS = 2000


class Case(NamedTuple):
    """One rationale for the MetaRM."""

    pair: Pair
    kind: str
    rationale: str

    @property
    def expected(self) -> Outcome:
        return Outcome.CORRECT if self.kind == "true_error" else Outcome.INCORRECT


def build_cases(pairs: Sequence[Pair]) -> list[Case]:
    """Four cases a pair. UserError for pairs that do not say where their error is."""
    cases = []
    for number, pair in enumerate(pairs):
        fact = _FACT.search(pair.gt_judgment)
        key = pair.meta.get("error_key")
        if not isinstance(key, str) or not key.strip() or fact is None:
            raise UserError(
                f"pair {pair.id!r} does not say what its error is: meta.error_key and 'Correct fact: …' in"
                " gt_judgment are needed (RM-Bench chat)"
            )
        built = _rationales(pair, key.strip(), fact[1], variant=number % 2)
        cases += [Case(pair, kind, f"{text} \\boxed{{{pair.gt_label}}}") for kind, text in built.items()]
    return cases


def _rationales(pair: Pair, key: str, fact: str, *, variant: int) -> dict[str, str]:
    good, bad = pair.gt_label, other_side(pair.gt_label)
    other = _other_word(pair, key, fact)
    named = (
        f'Response {bad} makes a factual error where it speaks of "{key}". What is true: {fact}'
        if variant
        else f"Response {bad} gets a fact wrong, and Response {good} does not. {fact}"
    )
    passing = f'Response {bad} does well to bring up "{key}". ' if variant else ""
    return {
        "true_error": f"Both responses address the question. {named} This decides for Response {good}.",
        "other_error": (
            f"Both responses address the question. {passing}But what Response {bad} says about"
            f' "{other}" is false, and a reader would be misled by it. This decides for Response {good}.'
        ),
        "style_praise": (
            f"Response {good} is better structured and easier to read: its tone is friendly, its wording polished,"
            f" and its length fits the question. Response {bad} is less pleasant to follow."
        ),
        "vague": (
            f"Response {good} is more accurate and more helpful than Response {bad}, which contains errors."
            f" Overall Response {good} serves the user better."
        ),
    }


def _other_word(pair: Pair, key: str, fact: str) -> str:
    """A word of the worse response that has nothing to do with the error: the longest of the rarest ones."""
    response = pair.response_B if pair.gt_label == "A" else pair.response_A
    taken = {word.lower() for word in _WORD.findall(f"{key} {fact}")}
    words = [word.lower() for word in _WORD.findall(response)]
    free = [word for word in dict.fromkeys(words) if word not in taken and word not in key.lower()]
    if not free:
        return "the last point"
    return max(free, key=lambda word: (-words.count(word), len(word)))


def measure_metarm(cases: Sequence[Case], reviews: Sequence[Review], *, seed: int = 0) -> dict[str, Any]:
    """Accuracy over all cases and by kind, {value, low, high}; a failed review counts as wrong, and is counted.

    `balanced` is the mean of the accuracy on true errors and of that on the three other kinds together.
    """
    prompts = {text: n for n, text in enumerate(dict.fromkeys(prompt_text(case.pair) for case in cases))}
    clusters = np.array([prompts[prompt_text(case.pair)] for case in cases])
    kinds = np.array([KINDS.index(case.kind) for case in cases])
    right = np.array(
        [review.outcome is case.expected for case, review in zip(cases, reviews, strict=True)], dtype=float
    )
    # [num_prompts, num_kinds]: right ones and all, of each prompt
    num_right, num_all = np.zeros((2, len(prompts), len(KINDS)))
    np.add.at(num_right, (clusters, kinds), right)
    np.add.at(num_all, (clusters, kinds), 1)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), size=_NUM_DRAWS)
    weights = np.concatenate([np.ones((1, len(prompts))), weights])  # first what was seen, then the draws
    found, of = weights @ num_right, weights @ num_all
    others = found[:, 1:].sum(1) / of[:, 1:].sum(1)
    return {
        "num_pairs": len(cases) // len(KINDS),
        "num_prompts": len(prompts),
        "accuracy": _interval(found.sum(1) / of.sum(1)),
        "balanced": _interval((found[:, 0] / of[:, 0] + others) / 2),
        "kinds": {
            kind: {
                "accuracy": _interval(found[:, n] / of[:, n]),
                **_failures([review for k, review in zip(kinds, reviews, strict=True) if k == n]),
            }
            for n, kind in enumerate(KINDS)
        },
        **_failures(reviews),
    }


def _interval(draws: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(draws[1:], (2.5, 97.5))
    return {"value": float(draws[0]), "low": float(low), "high": float(high)}


def _failures(reviews: Sequence[Review]) -> dict[str, int]:
    return {
        "num_call_fail": sum(review.outcome is Outcome.CALL_FAIL for review in reviews),
        "num_parse_fail": sum(review.outcome is Outcome.PARSE_FAIL for review in reviews),
    }
