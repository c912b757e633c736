"""The Megatron policy computes what transformers computes, and its export is what was loaded, bit for bit."""

import pytest
from ralign.engine.config.registry import FAMILIES


@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.jobs)])
def test_parity_with_transformers_and_bit_equal_export(torchrun, num_processes):
    report = torchrun("parity", num_processes)
    families = [*FAMILIES.names, "seed_oss"]
    cases = {f"{family} tied={tied}" for family in families for tied in (True, False)}
    assert report.keys() == cases | ({"qwen3 cp2"} if num_processes == 2 else set())
    for name, case in report.items():
        assert case["max_diff"] <= 1e-4, (name, case)
        assert case["bits_equal"] and case["reload_equal"] and case["size_right"], (name, case)
        assert case["sizes_planned"], f"{name}: the planner counts other parameters than the model has"
