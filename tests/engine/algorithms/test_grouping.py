"""The groups that an advantage compares: a prompt's, or a pair's and its twin's."""

import pytest
import torch
from ralign.engine.algorithms.grouping import grouped
from ralign.kernels.advantages import DR_GRPO, GRPO

# A judge that mostly names the first response: right in one order, wrong in the other.
REWARDS = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0])
GROUPS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
VALID = torch.ones(8, dtype=torch.bool)


def test_by_prompt_it_is_the_estimator():
    assert torch.equal(
        grouped(GRPO, "prompt", REWARDS, GROUPS, VALID, implementation="torch"), GRPO(REWARDS, GROUPS, VALID)
    )


def test_by_pair_it_is_the_mean_of_both_comparisons():
    ours = grouped(DR_GRPO, "pair", REWARDS, GROUPS, VALID, implementation="torch")
    within, of_pair = (REWARDS[:4] - 0.75, REWARDS[4:] - 0.25), REWARDS - 0.5
    assert ours.tolist() == pytest.approx(((torch.cat(within) + of_pair) / 2).tolist())


def test_twins_without_spread_teach_by_pair_where_they_differ():
    """A judge that follows what twins differ in has no spread in either, and all of it in the pair."""
    rewards = torch.tensor([1.0] * 4 + [0.0] * 4)
    assert not grouped(GRPO, "prompt", rewards, GROUPS, VALID, implementation="torch").any()
    by_pair = grouped(GRPO, "pair", rewards, GROUPS, VALID, implementation="torch")
    assert (by_pair[:4] > 0).all() and (by_pair[4:] < 0).all()
