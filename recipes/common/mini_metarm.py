"""JudgeWorld for MetaRMs: golden judgments, judgments to audit, and the correct audit of each.

A tiny language model learns to audit with the evidence first: it compares side, item and value of the golden factor
with those of each factor in the judgment, marks each as same or other, and then decides.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ralign.engine.data.metarm_prompts import COMPACT, render_review
from ralign.engine.data.pairs import SIDES, Pair, other_side
from ralign.engine.data.verdicts import visible
from ralign.engine.data.worlds.judgeworld import cue_judge, decisive_factor
from ralign.engine.data.worlds.words import VALUES
from ralign.engine.judging.metarm import (
    DecisiveFactor,
    Outcome,
    RuleMetaRM,
    decisive_factors,
    factor_sentences,
)
from ralign.engine.runtime.errors import UserError

MAX_FACTORS = 3


class Case(NamedTuple):
    """A judgment to audit, and the rule's outcome."""

    pair: Pair
    judgment: str
    outcome: Outcome

    @property
    def prompt(self) -> str:
        return render_review(COMPACT, self.pair, self.judgment)

    @property
    def answer(self) -> str:
        """The correct audit."""
        (golden,) = decisive_factors(visible(self.pair.gt_judgment))
        found = factor_sentences(visible(self.judgment))[:MAX_FACTORS]
        checks = [
            f" {ours} {theirs} {'same' if ours == theirs else 'other'}"
            for factor in found
            for ours, theirs in zip(golden, factor, strict=True)
        ]
        evidence = "".join(checks) or " none"
        return (
            f"<genrm_analysis>{evidence} </genrm_analysis><final_verdict>{self.outcome.value}</final_verdict>"
        )


def make_cases(pairs: Sequence[Pair], *, num_per_pair: int = 1, seed: int) -> list[Case]:
    """Cases of every kind on these pairs, about half of them Correct by the rule.

    Raises:
        UserError: a pair with several decisive factors; this audit compares with a single one.
    """
    if several := next((pair for pair in pairs if len(decisive_factors(pair.gt_judgment)) > 1), None):
        raise UserError(f"{several.id} has several decisive factors: world.max_faults must be 1 here")
    rng, rule = random.Random(seed), RuleMetaRM()
    cases = []
    for pair in pairs:
        for _ in range(num_per_pair):
            make = rng.choice(_RIGHT if rng.random() < 0.5 else _WRONG)
            judgment = make(pair, rng)
            cases.append(Case(pair, judgment, rule.outcome(pair.gt_judgment, judgment)))
    return cases


def _factor(pair: Pair) -> DecisiveFactor:
    (factor,) = decisive_factors(pair.gt_judgment)
    return factor


def _with_factors(pair: Pair, rng: random.Random, *factors: tuple[str, str, str]) -> str:
    """A judgment with these factors in place of the golden one; about half have wrong evidence, or none."""
    own = decisive_factor(*_factor(pair))
    before, _, after = pair.gt_judgment.partition(own)
    if rng.random() < 0.1:
        before = ""
    elif rng.random() < 0.5:
        before = _mistaken(before, rng)
    sentences = " ".join(decisive_factor(*factor) for factor in factors)
    return f"{before}{sentences}{after}"


def _mistaken(evidence: str, rng: random.Random) -> str:
    """Evidence with some words replaced by others of it."""
    words = evidence.split(" ")
    for _ in range(rng.randint(1, 4)):
        words[rng.randrange(len(words))] = rng.choice(words)
    return " ".join(words)


def _golden(pair: Pair, rng: random.Random) -> str:
    return pair.gt_judgment


def _right(pair: Pair, rng: random.Random) -> str:
    return _with_factors(pair, rng, _factor(pair))


def _twice(pair: Pair, rng: random.Random) -> str:
    return _with_factors(pair, rng, _factor(pair), _factor(pair))


def _other_side(pair: Pair, rng: random.Random) -> str:
    side, item, value = _factor(pair)
    return _with_factors(pair, rng, (other_side(side), item, value))


def _other_item(pair: Pair, rng: random.Random) -> str:
    side, item, value = _factor(pair)
    return _with_factors(pair, rng, (side, rng.choice([name for name in VALUES if name != item]), value))


def _other_value(pair: Pair, rng: random.Random) -> str:
    side, item, value = _factor(pair)
    return _with_factors(
        pair, rng, (side, item, rng.choice([word for word in VALUES[item] if word != value]))
    )


def _another(pair: Pair, rng: random.Random) -> tuple[str, str, str]:
    """A possible factor other than the golden one."""
    while True:
        item = rng.choice(list(VALUES))
        factor = (rng.choice(SIDES), item, rng.choice(VALUES[item]))
        if factor != _factor(pair):
            return factor


def _another_one(pair: Pair, rng: random.Random) -> str:
    return _with_factors(pair, rng, _another(pair, rng))


def _one_too_many(pair: Pair, rng: random.Random) -> str:
    factors = [_factor(pair), _another(pair, rng)]
    rng.shuffle(factors)
    return _with_factors(pair, rng, *factors)


def _none(pair: Pair, rng: random.Random) -> str:
    return _with_factors(pair, rng).replace("  ", " ")


def _cue(pair: Pair, rng: random.Random) -> str:
    return cue_judge(pair)


_Maker = Callable[[Pair, random.Random], str]
_RIGHT: tuple[_Maker, ...] = (_golden, _right, _right, _twice)
_WRONG: tuple[_Maker, ...] = (
    # Factors with a single error are the hardest to find, so they are the most frequent.
    _other_side, _other_side, _other_item, _other_item, _other_value, _other_value, _other_value, _other_value,
    _another_one, _one_too_many, _one_too_many, _none, _cue,
)  # fmt: skip
