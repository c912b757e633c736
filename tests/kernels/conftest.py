"""Every kernel test runs on both implementations of the ops: plain torch, and Triton where it can run.

Triton runs on a GPU, and in its interpreter, which must be chosen before the kernels are imported:
test_under_interpreter.py runs this folder again in a process of its own with TRITON_INTERPRET=1.
"""

import importlib
import os

import pytest
import torch

OPS = ("advantages", "gae", "logprob", "policy_loss", "rms_norm")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(autouse=True, params=["torch", "triton"])
def implementation(request, monkeypatch):
    """The implementation that "auto" stands for in this test."""
    if request.param == "triton" and not (INTERPRETED or torch.cuda.is_available()):
        pytest.skip("no GPU; run under the interpreter by test_under_interpreter.py")
    if request.param == "torch" and INTERPRETED:
        pytest.skip("runs outside the interpreter")
    for op in OPS:
        module = importlib.import_module(f"ralign.kernels.{op}")
        monkeypatch.setattr(module, "uses_triton", lambda *_: request.param == "triton")
    if request.param == "triton" and not INTERPRETED:
        torch.set_default_device("cuda")
    yield request.param
    torch.set_default_device(None)
