"""The Megatron policy computes what transformers computes, and its export is what was loaded, bit for bit."""

import pytest


@pytest.mark.parametrize("num_processes", [1, 2])
def test_parity_with_transformers_and_bit_equal_export(torchrun, num_processes):
    report = torchrun("parity", num_processes)
    assert len(report) == 5 + num_processes
    for name, case in report.items():
        assert case["max_diff"] <= 1e-4, (name, case)
        assert case["bits_equal"] and case["reload_equal"] and case["size_right"], (name, case)
