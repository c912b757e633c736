"""Rewards of a group of answers from comparisons by a pairwise judge.

The samples of one prompt are a group. A `Schedule` defines which samples are compared; a `Tournament` lists the calls
to the judge round by round, takes the answers, and ends with one reward for each sample:

    scheme      comparisons a group   reward in [-1, 1]
    reference   N                     against one fixed answer: +1 won, 0 tied, -1 lost
    circular    N                     mean result against both neighbours in a random circle
    all_pairs   N (N - 1) / 2         mean result against all others
    knockout    N - 1                 matches won less matches lost in a single-elimination bracket, over the
                                      number of rounds: +1 for the winner of all

`all_pairs` is the mean result (win rate, scaled to [-1, 1]) against the group. `circular` estimates it without bias,
since in a random circle any two other samples are equally likely neighbours. A knockout's rewards do not estimate that
mean; with a judge that is never wrong its winner is the best sample. Its bracket is drawn at random.

Judges have a position bias: they may favour the response shown first. `order` determines the calls of a comparison:

    random   one call, in random order (on a circle: each sample once in either position)
    both     two calls, one in either order; the mean of the answered ones
    agree    two calls; a result only if both name the same response, else a tie

A bias that adds to the first position's probability and takes as much from the second's leaves every expected reward
unchanged, whatever `order` is. A judge that ignores the responses in a share b of its calls, and names the first
position there, is equivalent to one that answers these calls at random: every expected result, and so every expected
reward except a knockout's, is 1 - b of its value, and ranks and normalised advantages stay.

A call that failed or has no verdict is masked, which is not a tie. A comparison without usable calls has no effect on
any reward, and a sample without comparisons has no reward (`valid` is False). After a masked match or a tie a knockout
draws at random which sample continues; that is not a win, and neither is a bye. Two answers with the same text are not
compared: their comparison has result 0, makes no call, and shows nothing about the judge. `ComparisonStats` counts all
of these.

N: samples of a group.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Literal, get_args

import numpy as np
from ralign.engine.judging.bradley_terry import bradley_terry
from ralign.engine.runtime.errors import UserError

Scheme = Literal["reference", "circular", "all_pairs", "knockout"]
Order = Literal["random", "both", "agree"]
Value = Literal["mean", "bradley_terry"]
REFERENCE = -1  # the fixed answer, in place of a sample's index


class Answer(Enum):
    """The result of one call."""

    FIRST = "first"  # the response in the first position is better
    SECOND = "second"
    TIE = "tie"
    SAME = "same"  # no call: both texts are the same
    UNPARSABLE = "unparsable"  # an answer without a verdict
    FAILED = "failed"  # no answer


_RESULT = {Answer.FIRST: 1.0, Answer.SECOND: -1.0, Answer.TIE: 0.0, Answer.SAME: 0.0}


@dataclass(frozen=True, slots=True)
class Call:
    """A question to the judge: two samples, in this order."""

    first: int
    second: int


@dataclass(kw_only=True, slots=True)
class Comparison:
    """Two compared samples. `result`: +1 `left` is better, -1 `right` is, between them for ties; None if masked."""

    left: int
    right: int
    result: float | None


@dataclass(kw_only=True, slots=True)
class ComparisonStats:
    """Counts over comparisons."""

    num_calls: int = 0
    num_unparsable: int = 0  # calls
    num_failed: int = 0  # calls
    num_first: int = 0  # calls that named the first position
    num_second: int = 0
    num_comparisons: int = 0
    num_same: int = 0  # comparisons of two equal texts, without a call; in none of the counts below
    num_masked: int = 0  # comparisons without a usable result
    num_ties: int = 0  # comparisons with result 0, those with opposite answers in the two orders included
    num_swapped: int = 0  # comparisons that the judge answered in both orders
    num_consistent: int = 0  # of those, comparisons with the same result twice
    num_without_fit: int = 0  # groups whose comparisons allow no Bradley-Terry fit

    def add(self, other: "ComparisonStats") -> None:
        """Add the counts of `other` to these."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    @property
    def first_position_share(self) -> float:
        """Share of decided calls that name the first position; one half for a judge without position bias."""
        return _share(self.num_first, self.num_first + self.num_second)

    @property
    def swap_consistency(self) -> float:
        """Share of comparisons answered in both orders whose result is the same."""
        return _share(self.num_consistent, self.num_swapped)


@dataclass(kw_only=True, slots=True, frozen=True)
class Schedule:
    """The comparisons of a group of `num_samples`."""

    scheme: Scheme
    num_samples: int
    order: Order = "random"
    value: Value = "mean"
    """bradley_terry: mean probability of a win against the others by fitted strengths; mean where there is no fit."""

    def __post_init__(self) -> None:
        for name, known in (("scheme", Scheme), ("order", Order), ("value", Value)):
            if (given := getattr(self, name)) not in get_args(known):
                raise UserError(f"{name} must be one of {', '.join(get_args(known))}, got {given!r}")
        least = 1 if self.scheme == "reference" else 3 if self.scheme == "circular" else 2
        if self.num_samples < least:
            raise UserError(f"{self.scheme} needs groups of at least {least}, got {self.num_samples}")
        # A circle has a fit only if each sample beats the next all around (one random circle of 8 in 128), and then
        # all strengths are equal, like the means.
        if self.value == "bradley_terry" and self.scheme != "all_pairs":
            raise UserError(
                f"value=bradley_terry needs all_pairs: {self.scheme} comparisons rarely allow a fit"
            )

    @property
    def num_rounds(self) -> int:
        """Rounds; the comparisons of one depend on the results of those before."""
        return (self.num_samples - 1).bit_length() if self.scheme == "knockout" else 1

    @property
    def num_comparisons(self) -> int:
        n = self.num_samples
        return {"reference": n, "circular": n, "all_pairs": n * (n - 1) // 2, "knockout": n - 1}[self.scheme]

    @property
    def num_calls(self) -> int:
        """Calls for a group without equal texts."""
        return self.num_comparisons * (1 if self.order == "random" else 2)


@dataclass(kw_only=True, slots=True, frozen=True)
class Transcript:
    """One call in full."""

    call: Call
    first: str  # the text in the first position
    second: str
    reply: str  # the judge's text; "" where the call failed
    problem: str  # why there is none
    answer: Answer


@dataclass(kw_only=True, slots=True)
class GroupResult:
    """Rewards of a group, and the comparisons behind them."""

    rewards: np.ndarray  # [N] float64; 0 where not valid
    valid: np.ndarray  # [N] bool
    comparisons: list[Comparison]
    stats: ComparisonStats
    transcripts: list[Transcript] = field(default_factory=list)  # of some calls


@dataclass
class Tournament:
    """One group's comparisons: put the `calls` of a round to the judge and `answer` them, until there are none."""

    schedule: Schedule
    rng: random.Random
    calls: list[Call] = field(default_factory=list, init=False)
    comparisons: list[Comparison] = field(default_factory=list, init=False)
    stats: ComparisonStats = field(default_factory=ComparisonStats, init=False)

    def __post_init__(self) -> None:
        shuffled = list(range(self.schedule.num_samples))
        self.rng.shuffle(shuffled)
        match self.schedule.scheme:
            case "knockout":
                self._remaining = bracket(shuffled)
                self._open(self._next_matches())
            case "circular":
                self._open(list(zip(shuffled, shuffled[1:] + shuffled[:1], strict=True)), draw=False)
            case "all_pairs":
                self._open([(i, j) for i in range(len(shuffled)) for j in range(i)])
            case "reference":
                self._open([(i, REFERENCE) for i in range(len(shuffled))])

    def answer(self, answers: Sequence[Answer]) -> None:
        """Take one answer for each call of this round, in order. `calls` are then those of the next round."""
        assert len(answers) == len(self.calls), (len(answers), len(self.calls))
        per_match = len(self.calls) // max(len(self._matches), 1)
        decided = [
            self._decide(match, self.calls[i * per_match :][:per_match], answers[i * per_match :][:per_match])
            for i, match in enumerate(self._matches)
        ]
        self.comparisons += decided
        self.calls, self._matches = [], []
        if self.schedule.scheme == "knockout":
            self._advance(decided)

    def result(self) -> GroupResult:
        """Rewards, after the last round."""
        assert not self.calls, "the tournament is not over"
        total, count = self._totals()
        valid = count > 0
        if self.schedule.scheme == "knockout":
            rewards = total / self.schedule.num_rounds
        else:
            rewards = total / np.maximum(count, 1)
        if self.schedule.value == "bradley_terry":
            fitted = bradley_terry(self._wins())
            if fitted is None:
                self.stats.num_without_fit += 1
            else:
                rewards = fitted
        return GroupResult(rewards=rewards, valid=valid, comparisons=self.comparisons, stats=self.stats)

    def _open(self, matches: list[tuple[int, int]], *, draw: bool = True) -> None:
        """Begin a round with these matches. Without `draw` each call keeps the listed order."""
        self._matches = matches
        for left, right in matches:
            call = Call(left, right)
            if draw and self.rng.random() < 0.5:
                call = Call(right, left)
            self.calls.append(call)
            if self.schedule.order != "random":
                self.calls.append(Call(call.second, call.first))

    def _decide(self, match: tuple[int, int], calls: Sequence[Call], answers: Sequence[Answer]) -> Comparison:
        left, right = match
        results = [
            _RESULT[answer] * (1 if call.first == left else -1)
            for call, answer in zip(calls, answers, strict=True)
            if answer in _RESULT
        ]
        if not results or (self.schedule.order == "agree" and len(results) < 2):
            result = None
        elif self.schedule.order == "agree":
            result = results[0] if results[0] == results[1] else 0.0
        else:
            result = sum(results) / len(results)
        self._count(answers, results, result)
        return Comparison(left=left, right=right, result=result)

    def _count(self, answers: Sequence[Answer], results: list[float], result: float | None) -> None:
        stats = self.stats
        stats.num_comparisons += 1
        if Answer.SAME in answers:
            assert set(answers) == {Answer.SAME}, answers
            stats.num_same += 1
            return
        stats.num_calls += len(answers)
        for name in ("unparsable", "failed", "first", "second"):
            count = sum(answer.value == name for answer in answers)
            setattr(stats, f"num_{name}", getattr(stats, f"num_{name}") + count)
        if len(results) == 2:
            stats.num_swapped += 1
            stats.num_consistent += results[0] == results[1]
        stats.num_masked += result is None
        stats.num_ties += result == 0

    def _totals(self) -> tuple[np.ndarray, np.ndarray]:
        """[N] sum of each sample's results over its usable comparisons, and [N] their number."""
        total, count = np.zeros((2, self.schedule.num_samples))
        for left, right, result in self._usable():
            for sample, gain in ((left, result), (right, -result)):
                if sample != REFERENCE:
                    total[sample] += gain
                    count[sample] += 1
        return total, count

    def _wins(self) -> np.ndarray:
        """[N, N]: times that i beat j; a tie is half a win for both."""
        wins = np.zeros((self.schedule.num_samples,) * 2)
        for left, right, result in self._usable():
            wins[left, right] += (1 + result) / 2
            wins[right, left] += (1 - result) / 2
        return wins

    def _usable(self) -> Iterator[tuple[int, int, float]]:
        """(left, right, result) of each comparison with a result."""
        return ((met.left, met.right, met.result) for met in self.comparisons if met.result is not None)

    def _next_matches(self) -> list[tuple[int, int]]:
        """Neighbours in the bracket; a place without a sample (None) gives the other one a bye."""
        couples = zip(self._remaining[::2], self._remaining[1::2], strict=True)
        return [(a, b) for a, b in couples if a is not None and b is not None]

    def _advance(self, decided: list[Comparison]) -> None:
        """Remove the losers. Ties and masked matches are decided at random."""
        winners = {}
        for met in decided:
            result = met.result or (self.rng.random() - 0.5)
            winners[met.left] = winners[met.right] = met.left if result > 0 else met.right
        couples = zip(self._remaining[::2], self._remaining[1::2], strict=True)
        self._remaining = [winners.get(a, a) if a is not None else b for a, b in couples]
        if len(self._remaining) > 1:
            self._open(self._next_matches())


def bracket(seeds: list[int]) -> list[int | None]:
    """Places of a bracket for these seeds: the first two can meet only in the final, byes go to the first ones."""
    places = [0]
    while len(places) < len(seeds):
        size = 2 * len(places)
        places = [seed for place in places for seed in (place, size - 1 - place)]
    return [seeds[seed] if seed < len(seeds) else None for seed in places]


def cache_order(prompts: Sequence[str], first: Sequence[str]) -> list[int]:
    """An order of calls in which a judge with a prefix cache computes each common prefix once.

    Calls for one prompt come together, and among them those with the same response in the first position: up to there
    their texts are equal.
    """
    return sorted(range(len(prompts)), key=lambda i: (prompts[i], first[i]))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
