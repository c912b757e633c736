"""Every kernel test runs on both implementations of the ops: plain torch, and Triton where it can run.

Triton runs on a GPU: `pytest -m gpu tests/kernels`, which needs torch, triton, pytest and hypothesis, but not an
installation of this project. On a CPU it runs in its interpreter, which must be selected before the kernels are
imported: `make test-interpreter` runs this folder with TRITON_INTERPRET=1.
"""

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from source_tree import make_importable  # noqa: E402

make_importable()

OPS = ("advantages", "gae", "policy_loss", "rms_norm", "row_stats")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class DrawsAsOnCuda(TorchFunctionMode):
    """Rejects draws that fail where CUDA is the default device: a CPU generator for a tensor of the default device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if func in _device_constructors() and generator is not None and kwargs.get("device") is None:
            raise RuntimeError(
                f"torch.{func.__name__} draws on the default device, which is CUDA on a GPU machine, with a generator "
                f'on {generator.device}: give device="cpu", then move the tensor'
            )
        return func(*args, **kwargs)


@pytest.fixture(
    autouse=True,
    params=[
        "torch",
        pytest.param("triton", marks=[] if INTERPRETED else pytest.mark.gpu),
    ],
)
def implementation(request, monkeypatch):
    """Sets the implementation that "auto" selects in this test."""
    if request.param == "triton" and not (INTERPRETED or torch.cuda.is_available()):
        pytest.skip("no GPU; see make test-interpreter")
    if request.param == "torch" and INTERPRETED:
        pytest.skip("runs outside the interpreter")
    for op in OPS:
        module = importlib.import_module(f"ralign.kernels.{op}")
        monkeypatch.setattr(module, "uses_triton", lambda *_: request.param == "triton")
    if request.param == "triton" and not INTERPRETED:
        torch.set_default_device("cuda")
    with DrawsAsOnCuda():
        yield request.param
    torch.set_default_device(None)
