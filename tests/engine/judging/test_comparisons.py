"""Each scheme against brute force on random tournaments; the effect of failures, ties and equal texts."""

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
from ralign.engine.judging.bradley_terry import bradley_terry
from ralign.engine.judging.comparisons import (
    REFERENCE,
    Answer,
    ComparisonStats,
    Schedule,
    Tournament,
    bracket,
    cache_order,
)
from ralign.engine.runtime.errors import UserError

SCHEMES = ("reference", "circular", "all_pairs", "knockout")
ORDERS = ("random", "both", "agree")


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


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("order", ORDERS)
def test_calls_a_group_are_as_documented(scheme, order):
    rng = np.random.default_rng(0)
    for num in (3, 4, 5, 7, 8, 16):
        schedule = Schedule(scheme=scheme, num_samples=num, order=order)
        result = play(Tournament(schedule, random.Random(num)), beats(random_tournament(rng, num)))
        comparisons = {
            "reference": num,
            "circular": num,
            "all_pairs": num * (num - 1) // 2,
            "knockout": num - 1,
        }
        assert result.stats.num_comparisons == schedule.num_comparisons == comparisons[scheme]
        calls = comparisons[scheme] * (1 if order == "random" else 2)
        assert result.stats.num_calls == schedule.num_calls == calls
        assert result.valid.all() and result.stats.num_masked == 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("order", ORDERS)
def test_reference_and_all_pairs_equal_brute_force(seed, order):
    num = 6
    wins = random_tournament(np.random.default_rng(seed), num)
    against = play(
        Tournament(Schedule(scheme="reference", num_samples=num, order=order), random.Random(seed)),
        beats(wins),
    )
    assert against.rewards.tolist() == [1.0 if wins[i, REFERENCE] else -1.0 for i in range(num)]
    every = play(
        Tournament(Schedule(scheme="all_pairs", num_samples=num, order=order), random.Random(seed)),
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


def test_in_a_circle_each_sample_is_once_in_either_position():
    tournament = Tournament(Schedule(scheme="circular", num_samples=7), random.Random(1))
    assert sorted(call.first for call in tournament.calls) == list(range(7))
    assert sorted(call.second for call in tournament.calls) == list(range(7))


def bouts(slots, wins):
    """Textbook knockout by halves: the winner, and (winner, loser) of each match; an empty place has no match."""
    if len(slots) == 1:
        return slots[0], []
    half = len(slots) // 2
    (a, met_a), (b, met_b) = bouts(slots[:half], wins), bouts(slots[half:], wins)
    if a is None or b is None:
        return (b if a is None else a), met_a + met_b
    match = (a, b) if wins[a, b] else (b, a)
    return match[0], met_a + met_b + [match]


@pytest.mark.parametrize("num", range(2, 18))
def test_a_bracket_has_every_sample_once_and_gives_byes_to_the_first_ones(num):
    places = bracket(list(range(num)))
    assert sorted(sample for sample in places if sample is not None) == list(range(num))
    matches = list(zip(places[::2], places[1::2], strict=True))
    byes = [a if b is None else b for a, b in matches if a is None or b is None]
    assert sorted(byes) == list(range(len(places) - num))
    half = len(places) // 2
    assert (0 in places[:half]) != (1 in places[:half])  # these two can meet only in the final


@pytest.mark.parametrize("num", [2, 3, 4, 5, 6, 8, 11, 16])
def test_knockout_equals_brute_force(num):
    for seed in range(10):
        wins = random_tournament(np.random.default_rng(seed), num)
        order = random.Random(seed).sample(range(num), num)
        tournament = Tournament(Schedule(scheme="knockout", num_samples=num), Draw(order))
        slots = bracket(order)
        result = play(tournament, beats(wins))
        winner, met = bouts(slots, wins)
        net = [sum(a == i for a, _ in met) - sum(b == i for _, b in met) for i in range(num)]
        num_rounds = len(slots).bit_length() - 1
        np.testing.assert_allclose(result.rewards, np.array(net) / num_rounds)
        assert num_rounds - 1 <= net[winner] <= num_rounds and max(net) == net[winner]
        assert sorted(net)[-2] < net[winner] and abs(result.rewards.sum()) < 1e-9


@pytest.mark.parametrize("scheme", SCHEMES[1:])
def test_a_judge_that_is_never_wrong_gives_the_best_sample_the_largest_reward(scheme):
    for seed in range(20):
        quality = np.random.default_rng(seed).permutation(8)
        wins = quality[:, None] > quality[None, :]
        result = play(Tournament(Schedule(scheme=scheme, num_samples=8), random.Random(seed)), beats(wins))
        assert result.rewards[quality.argmax()] == result.rewards.max() == 1
        assert (result.rewards == 1).sum() == 1 or scheme == "circular"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(8))
def test_with_a_tenth_of_calls_failing_the_statistics_are_those_of_the_survivors(scheme, order, seed):
    num = 8
    wins = random_tournament(np.random.default_rng(seed), num)
    chance, seen = random.Random(seed), []

    def judge(first, second):
        fate = chance.random()
        answer = beats(wins)(first, second)
        answer = Answer.FAILED if fate < 0.1 else Answer.UNPARSABLE if fate < 0.15 else answer
        seen.append((first, second, answer))
        return answer

    result = play(
        Tournament(Schedule(scheme=scheme, num_samples=num, order=order), random.Random(seed)), judge
    )
    lost = [a for *_, a in seen if a in (Answer.FAILED, Answer.UNPARSABLE)]
    assert result.stats.num_failed == lost.count(Answer.FAILED)
    assert result.stats.num_unparsable == lost.count(Answer.UNPARSABLE)
    answered = {}
    for first, second, answer in seen:
        if answer in (Answer.FIRST, Answer.SECOND):
            pair = frozenset((first, second))
            answered.setdefault(pair, []).append(first if answer is Answer.FIRST else second)
    needed = 2 if order == "agree" else 1
    survivors = {pair: winners for pair, winners in answered.items() if len(winners) >= needed}
    assert result.stats.num_masked == result.stats.num_comparisons - len(survivors)
    for i in range(num):
        mine = [1.0 if i in winners else -1.0 for pair, winners in survivors.items() if i in pair]
        assert result.valid[i] == bool(mine)
        over = 3 if scheme == "knockout" else max(len(mine), 1)  # rounds of eight samples
        assert result.rewards[i] == pytest.approx(sum(mine) / over)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("order", ORDERS)
def test_where_every_call_failed_no_sample_has_a_reward(scheme, order):
    result = play(
        Tournament(Schedule(scheme=scheme, num_samples=4, order=order), random.Random(0)),
        lambda first, second: Answer.FAILED,
    )
    assert not result.valid.any() and not result.rewards.any()
    assert result.stats.num_masked == result.stats.num_comparisons
    assert result.stats.num_failed == result.stats.num_calls


@pytest.mark.parametrize("lost", [Answer.FAILED, Answer.TIE, Answer.SAME])
def test_a_random_advance_in_a_knockout_earns_nothing(lost):
    """A sample that advanced at random and lost the final has the reward of a loser to the same winner."""
    for seed in range(20):
        tournament = Tournament(Schedule(scheme="knockout", num_samples=4), random.Random(seed))
        (a, b), (c, d) = ((call.first, call.second) for call in tournament.calls)
        drawn = {frozenset((a, b))}
        ranking = {c: 2, d: 0, a: 1, b: 1}  # c beats everybody

        def judge(first, second, drawn=drawn, ranking=ranking):
            if {first, second} in drawn:
                return lost
            return Answer.FIRST if ranking[first] > ranking[second] else Answer.SECOND

        result = play(tournament, judge)
        final = result.comparisons[-1]
        lucky = final.left if final.right == c else final.right
        unlucky = a + b - lucky
        assert (result.rewards[c], result.rewards[d], result.rewards[lucky]) == (1, -0.5, -0.5)
        assert result.rewards[unlucky] == 0
        assert result.valid[[c, d, lucky]].all() and result.valid[unlucky] == (lost is not Answer.FAILED)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("order", ORDERS)
def test_equal_texts_make_no_calls_and_show_nothing_about_the_judge(scheme, order):
    """Seven equal answers and an odd one: all counts of the judge come from calls with the odd one."""
    texts = [0] * 7 + [1, 0]  # the last is the reference
    for odd in (Answer.FAILED, Answer.FIRST):
        asked = []

        def judge(first, second, odd=odd, asked=asked):
            if texts[first] == texts[second]:
                return Answer.SAME
            asked.append((first, second))
            return odd

        schedule = Schedule(scheme=scheme, num_samples=8, order=order)
        stats = play(Tournament(schedule, random.Random(3)), judge).stats
        per_match = 1 if order == "random" else 2
        assert 0 < stats.num_calls == len(asked) < schedule.num_calls
        assert stats.num_comparisons == schedule.num_comparisons
        assert stats.num_same == stats.num_comparisons - len(asked) // per_match
        if odd is Answer.FAILED:
            assert stats.num_failed == stats.num_calls and stats.num_swapped == 0
            assert np.isnan(stats.swap_consistency)
        elif order != "random":  # names the first position in either order
            assert stats.num_swapped == len(asked) // 2 and stats.swap_consistency == 0
        assert stats.num_ties == (len(asked) // 2 if odd is Answer.FIRST and order != "random" else 0)


def test_a_tie_in_both_orders_is_consistent():
    schedule = Schedule(scheme="reference", num_samples=2, order="both")
    stats = play(Tournament(schedule, random.Random(0)), lambda first, second: Answer.TIE).stats
    assert (stats.num_ties, stats.num_same, stats.swap_consistency) == (2, 0, 1)


def test_failures_do_not_change_expected_rewards():
    """All pairs with every call failing by a chance of its own: the mean over survivors is unbiased."""
    wins, chance = random_tournament(np.random.default_rng(1), 4), random.Random(5)
    schedule = Schedule(scheme="all_pairs", num_samples=4)
    group = wins[:4, :4]
    total, count = np.zeros((2, 4))
    for seed in range(2000):
        result = play(
            Tournament(schedule, random.Random(seed)),
            lambda a, b: Answer.FAILED if chance.random() < 0.1 else beats(wins)(a, b),
        )
        total += np.where(result.valid, result.rewards, 0)
        count += result.valid
    np.testing.assert_allclose(total / count, (group.sum(1) - group.sum(0)) / 3, atol=0.02)


def test_bradley_terry_is_used_where_the_comparisons_allow_it():
    schedule = Schedule(scheme="all_pairs", num_samples=4, value="bradley_terry")
    upset = np.triu(np.ones((5, 5), dtype=bool), 1)  # 0 > 1 > 2 > 3, but for the last, who beats the first
    upset[0, 3], upset[3, 0] = False, True
    result = play(Tournament(schedule, random.Random(0)), beats(upset))
    np.testing.assert_allclose(result.rewards, bradley_terry(upset[:4, :4].astype(float)))
    assert result.stats.num_without_fit == 0 and 0 < result.rewards[0] < 1
    chain = np.triu(np.ones((5, 5), dtype=bool), 1)  # nobody beats 0: no finite strength fits
    result = play(Tournament(schedule, random.Random(0)), beats(chain))
    assert result.stats.num_without_fit == 1
    np.testing.assert_allclose(result.rewards, [1, 1 / 3, -1 / 3, -1])


def test_a_decided_circle_has_a_fit_only_where_all_rewards_are_equal():
    """Why `circular` refuses bradley_terry: two of all 2^5 outcomes have a fit, all rewards equal, like the means."""
    num, fits = 5, 0
    for outcome in itertools.product((0, 1), repeat=num):
        wins = np.zeros((num, num))
        for i, won in enumerate(outcome):
            j = (i + 1) % num
            wins[(i, j) if won else (j, i)] = 1
        rewards = bradley_terry(wins)
        if rewards is not None:
            fits += 1
            np.testing.assert_allclose(rewards, 0, atol=1e-9)
            np.testing.assert_allclose(wins.sum(0), wins.sum(1))
    assert fits == 2


def test_calls_with_a_common_prefix_come_together():
    prompts, first = ["q", "p", "q", "p", "q"], ["x", "x", "y", "x", "x"]
    assert cache_order(prompts, first) == [1, 3, 0, 4, 2]


def test_stats_add_up():
    total = ComparisonStats(num_calls=3, num_first=1)
    total.add(ComparisonStats(num_calls=2, num_second=3))
    assert (total.num_calls, total.first_position_share) == (5, 0.25)


def test_impossible_schedules_are_refused():
    for settings, named in (
        ({"scheme": "swiss", "num_samples": 4}, "swiss"),
        ({"scheme": "circular", "num_samples": 2}, "at least 3"),
        ({"scheme": "knockout", "num_samples": 4, "value": "bradley_terry"}, "knockout"),
        ({"scheme": "circular", "num_samples": 8, "value": "bradley_terry"}, "all_pairs: circular"),
        ({"scheme": "all_pairs", "num_samples": 4, "order": "left"}, "left"),
    ):
        with pytest.raises(UserError, match=named):
            Schedule(**settings)
