"""Import names and the direction of imports: what the folder layout promises."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path
    for folder in ("engine", "kernels", "recipes", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
)


def modules_of(folder: str) -> list[str]:
    """Import names of a folder's modules."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    names = [".".join(["ralign", *path.relative_to(ROOT).with_suffix("").parts]) for path in paths]
    return [name.removesuffix(".__init__") for name in names]


def imported(path: Path) -> set[str]:
    """Full names of everything a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_kernels_is_not_a_package_that_others_could_import():
    """transformers imports whatever package is named `kernels`; a folder without __init__.py is safe."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    code = "import importlib.util as u; s = u.find_spec('kernels'); print(s.origin if s else None)"
    for folder in (ROOT, ROOT / "recipes"):
        found = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
        )
        origin = found.stdout.strip()
        assert origin == "None" or not Path(origin).resolve().is_relative_to(ROOT / "kernels")


def test_ralign_is_imported_from_this_repository():
    for name in ("ralign.engine.data.packing", "ralign.kernels.logprob", "ralign.kernels._packing"):
        assert Path(importlib.util.find_spec(name).origin).is_relative_to(ROOT)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    names = imported(path)
    tops = {name.split(".")[0] for name in names}
    assert not tops & {"kernels", "engine"}, "import ralign.kernels or ralign.engine: bare names are others'"
    folder = path.relative_to(ROOT).parts[0]
    if folder == "kernels":
        foreign = {
            top for top in tops - set(sys.stdlib_module_names) if top not in ("torch", "triton", "ralign")
        }
        assert not foreign, "kernels import torch and triton only"
        assert not any(name.startswith("ralign.") and not name.startswith("ralign.kernels") for name in names)
    if folder in ("kernels", "engine"):
        assert "recipes" not in tops and not any(name.startswith("ralign.recipes") for name in names)


NAMING = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile", ROOT / ".ci" / "run"]


@pytest.mark.parametrize("path", NAMING, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_is_named_is_there(path):
    named = set(re.findall(r"tests/[\w/*-]*(?:\.py|\.sh|/)", path.read_text(encoding="utf-8")))
    missing = {name for name in named if not any(ROOT.glob(name))}
    assert not missing


@pytest.mark.jobs
def test_every_module_imports_without_cuda_and_asks_for_no_device():
    code = "import importlib, sys, torch\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "assert not torch.cuda.is_initialized() and not torch.distributed.is_initialized()"
    modules = modules_of("engine") + modules_of("kernels") + modules_of("recipes")
    for name in ("engine.data.packing", "kernels.rms_norm", "recipes.r_align_mini", "recipes.paper.report"):
        assert f"ralign.{name}" in modules
    command = [sys.executable, "-c", code, *modules]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
