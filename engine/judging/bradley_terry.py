"""Strengths of a group from comparisons: P(i beats j) = s_i / (s_i + s_j) (Bradley and Terry 1952)."""

import numpy as np


def has_fit(wins: np.ndarray) -> bool:
    """Whether the likelihood has a finite maximum: a chain of wins leads from each sample to any other (Ford 1957).

    wins: [N, N] float, times that i beat j.
    """
    num_samples = len(wins)
    reach = (wins > 0) | np.eye(num_samples, dtype=bool)
    for _ in range(num_samples.bit_length()):
        reach = reach @ reach
    return bool(reach.all())


def strengths(
    wins: np.ndarray, *, tolerance: float = 1e-10, max_iterations: int = 10_000
) -> np.ndarray | None:
    """Log-strengths [N] float64 of maximum likelihood, with mean 0; None if there is no finite maximum (`has_fit`).

    wins: [N, N] float, times that i beat j; a tie is half a win for both. Newton's method on the concave likelihood,
    with halved steps where a full step would not raise it.
    """
    if not has_fit(wins):
        return None
    games = wins + wins.T
    theta = np.zeros(len(wins))
    for _ in range(max_iterations):
        chance = 1 / (1 + np.exp(theta[None, :] - theta[:, None]))
        gradient = (wins - games * chance).sum(1)
        if np.abs(gradient).max() < tolerance * max(games.sum(), 1):
            break
        weight = games * chance * (1 - chance)
        hessian = np.diag(weight.sum(1)) - weight
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        before = _log_likelihood(wins, theta)
        scale = 1.0
        while _log_likelihood(wins, theta + scale * step) < before and scale > 1e-6:
            scale /= 2
        theta = theta + scale * step
        theta -= theta.mean()
    return theta


def bradley_terry(wins: np.ndarray) -> np.ndarray | None:
    """Rewards [N] float64 in [-1, 1]: the mean probability of a win against the others, scaled; None without a fit."""
    theta = strengths(wins)
    if theta is None:
        return None
    chance = 1 / (1 + np.exp(theta[None, :] - theta[:, None]))
    others = (chance.sum(1) - 0.5) / (len(wins) - 1)
    return 2 * others - 1


def _log_likelihood(wins: np.ndarray, theta: np.ndarray) -> float:
    return float(-(wins * np.logaddexp(0, theta[None, :] - theta[:, None])).sum())
