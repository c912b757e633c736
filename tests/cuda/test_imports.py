"""Every module imports with the CUDA packages, in a process that has a driver's library and no GPU."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import importlib, sys
import torch
for name in sys.argv[1:]:
    importlib.import_module(name)
assert torch.version.cuda and not torch.cuda.is_available() and not torch.cuda.is_initialized()
assert not torch.distributed.is_initialized()
"""


def modules_in(folder: str, package: str) -> list[str]:
    paths = [path.relative_to(ROOT / folder) for path in sorted((ROOT / folder).rglob("*.py"))]
    return [
        ".".join([*package.split(), *path.with_suffix("").parts]).removesuffix(".__init__") for path in paths
    ]


@pytest.mark.parametrize(
    ("folder", "package"),
    [
        ("engine", "ralign.engine"),
        ("kernels", "ralign.kernels"),
        ("recipes", "ralign.recipes"),
        ("benchmarks", ""),
    ],
)
def test_every_module_imports(folder, package):
    names = [name for name in modules_in(folder, package) if name != "conftest"]
    assert len(names) > 5
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""} | ({} if package else {"PYTHONPATH": str(ROOT / folder)})
    done = subprocess.run(
        [sys.executable, "-c", CODE, *names], env=env, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    "name",
    [
        "vllm._C_stable_libtorch",
        "vllm.cumem_allocator",
        "vllm.vllm_flash_attn",
        "vllm._moe_C_stable_libtorch",
    ],
)
def test_extension_modules_of_vllm_load(name):
    importlib.import_module(name)
