"""The engine that computes with a private copy of one weight is stopped; checksums do not see it."""

import pytest


@pytest.mark.jobs
@pytest.mark.parametrize(
    ("dtype", "tensor", "generate"), [("fp32", 1, 0), ("bf16", 2, 0), ("fp32", 2, 1)], ids=str
)
def test_a_private_copy_of_any_layers_weight_is_found(torchrun, dtype, tensor, generate):
    report = torchrun("proof", 2, dtype, str(tensor), str(generate), timeout_s=400)
    assert report["difference"] <= (1e-5 if dtype == "fp32" else 0.01)
    assert report["restored"], "the weights are not as they were before the proof"
    assert report["repeated"] == report["difference"]
    assert len(report["stopped"]) == 18 and all(report["stopped"].values()), report["stopped"]
    assert not report["checksums_see_it"]
