"""Rates and verdicts of the roofline table, from times that are given."""

import pytest
import roofline
from kernel_cases import CPU, Case, make_cases

COPY, PRODUCT = 4e12, 8e14
COPYING = Case(name="copying", shape="N=1", num_bytes=4 * 10**9, run={}, target_ms=2.0)
HEAD = Case(name="head", shape="N=1", num_flops=8 * 10**12, run={})
NORM = Case(name="norm", shape="N=1", num_bytes=4 * 10**9, run={}, target_share=0.85)


def row(case, ms, name="ralign", on_h200=True):
    return roofline.row_of(case, name, ms, COPY, PRODUCT, on_h200)


def test_rates_and_the_share_of_the_roof():
    assert row(COPYING, 2.0)["bytes_per_s"] == 2e12 and row(COPYING, 2.0)["share_of_ceiling"] == 0.5
    assert row(HEAD, 20.0)["flops_per_s"] == 4e14 and row(HEAD, 20.0)["share_of_ceiling"] == pytest.approx(
        0.5
    )


@pytest.mark.parametrize(
    ("found", "missed", "words"),
    [
        (row(COPYING, 2.0), False, "2 ms met"),
        (row(COPYING, 2.1), True, "2 ms MISSED"),
        (row(COPYING, 2.1, on_h200=False), None, "48%"),  # the target is an H200's
        (row(COPYING, 2.1, name="torch"), None, "48%"),
        (row(NORM, 1.1), False, "85% met"),
        (row(NORM, 1.3, on_h200=False), True, "85% MISSED"),
        (row(NORM, float("nan")), True, "85% MISSED"),
        (row(HEAD, 10.0), None, "800 TFLOP/s"),
    ],
)
def test_a_target_is_met_or_missed(found, missed, words):
    assert roofline.misses_target(found) is missed
    assert words in roofline.line_of(found)


def test_the_norms_are_held_to_a_share_of_the_roof_on_a_gpu_alone():
    assert all(case.target_ms is None and case.target_share is None for case in make_cases("cpu", CPU))
