"""Each scheme against brute force; expectations are exact: every draw and every answer, by its probability."""

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
from ralign.engine.errors import UserError
from ralign.engine.judging.comparisons import (
    REFERENCE,
    Answer,
    Schedule,
    Tally,
    Tournament,
    cache_order,
    length_penalty,
)

SCHEMES = ("reference", "circular", "all_pairs", "knockout")
SEATS = ("random", "both", "agree")


def play(tournament: Tournament, judge: Callable[[int, int], Answer]):
    """The tournament's result when `judge` answers each call (first, second)."""
    while tournament.calls:
        tournament.answer([judge(call.first, call.second) for call in tournament.calls])
    return tournament.result()


def beats(wins: np.ndarray) -> Callable[[int, int], Answer]:
    """The judge of a tournament without chance: wins[i, j] says whether i beats j; the last row is the reference."""
    return lambda first, second: Answer.FIRST if wins[first, second] else Answer.SECOND


def random_tournament(rng: np.random.Generator, num: int) -> np.ndarray:
    upper = np.triu(rng.random((num + 1, num + 1)) < 0.5, 1)
    return upper | (np.tril(~upper.T, -1))


class Draw(random.Random):
    """Shuffles to a given order."""

    def __init__(self, order):
        super().__init__(0)
        self.order = order

    def shuffle(self, x):
        x[:] = self.order


class Branches(random.Random):
    """Takes every branch of a computation once, with its probability; draws stay in order."""

    def __init__(self, script):
        super().__init__(0)
        self.script, self.taken, self.probability = script, [], 1.0

    def choose(self, p):
        branch = self.script[len(self.taken)] if len(self.taken) < len(self.script) else True
        self.taken.append(branch)
        self.probability *= p if branch else 1 - p
        return branch

    def random(self):
        return 0.25 if self.choose(0.5) else 0.75

    def shuffle(self, x):
        pass


def expectation(schedule: Schedule, chance_first: Callable[[int, int], float]) -> np.ndarray:
    """Exact expected rewards where the judge names the first seat with this chance."""
    total, script, mass = np.zeros(schedule.num_samples), [], 0.0
    while True:
        rng = Branches(script)

        def judge(first, second, rng=rng):
            return Answer.FIRST if rng.choose(chance_first(first, second)) else Answer.SECOND

        result = play(Tournament(schedule, rng), judge)
        total += rng.probability * result.rewards
        mass += rng.probability
        script = rng.taken
        while script and not script[-1]:
            script.pop()
        if not script:
            assert mass == pytest.approx(1)
            return total
        script[-1] = False


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seats", SEATS)
def test_calls_a_group_are_as_documented(scheme, seats):
    rng = np.random.default_rng(0)
    for num in (3, 4, 5, 7, 8, 16):
        schedule = Schedule(scheme=scheme, num_samples=num, seats=seats)
        result = play(Tournament(schedule, random.Random(num)), beats(random_tournament(rng, num)))
        comparisons = {
            "reference": num,
            "circular": num,
            "all_pairs": num * (num - 1) // 2,
            "knockout": num - 1,
        }
        assert result.tally.num_comparisons == schedule.num_comparisons == comparisons[scheme]
        calls = comparisons[scheme] * (1 if seats == "random" else 2)
        assert result.tally.num_calls == schedule.num_calls == calls
        assert result.valid.all() and result.tally.num_masked == 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("seats", SEATS)
def test_reference_and_all_pairs_equal_brute_force(seed, seats):
    num = 6
    wins = random_tournament(np.random.default_rng(seed), num)
    against = play(
        Tournament(Schedule(scheme="reference", num_samples=num, seats=seats), random.Random(seed)),
        beats(wins),
    )
    assert against.rewards.tolist() == [1.0 if wins[i, REFERENCE] else -1.0 for i in range(num)]
    every = play(
        Tournament(Schedule(scheme="all_pairs", num_samples=num, seats=seats), random.Random(seed)),
        beats(wins),
    )
    group = wins[:num, :num]
    np.testing.assert_allclose(every.rewards, (group.sum(1) - group.sum(0)) / (num - 1))


def test_circular_over_all_circles_is_the_mean_result_against_the_group():
    num = 5
    wins = random_tournament(np.random.default_rng(3), num)
    schedule = Schedule(scheme="circular", num_samples=num)
    circles = [
        play(Tournament(schedule, Draw(order)), beats(wins)).rewards
        for order in itertools.permutations(range(num))
    ]
    group = wins[:num, :num]
    np.testing.assert_allclose(np.mean(circles, 0), (group.sum(1) - group.sum(0)) / (num - 1), atol=1e-12)
    assert np.std(circles, 0).max() > 0.1  # one circle alone is an estimate


def test_in_a_circle_each_sample_sits_once_in_either_seat():
    tournament = Tournament(Schedule(scheme="circular", num_samples=7), random.Random(1))
    assert sorted(call.first for call in tournament.calls) == list(range(7))
    assert sorted(call.second for call in tournament.calls) == list(range(7))


def eliminated(slots, wins):
    """Textbook knockout by halves: (winner, {loser: matches won by it, byes counted})."""
    if len(slots) == 1:
        return slots[0], {}
    half = len(slots) // 2
    (a, out_a), (b, out_b) = eliminated(slots[:half], wins), eliminated(slots[half:], wins)
    if a is None or b is None:
        return (b if a is None else a), out_a | out_b
    winner, loser = (a, b) if wins[a, b] else (b, a)
    return winner, out_a | out_b | {loser: half.bit_length() - 1}


@pytest.mark.parametrize("num", [2, 3, 4, 5, 6, 8, 11, 16])
def test_knockout_equals_brute_force(num):
    for seed in range(10):
        wins = random_tournament(np.random.default_rng(seed), num)
        tournament = Tournament(Schedule(scheme="knockout", num_samples=num), random.Random(seed))
        slots = list(tournament._alive)
        result = play(tournament, beats(wins))
        winner, rounds = eliminated(slots, wins)
        rounds[winner] = len(slots).bit_length()
        below = np.array([sum(rounds[j] < rounds[i] for j in range(num)) for i in range(num)])
        above = np.array([sum(rounds[j] > rounds[i] for j in range(num)) for i in range(num)])
        np.testing.assert_allclose(result.rewards, (below - above) / (num - 1))
        assert result.rewards.argmax() == winner and abs(result.rewards.sum()) < 1e-9


@pytest.mark.parametrize("scheme", SCHEMES[1:])
def test_a_judge_that_is_never_wrong_pays_the_best_sample_most(scheme):
    for seed in range(20):
        quality = np.random.default_rng(seed).permutation(8)
        wins = quality[:, None] > quality[None, :]
        result = play(Tournament(Schedule(scheme=scheme, num_samples=8), random.Random(seed)), beats(wins))
        assert result.rewards[quality.argmax()] == result.rewards.max() == 1


def test_seeded_samples_meet_late():
    strengths = [0.1, 0.9, 0.3, 0.8, 0.2, 0.5, 0.4, 0.0]
    quality = np.array(strengths)
    tournament = Tournament(Schedule(scheme="knockout", num_samples=8), random.Random(0), strengths)
    result = play(tournament, beats(quality[:, None] > quality[None, :]))
    final = result.comparisons[-1]
    assert {final.left, final.right} == {1, 3}
    first = {frozenset((met.left, met.right)) for met in result.comparisons[:4]}
    assert frozenset((1, 7)) in first and frozenset((3, 0)) in first


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seats", SEATS)
def test_a_seat_bias_of_20_points_changes_no_expected_reward(scheme, seats):
    num = 4 if scheme == "knockout" and seats == "random" else 3
    rng = np.random.default_rng(7)
    upper = np.triu(rng.uniform(0.3, 0.7, (num + 1, num + 1)), 1)
    chance = upper + np.tril(1 - upper.T, -1)  # the last row is the reference
    schedule = Schedule(scheme=scheme, num_samples=num, seats=seats)
    fair = expectation(schedule, lambda first, second: chance[first, second])
    biased = expectation(schedule, lambda first, second: chance[first, second] + 0.2)
    assert np.abs(biased - fair).max() < 0.01
    assert np.abs(fair).max() > 0.05  # there is something to change
    if scheme in ("reference", "all_pairs"):
        others = [num] if scheme == "reference" else range(num)
        exact = [np.mean([2 * chance[i, j] - 1 for j in others if j != i]) for i in range(num)]
        np.testing.assert_allclose(fair, exact, atol=1e-12)


def test_without_seat_balancing_the_same_bias_would_be_learned():
    unbalanced = [play(Tournament(Schedule(scheme="reference", num_samples=2), random.Random(seed)), judge)
                  for seed in range(400) for judge in [lambda first, second: Answer.FIRST]]  # fmt: skip
    assert abs(np.mean([result.rewards for result in unbalanced])) < 0.1  # seats by lot: nothing to gain
    always = play(
        Tournament(Schedule(scheme="reference", num_samples=2, seats="agree"), random.Random(0)),
        lambda first, second: Answer.FIRST,
    )
    assert always.rewards.tolist() == [0, 0] and always.tally.num_ties == 2
    assert always.tally.swap_consistency == 0 and always.tally.first_seat_share == 1


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seats", SEATS)
@pytest.mark.parametrize("seed", range(8))
def test_with_a_tenth_of_calls_failing_the_statistics_are_those_of_the_survivors(scheme, seats, seed):
    num = 8
    wins = random_tournament(np.random.default_rng(seed), num)
    lot, seen = random.Random(seed), []

    def judge(first, second):
        fate = lot.random()
        answer = beats(wins)(first, second)
        answer = Answer.FAILED if fate < 0.1 else Answer.UNPARSABLE if fate < 0.15 else answer
        seen.append((first, second, answer))
        return answer

    result = play(
        Tournament(Schedule(scheme=scheme, num_samples=num, seats=seats), random.Random(seed)), judge
    )
    lost = [a for *_, a in seen if a in (Answer.FAILED, Answer.UNPARSABLE)]
    assert result.tally.num_failed == lost.count(Answer.FAILED)
    assert result.tally.num_unparsable == lost.count(Answer.UNPARSABLE)
    answered = {}
    for first, second, answer in seen:
        if answer in (Answer.FIRST, Answer.SECOND):
            pair = frozenset((first, second))
            answered.setdefault(pair, []).append(first if answer is Answer.FIRST else second)
    needed = 2 if seats == "agree" else 1
    survivors = {pair: winners for pair, winners in answered.items() if len(winners) >= needed}
    assert result.tally.num_masked == result.tally.num_comparisons - len(survivors)
    if scheme == "knockout":  # a sample goes unpaid only where a masked match sent it out
        assert (~result.valid).sum() == result.tally.num_masked
        assert abs(result.rewards[result.valid].sum()) < 1e-9
        return
    for i in range(num):
        mine = [1.0 if i in winners else -1.0 for pair, winners in survivors.items() if i in pair]
        assert result.valid[i] == bool(mine)
        assert result.rewards[i] == pytest.approx(np.mean(mine) if mine else 0.0)


def test_failures_leave_expected_rewards_as_they_are():
    """All pairs with every call failing by a chance of its own: the mean over survivors is unbiased."""
    wins, lot = random_tournament(np.random.default_rng(1), 4), random.Random(5)
    schedule = Schedule(scheme="all_pairs", num_samples=4)
    group = wins[:4, :4]
    total, count = np.zeros((2, 4))
    for seed in range(2000):
        result = play(
            Tournament(schedule, random.Random(seed)),
            lambda a, b: Answer.FAILED if lot.random() < 0.1 else beats(wins)(a, b),
        )
        total += np.where(result.valid, result.rewards, 0)
        count += result.valid
    np.testing.assert_allclose(total / count, (group.sum(1) - group.sum(0)) / 3, atol=0.02)


def test_bradley_terry_is_used_where_the_comparisons_allow_it():
    schedule = Schedule(scheme="circular", num_samples=3, value="bradley_terry")
    cycle = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)  # 0 > 1 > 2 > 0
    result = play(Tournament(schedule, random.Random(0)), beats(cycle))
    np.testing.assert_allclose(result.rewards, 0, atol=1e-9)
    assert result.tally.num_without_fit == 0
    chain = np.triu(np.ones((4, 4), dtype=bool), 1)  # nobody beats 0: no finite strength fits
    result = play(Tournament(schedule, random.Random(0)), beats(chain))
    assert result.tally.num_without_fit == 1 and result.rewards.tolist() == [1, 0, -1]


def test_the_length_penalty_moves_rewards_from_long_to_short_as_far_as_the_group_wins():
    rewards, lengths = np.array([1.0, 1.0, -1.0, 7.0]), np.array([10, 30, 20, 999])
    valid = np.array([True, True, True, False])
    out = length_penalty(rewards, valid, lengths, 0.3)
    np.testing.assert_allclose(out, [1 + 0.1, 1 - 0.1, -1, 7])  # two of three win: 0.3 · 2/3 · 1/2
    nobody = length_penalty(np.array([-1.0, -1.0]), np.ones(2, dtype=bool), np.array([1, 9]), 0.3)
    assert nobody.tolist() == [-1, -1]
    equal = length_penalty(np.ones(2), np.ones(2, dtype=bool), np.array([5, 5]), 0.3)
    assert equal.tolist() == [1, 1]


def test_calls_that_share_a_beginning_come_together():
    prompts, first = ["q", "p", "q", "p", "q"], ["x", "x", "y", "x", "x"]
    assert cache_order(prompts, first) == [1, 3, 0, 4, 2]


def test_tallies_add_up():
    total = Tally(num_calls=3, num_first=1)
    total.add(Tally(num_calls=2, num_second=3))
    assert (total.num_calls, total.first_seat_share) == (5, 0.25)


def test_what_cannot_be_scheduled_is_refused():
    for settings, named in (
        ({"scheme": "swiss", "num_samples": 4}, "swiss"),
        ({"scheme": "circular", "num_samples": 2}, "at least 3"),
        ({"scheme": "knockout", "num_samples": 4, "value": "bradley_terry"}, "knockout"),
        ({"scheme": "all_pairs", "num_samples": 4, "seats": "left"}, "left"),
    ):
        with pytest.raises(UserError, match=named):
            Schedule(**settings)
