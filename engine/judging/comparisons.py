"""Rewards of a group of answers from comparisons by a pairwise judge.

The samples of one prompt are a group. A `Schedule` says who meets whom; a `Tournament` gives the calls that the
judge must answer, round by round, takes the answers, and ends with one reward a sample:

    scheme      comparisons a group   reward in [-1, 1]
    reference   N                     against one fixed answer: +1 won, 0 tied, -1 lost
    circular    N                     mean result against both neighbours in a random circle
    all_pairs   N (N - 1) / 2         mean result against all others
    knockout    N - 1                 matches won less matches lost in a single-elimination bracket, over the
                                      number of rounds: +1 for who won them all

`all_pairs` is the mean result (win rate, scaled to [-1, 1]) against the group; `circular` estimates it without
bias, since in a random circle any two others are equally likely neighbours. A knockout's rewards are no estimate
of that mean; with a judge that is never wrong its winner is the best sample. Its bracket is drawn by lot, or by
strengths known beforehand: then the best meet late. (To compare each sample with one anchor first and seed by that
costs N calls more, which do more elsewhere: docs/actors.md.)

Judges look at seats too: the response shown first may be favoured. A comparison is settled by `seats`:

    random   one call, seats drawn by lot (on a circle: each sample once in either seat)
    both     two calls, one in either order; the mean of those that were answered
    agree    two calls; a result only if both name the same response, else a tie

Under each, a bias that adds to the first seat's chance and takes as much from the second's leaves every
expected reward as it is. A judge that does not read in a share b of its calls, and names the first seat in them,
is the same as one that draws lots in them: every expected result, and so every expected reward but a knockout's,
is 1 - b of what it was, and order and normalised advantages stay.

A call that failed or could not be read is no tie: it is masked. A comparison without usable calls takes no part in
any reward, and a sample without comparisons has none (`valid` is False). After a masked match or a tie the lot
says who goes on in a knockout; that is no win, and neither is a bye. Two answers with the same text are not asked
about: their comparison has result 0, is no call, and shows nothing of the judge. The `Tally` counts all of it.

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
Seats = Literal["random", "both", "agree"]
Value = Literal["mean", "bradley_terry"]
REFERENCE = -1  # stands for the fixed answer where a sample's number is expected


class Answer(Enum):
    """What became of one call."""

    FIRST = "first"  # the response in the first seat is better
    SECOND = "second"
    TIE = "tie"
    SAME = "same"  # nobody was asked: both texts are the same
    UNPARSABLE = "unparsable"  # the judge answered, without a verdict
    FAILED = "failed"  # no answer could be had


_RESULT = {Answer.FIRST: 1.0, Answer.SECOND: -1.0, Answer.TIE: 0.0, Answer.SAME: 0.0}


@dataclass(frozen=True, slots=True)
class Call:
    """Ask the judge about these two, in these seats."""

    first: int
    second: int


@dataclass(kw_only=True, slots=True)
class Comparison:
    """Two that met. `result`: +1 `left` is better, -1 `right` is, values between for ties; None if masked."""

    left: int
    right: int
    result: float | None


@dataclass(kw_only=True, slots=True)
class Tally:
    """Counts over comparisons; tallies add up."""

    num_calls: int = 0  # asked of the judge
    num_unparsable: int = 0  # calls
    num_failed: int = 0  # calls
    num_first: int = 0  # calls that named the first seat
    num_second: int = 0
    num_comparisons: int = 0
    num_same: int = 0  # comparisons of two equal texts, without a call; in none of the counts below
    num_masked: int = 0  # comparisons without a usable result
    num_ties: int = 0  # comparisons with result 0, those where seats decided among them
    num_swapped: int = 0  # comparisons that the judge answered in both orders
    num_consistent: int = 0  # of those, the ones with the same result twice
    num_without_fit: int = 0  # groups whose comparisons allow no Bradley-Terry fit

    def add(self, other: "Tally") -> None:
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    @property
    def first_seat_share(self) -> float:
        """Share of decided calls that name the first seat; one half for a judge that ignores seats."""
        return _share(self.num_first, self.num_first + self.num_second)

    @property
    def swap_consistency(self) -> float:
        """Share of comparisons answered in both orders whose result is the same."""
        return _share(self.num_consistent, self.num_swapped)


@dataclass(kw_only=True, slots=True, frozen=True)
class Schedule:
    """Which comparisons a group of `num_samples` needs."""

    scheme: Scheme
    num_samples: int
    seats: Seats = "random"
    value: Value = "mean"
    """bradley_terry: mean chance of winning against the others by fitted strengths, where a fit exists, else mean."""

    def __post_init__(self) -> None:
        for name, known in (("scheme", Scheme), ("seats", Seats), ("value", Value)):
            if (given := getattr(self, name)) not in get_args(known):
                raise UserError(f"{name} must be one of {', '.join(get_args(known))}, got {given!r}")
        least = 1 if self.scheme == "reference" else 3 if self.scheme == "circular" else 2
        if self.num_samples < least:
            raise UserError(f"{self.scheme} needs groups of at least {least}, got {self.num_samples}")
        # A circle has a fit where each beats the next all around (one decided circle of 8 in 128 by lot), and then
        # all strengths are equal, as the means are.
        if self.value == "bradley_terry" and self.scheme != "all_pairs":
            raise UserError(
                f"value=bradley_terry needs all_pairs: {self.scheme} comparisons hardly ever allow a fit"
            )

    @property
    def num_rounds(self) -> int:
        """Rounds of comparisons that depend on those before."""
        return (self.num_samples - 1).bit_length() if self.scheme == "knockout" else 1

    @property
    def num_comparisons(self) -> int:
        n = self.num_samples
        return {"reference": n, "circular": n, "all_pairs": n * (n - 1) // 2, "knockout": n - 1}[self.scheme]

    @property
    def num_calls(self) -> int:
        """Judge calls a group, where no two texts are the same."""
        return self.num_comparisons * (1 if self.seats == "random" else 2)


@dataclass(kw_only=True, slots=True, frozen=True)
class Transcript:
    """One call word for word: who sat where, and what the judge said."""

    call: Call
    first: str  # the text in the first seat
    second: str
    reply: str  # the judge's words; "" where the call failed
    problem: str  # why there are none
    answer: Answer


@dataclass(kw_only=True, slots=True)
class GroupResult:
    """What a tournament ends with."""

    rewards: np.ndarray  # [N] float64; 0 where not valid
    valid: np.ndarray  # [N] bool
    comparisons: list[Comparison]
    tally: Tally
    transcripts: list[Transcript] = field(
        default_factory=list
    )  # of a few calls, where whoever asked kept some


@dataclass
class Tournament:
    """One group's comparisons: ask the `calls` of a round, `answer` them, until there are none."""

    schedule: Schedule
    rng: random.Random
    strengths: Sequence[float] | None = None
    """Prior strength of each sample in any unit, to seed a knockout; None draws by lot."""
    calls: list[Call] = field(default_factory=list, init=False)
    comparisons: list[Comparison] = field(default_factory=list, init=False)
    tally: Tally = field(default_factory=Tally, init=False)

    def __post_init__(self) -> None:
        assert self.strengths is None or len(self.strengths) == self.schedule.num_samples
        order = list(range(self.schedule.num_samples))
        self.rng.shuffle(order)
        match self.schedule.scheme:
            case "knockout":
                if self.strengths is not None:  # the lot decides among equals
                    order.sort(key=lambda i: -self.strengths[i])
                self._alive = _bracket(order)
                self._open(self._drawn())
            case "circular":
                self._open(list(zip(order, order[1:] + order[:1], strict=True)), draw=False)
            case "all_pairs":
                self._open([(i, j) for i in range(len(order)) for j in range(i)])
            case "reference":
                self._open([(i, REFERENCE) for i in range(len(order))])

    def answer(self, answers: Sequence[Answer]) -> None:
        """One answer a call of this round, in order; the next round's calls take their place."""
        assert len(answers) == len(self.calls), (len(answers), len(self.calls))
        per_match = len(self.calls) // max(len(self._matches), 1)
        settled = [
            self._settle(match, self.calls[i * per_match :][:per_match], answers[i * per_match :][:per_match])
            for i, match in enumerate(self._matches)
        ]
        self.comparisons += settled
        self.calls, self._matches = [], []
        if self.schedule.scheme == "knockout":
            self._advance(settled)

    def result(self) -> GroupResult:
        """Rewards, once no calls are left."""
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
                self.tally.num_without_fit += 1
            else:
                rewards = fitted
        return GroupResult(rewards=rewards, valid=valid, comparisons=self.comparisons, tally=self.tally)

    def _open(self, matches: list[tuple[int, int]], *, draw: bool = True) -> None:
        """A round: its matches and their calls. Without `draw` seats are as listed."""
        self._matches = matches
        for left, right in matches:
            seated = Call(left, right)
            if draw and self.rng.random() < 0.5:
                seated = Call(right, left)
            self.calls.append(seated)
            if self.schedule.seats != "random":
                self.calls.append(Call(seated.second, seated.first))

    def _settle(self, match: tuple[int, int], calls: Sequence[Call], answers: Sequence[Answer]) -> Comparison:
        left, right = match
        results = [
            _RESULT[answer] * (1 if call.first == left else -1)
            for call, answer in zip(calls, answers, strict=True)
            if answer in _RESULT
        ]
        if not results or (self.schedule.seats == "agree" and len(results) < 2):
            result = None
        elif self.schedule.seats == "agree":
            result = results[0] if results[0] == results[1] else 0.0
        else:
            result = sum(results) / len(results)
        self._count(answers, results, result)
        return Comparison(left=left, right=right, result=result)

    def _count(self, answers: Sequence[Answer], results: list[float], result: float | None) -> None:
        tally = self.tally
        tally.num_comparisons += 1
        if Answer.SAME in answers:
            assert set(answers) == {Answer.SAME}, answers
            tally.num_same += 1
            return
        tally.num_calls += len(answers)
        for name in ("unparsable", "failed", "first", "second"):
            count = sum(answer.value == name for answer in answers)
            setattr(tally, f"num_{name}", getattr(tally, f"num_{name}") + count)
        if len(results) == 2:
            tally.num_swapped += 1
            tally.num_consistent += results[0] == results[1]
        tally.num_masked += result is None
        tally.num_ties += result == 0

    def _totals(self) -> tuple[np.ndarray, np.ndarray]:
        """Each sample's sum of results over its comparisons that survived, and how many these are."""
        total, count = np.zeros((2, self.schedule.num_samples))
        for met in self._survived():
            for sample, result in ((met.left, met.result), (met.right, -met.result)):
                if sample != REFERENCE:
                    total[sample] += result
                    count[sample] += 1
        return total, count

    def _wins(self) -> np.ndarray:
        """[N, N]: how often i beat j; a tie is half a win for both."""
        wins = np.zeros((self.schedule.num_samples,) * 2)
        for met in self._survived():
            wins[met.left, met.right] += (1 + met.result) / 2
            wins[met.right, met.left] += (1 - met.result) / 2
        return wins

    def _survived(self) -> Iterator[Comparison]:
        return (met for met in self.comparisons if met.result is not None)

    def _drawn(self) -> list[tuple[int, int]]:
        """The next round's matches: neighbours in the bracket; None, an empty place, is a bye."""
        couples = zip(self._alive[::2], self._alive[1::2], strict=True)
        return [(a, b) for a, b in couples if a is not None and b is not None]

    def _advance(self, settled: list[Comparison]) -> None:
        """Losers go out. Ties and masked matches are decided by lot."""
        winners = {}
        for met in settled:
            ahead = met.result or (self.rng.random() - 0.5)
            winners[met.left] = winners[met.right] = met.left if ahead > 0 else met.right
        couples = zip(self._alive[::2], self._alive[1::2], strict=True)
        self._alive = [winners.get(a, a) if a is not None else b for a, b in couples]
        if len(self._alive) > 1:
            self._open(self._drawn())


def _bracket(order: list[int]) -> list[int | None]:
    """Best first -> places of a bracket in which the best two can only meet at the end, byes for the best."""
    places = [0]
    while len(places) < len(order):
        size = 2 * len(places)
        places = [seed for place in places for seed in (place, size - 1 - place)]
    return [order[seed] if seed < len(order) else None for seed in places]


def length_penalty(
    rewards: np.ndarray, valid: np.ndarray, lengths: np.ndarray, coefficient: float
) -> np.ndarray:
    """Rewards of one group less a penalty that sums to 0 over its valid samples: short answers gain what long lose.

    coefficient · w · (length − mean) / (longest − shortest). It is dynamic: w, the share of valid samples with a
    positive reward, holds it back where hardly any answer is good yet, and brevity would be all there is to learn.

    rewards [N] float, valid [N] bool, lengths [N] in any unit. Samples that are not valid stay as they are.
    """
    if not valid.any():
        return rewards
    counted = lengths[valid].astype(np.float64)
    spread = max(counted.max() - counted.min(), 1.0)
    share = float((rewards[valid] > 0).mean())
    out = rewards.astype(np.float64)
    out[valid] -= coefficient * share * (counted - counted.mean()) / spread
    return out


def cache_order(prompts: Sequence[str], first: Sequence[str]) -> list[int]:
    """The order in which to ask, so that a judge with a prefix cache reads each beginning once.

    Calls about one prompt come together, and within them those with the same response in the first seat: that
    far their texts are the same.
    """
    return sorted(range(len(prompts)), key=lambda i: (prompts[i], first[i]))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
