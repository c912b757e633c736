"""The length penalty: from long to short, as far as the group wins, on a fixed scale."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from ralign.engine.actors.length_penalty import length_bonus


def bonus_of(rewards, lengths, valid=None, groups=None):
    valid = np.ones(len(rewards), dtype=bool) if valid is None else np.array(valid)
    groups = np.zeros(len(rewards), dtype=int) if groups is None else np.array(groups)
    return length_bonus(
        np.array(rewards), valid, np.array(lengths), groups, coefficient=0.3, max_new_tokens=100
    )


def test_by_hand():
    moved = bonus_of([1.0, 1.0, -1.0, 7.0], [10, 30, 20, 999], valid=[True, True, True, False])
    np.testing.assert_allclose(moved, [0.3 * 2 / 3 * x / 100 for x in (10, -10, 0, 0)], atol=1e-8)
    assert bonus_of([-1.0, -1.0], [1, 9]).tolist() == [0, 0]  # nobody wins
    assert bonus_of([1.0, 1.0], [5, 5]).tolist() == [0, 0]


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.integers(1, 100), st.booleans(), st.integers(0, 2)), min_size=1)
)
def test_it_sums_to_zero_in_a_group_and_never_exceeds_the_coefficient(samples):
    rewards, lengths, valid, groups = map(list, zip(*samples, strict=True))
    bonus = bonus_of(rewards, lengths, valid, groups)
    assert (np.abs(bonus) <= 0.3).all() and not bonus[~np.array(valid)].any()
    for group in set(groups):
        assert abs(bonus[np.array(groups) == group].sum()) < 1e-5
