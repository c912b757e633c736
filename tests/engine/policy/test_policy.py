"""An update does not depend on how model, batch and micro-batches are cut."""

import pytest


def test_every_layout_gives_the_same_updates(torchrun):
    reports = torchrun("layouts", 1) | torchrun("layouts", 2)
    reference = reports.pop("one")
    assert len(reports) == 8
    for name, rows in reports.items():
        tolerance = 0.05 if "bf16" in name else 1e-4  # eight bits of mantissa against the same update in fp32
        for step, (row, expected) in enumerate(zip(rows, reference, strict=True)):
            for key in ("loss", "grad_norm"):
                assert row[key] == pytest.approx(expected[key], rel=tolerance), (name, step, key)
        assert rows[0]["ratio_extremes"] == [1.0, 1.0], name  # on-policy: exactly 1
        assert rows[-1]["ratio_extremes"] != [1.0, 1.0], name
