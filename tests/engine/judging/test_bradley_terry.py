import numpy as np
import pytest
from ralign.engine.judging.bradley_terry import bradley_terry, has_fit, strengths


def chance(theta):
    return 1 / (1 + np.exp(theta[None, :] - theta[:, None]))


def test_two_samples_have_the_closed_form():
    theta = strengths(np.array([[0.0, 3.0], [1.0, 0.0]]))
    assert theta[0] - theta[1] == pytest.approx(np.log(3))
    assert theta.sum() == pytest.approx(0)
    assert bradley_terry(np.array([[0.0, 3.0], [1.0, 0.0]])) == pytest.approx([0.5, -0.5])


@pytest.mark.parametrize("seed", range(5))
def test_strengths_are_recovered_from_expected_wins(seed):
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.5, 7)
    truth -= truth.mean()
    games = np.triu(rng.integers(1, 9, (7, 7)), 1)
    games = games + games.T
    np.testing.assert_allclose(strengths(games * chance(truth)), truth, atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_there_is_a_fit_exactly_where_wins_lead_from_each_to_each(seed):
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((5, 5)) < 0.5, 1)
    wins = (upper | np.tril(~upper.T, -1)) * (rng.random((5, 5)) < 0.8)

    def reached(start):
        seen, stack = {start}, [start]
        while stack:
            for other in np.flatnonzero(wins[stack.pop()]):
                if other not in seen:
                    seen.add(int(other))
                    stack.append(int(other))
        return seen

    connected = all(len(reached(i)) == 5 for i in range(5))
    assert has_fit(wins) == connected
    theta = strengths(wins.astype(float))
    assert (theta is not None) == connected
    if connected:  # the likelihood's gradient is 0: expected wins equal the observed ones
        games = wins + wins.T.astype(float)
        np.testing.assert_allclose((games * chance(theta)).sum(1), wins.sum(1), atol=1e-6)


def test_rewards_are_fair_and_in_range():
    rewards = bradley_terry(np.array([[0, 2, 1], [1, 0, 2], [1, 1, 0.0]]))
    assert abs(rewards.sum()) < 1e-9 and np.abs(rewards).max() < 1
