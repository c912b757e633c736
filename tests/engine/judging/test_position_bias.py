"""Position bias: exact expected rewards, over all random draws and answers by their probability."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ralign.engine.judging.comparisons import Answer, Schedule, Tournament
from ralign.kernels.advantages import GRPO, group_advantages_ref

SCHEMES = ("reference", "circular", "all_pairs", "knockout")
ORDERS = ("random", "both", "agree")


def play(tournament: Tournament, judge: Callable[[int, int], Answer]):
    """The tournament's result when `judge` answers each call (first, second)."""
    while tournament.calls:
        tournament.answer([judge(call.first, call.second) for call in tournament.calls])
    return tournament.result()


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
    """Exact expected rewards for a judge that names the first position with this probability."""
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


def chances(num: int, seed: int) -> np.ndarray:
    """[num + 1, num + 1] probability that i beats j, by an unbiased judge; the last row is the reference."""
    upper = np.triu(np.random.default_rng(seed).uniform(0.3, 0.7, (num + 1, num + 1)), 1)
    return upper + np.tril(1 - upper.T, -1)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("order", ORDERS)
def test_a_position_bias_of_20_points_changes_no_expected_reward(scheme, order):
    num = 4 if scheme == "knockout" and order == "random" else 3
    chance = chances(num, 7)
    schedule = Schedule(scheme=scheme, num_samples=num, order=order)
    fair = expectation(schedule, lambda first, second: chance[first, second])
    biased = expectation(schedule, lambda first, second: chance[first, second] + 0.2)
    np.testing.assert_allclose(biased, fair, atol=1e-12)
    assert np.abs(fair).max() > 0.05  # not trivially equal
    if scheme in ("reference", "all_pairs"):
        others = [num] if scheme == "reference" else range(num)
        exact = [np.mean([2 * chance[i, j] - 1 for j in others if j != i]) for i in range(num)]
        np.testing.assert_allclose(fair, exact, atol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("order", ORDERS)
def test_naming_the_first_position_unread_in_a_fifth_of_the_calls_equals_random_answers_there(scheme, order):
    """Expected rewards are exactly 0.8 of the unbiased ones, so normalised rewards are equal. A knockout's are not such
    a multiple, since opponents depend on results, but they too equal those of random answers."""
    num = 4 if scheme == "knockout" and order == "random" else 3
    chance = chances(num, 11)
    schedule = Schedule(scheme=scheme, num_samples=num, order=order)
    fair = expectation(schedule, lambda first, second: chance[first, second])
    unread = expectation(schedule, lambda first, second: 0.8 * chance[first, second] + 0.2)
    at_random = expectation(schedule, lambda first, second: 0.8 * chance[first, second] + 0.1)
    np.testing.assert_allclose(unread, at_random, atol=1e-12)
    assert np.abs(fair).max() > 0.05 and (np.argsort(unread) == np.argsort(fair)).all()
    if scheme == "knockout":
        return
    np.testing.assert_allclose(unread, 0.8 * fair, atol=1e-12)
    fair, unread = (torch.from_numpy(rewards).float() for rewards in (fair, unread))
    advantages = [
        group_advantages_ref(rewards, torch.zeros(num), torch.ones(num, dtype=torch.bool), estimator=GRPO)
        for rewards in (fair, unread)
    ]
    torch.testing.assert_close(*advantages, rtol=1e-4, atol=1e-4)


def test_in_random_order_a_judge_that_always_names_the_first_position_gives_no_reward():
    unbalanced = [play(Tournament(Schedule(scheme="reference", num_samples=2), random.Random(seed)), judge)
                  for seed in range(400) for judge in [lambda first, second: Answer.FIRST]]  # fmt: skip
    assert abs(np.mean([result.rewards for result in unbalanced])) < 0.1  # in random order
    always = play(
        Tournament(Schedule(scheme="reference", num_samples=2, order="agree"), random.Random(0)),
        lambda first, second: Answer.FIRST,
    )
    assert always.rewards.tolist() == [0, 0] and always.stats.num_ties == 2
    assert always.stats.swap_consistency == 0 and always.stats.first_position_share == 1
