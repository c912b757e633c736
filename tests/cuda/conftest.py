"""Contract tests against the CUDA packages on a machine without a GPU: `make test-cuda`, in a process of their own.

Other test runs leave this folder out: a CPU environment has no such packages, and on a GPU machine the stubs would
stand in the way of the real thing.
"""

import os
import runpy
import sys
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
IS_WANTED = os.environ.get("RALIGN_TEST_CUDA") == "1"
collect_ignore_glob = [] if IS_WANTED else ["*"]
if not any(each.name == "flash-attn-4" for each in distributions()):
    collect_ignore_glob.append("test_flash_attention.py")  # cuda-oldest.lock: it does not go with that vllm


def _load_stub(folder: Path) -> None:
    """Before anything imports torch, and with it CUDA's runtime."""
    if "torch" in sys.modules:
        pytest.exit("tests/cuda runs in a process of its own: make test-cuda", returncode=2)
    torch_folder = Path(find_spec("torch").origin).parent
    if runpy.run_path(str(torch_folder / "version.py"))["cuda"] is None:
        pytest.exit(
            "tests/cuda needs the CUDA packages, this torch is a CPU build: make test-cuda", returncode=2
        )
    sys.path[:0] = [str(_HERE), str(_HERE.parent / "programs")]
    import stub_libcuda

    folder.mkdir(parents=True, exist_ok=True)
    stub_libcuda.load(stub_libcuda.build(folder))


# For whom flash-attn 4 and CuTe DSL compile, where nobody says otherwise; read when they are imported.
_COMPILE_FOR = {"FLASH_ATTENTION_ARCH": "sm_90", "FLASH_ATTENTION_NUM_SMS": "132", "CUTE_DSL_ARCH": "sm_90a"}

if IS_WANTED:
    os.environ |= _COMPILE_FOR
    _load_stub(Path(sys.prefix) / "stub_libcuda")


@pytest.fixture(scope="module")
def h100():
    """The tests of this file run as on a machine with 8 H100 (as_h100.py)."""
    from as_h100 import as_h100

    with as_h100():
        yield


@pytest.fixture
def launches(monkeypatch):
    """Triton's launches are recorded, not done: (kernel's name, its tensors)."""
    import torch
    from triton.runtime.jit import JITFunction

    recorded: list[tuple[str, list[torch.Tensor]]] = []

    def record(kernel, *args, **_):
        recorded.append((kernel.fn.__name__, [x for x in args if isinstance(x, torch.Tensor)]))

    monkeypatch.setattr(JITFunction, "run", record)
    return recorded


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """`model_folder(family, tied=..., head_in_files=..., head_dim=...)`: a tiny model, made once."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    made: dict[tuple, Path] = {}

    def make(family: str, *, tied: bool = False, head_in_files: bool = False, head_dim: int = 128) -> Path:
        key = (family, tied, head_in_files, head_dim)
        if key not in made:
            with unset_fake_temporarily():
                made[key] = _make_model(tmp_path_factory.mktemp("model"), *key)
        return made[key]

    return make


def _make_model(folder: Path, family: str, tied: bool, head_in_files: bool, head_dim: int) -> Path:
    from safetensors.torch import load_file, save_file
    from tiny import make_model

    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": head_dim}
    make_model(folder, family, tied=tied, num_hidden_layers=2, hidden_size=8 * head_dim, **heads)
    if head_in_files:  # as some published tied models have it
        file = folder / "model.safetensors"
        tensors = load_file(file)
        save_file(
            tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file, {"format": "pt"}
        )
    return folder
