"""What dynamic sampling takes for a group that teaches nothing has an advantage of 0 in every sample."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ralign.engine.algorithms.grouping import grouped
from ralign.engine.config.algo import AlgoConfig
from ralign.engine.config.run import GenRMRun
from ralign.engine.config.validation import validate_layout
from ralign.engine.runtime.errors import UserError
from ralign.engine.training.sampling import flat_units
from ralign.kernels.advantages import GRPO
from ralign.kernels.batch_advantages import GDPO

VALID = np.ones(4, dtype=bool)


def test_twins_that_differ_only_from_each_other_have_a_spread_over_the_pair():
    """All answers to the twin have no verdict: with algo.group=pair they learn from it."""
    values, groups = np.array([0.0, 0.0, -1.0, -1.0], dtype=np.float32), torch.tensor([0, 0, 1, 1])
    advantages = grouped(
        GRPO, "pair", torch.tensor(values), groups, torch.from_numpy(VALID), implementation="torch"
    )
    assert (advantages != 0).all()
    rewards = SimpleNamespace(values=values, valid=VALID, parts=values[:, None])
    assert flat_units([0, 0, 1, 1], rewards, groups_per_unit=2, by_pair=True).tolist() == [False]
    assert flat_units([0, 0, 1, 1], rewards, groups_per_unit=2).tolist() == [True]


def test_equal_sums_of_different_parts_are_a_spread():
    """GDPO compares each part by itself: of three parts, equal sums can have different advantages."""
    parts = np.array([[2, 0, 0], [0, 1, 1], [1, 1, 0], [1, 0, 1], [0, 0, 0], [1, 1, 1]], dtype=np.float32)
    groups, valid = [0, 0, 0, 0, 1, 1], np.ones(6, dtype=bool)
    advantages = GDPO(torch.tensor(parts), torch.tensor(groups), torch.from_numpy(valid))
    assert (advantages[:4].abs() > 0.1).any()
    rewards = SimpleNamespace(values=parts.sum(1), valid=valid, parts=parts)
    assert flat_units(groups, rewards, groups_per_unit=1, by_part=True).tolist() == [False, False]


def _validate(**algo) -> None:
    run = GenRMRun(algo=AlgoConfig(**algo))
    validate_layout(run, 1, asdict(run.model))


def test_dynamic_sampling_is_refused_where_a_flat_group_teaches():
    """reinforce_pp compares with the batch: groups of all right and all wrong answers teach most."""
    with pytest.raises(UserError, match=r"algo\.dynamic_sampling=2 .*=reinforce_pp"):
        _validate(advantages="reinforce_pp", dynamic_sampling=2)
    _validate(advantages="reinforce_pp_baseline", dynamic_sampling=2)


def test_reinforce_pp_needs_no_second_answer_to_a_prompt():
    _validate(advantages="reinforce_pp", num_samples=1)
    with pytest.raises(UserError, match=r"algo\.num_samples must be at least 2"):
        _validate(advantages="reinforce_pp_baseline", num_samples=1)
