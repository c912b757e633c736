"""Cut-off answers: what each setting pays, and the soft overlong penalty."""

import numpy as np
import pytest
from ralign.engine.algorithms.truncation import apply_truncation, overlong_penalty
from ralign.engine.config.algo import AlgoConfig

VALUES, VALID = np.float32([1, 0, 1, 0]), np.array([True, True, True, False])
LENGTHS, CUT = [100, 85, 100, 10], [True, False, False, False]


@pytest.mark.parametrize(
    ("setting", "values", "valid"),
    [
        ("invalid", [-1, 0, 1, 0], [True, True, True, False]),
        ("mask", [0, 0, 1, 0], [False, True, True, False]),
        ("penalty", [0, -0.25, 0, 0], [True, True, True, False]),
        ("keep", [1, 0, 1, 0], [True, True, True, False]),
        (None, [-1, 0, 1, 0], [True, True, True, False]),
    ],
)
def test_what_each_setting_pays(setting, values, valid):
    algo = AlgoConfig(truncated=setting)
    given = (VALUES, VALID, LENGTHS, CUT, algo)
    found, counted = apply_truncation(*given, default="invalid", max_new_tokens=100)
    assert found.tolist() == pytest.approx(values) and counted.tolist() == valid
    assert found.dtype == np.float32 and VALUES.tolist() == [1, 0, 1, 0]
    parts, _ = apply_truncation(
        np.stack([VALUES, VALUES], 1), *given[1:], default="invalid", max_new_tokens=100
    )
    if setting in ("invalid", None):
        assert parts.sum(1)[0] == -1  # the parts of an invalid answer add up to its reward


def test_the_penalty_is_daposs_line():
    lengths = np.array([0, 80, 90, 100, 100, 3])
    cut = np.array([False, False, False, False, True, True])
    assert overlong_penalty(lengths, cut, 100, 0.2).tolist() == pytest.approx([0, 0, 0.5, 1, 1, 1])
    assert overlong_penalty(lengths, cut, 100, 0.0).tolist() == [0, 0, 0, 0, 1, 1]
