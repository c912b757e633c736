"""The order in which models and engine take the device's memory."""

import pytest


@pytest.mark.jobs
@pytest.mark.parametrize("offload", ["always", "never"])
def test_gradients_leave_before_the_engine_is_built_where_they_leave_while_it_generates(torchrun, offload):
    report = torchrun("start_order", 1, offload)
    assert len(report["gradient_bytes"]) == 2, "policy and critic"
    held = report["held"]
    if offload == "always":
        assert report["gradient_bytes"] == [0, 0]
        assert held["start"] == pytest.approx(held["generate"])
    else:
        assert all(report["gradient_bytes"])
        assert held["start"] <= held["generate"], "Adam's moments come with its first step"
    assert held["generate"] <= held["learn"]
    assert report["after_close"] == 0
