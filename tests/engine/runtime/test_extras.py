"""A missing package of the extras becomes a mistake that names the extras; any other missing module stays a bug."""

import importlib
import sys

import pytest
from ralign.engine.runtime import extras
from ralign.engine.runtime.entry_point import run_main
from ralign.engine.runtime.errors import UserError


@pytest.mark.parametrize("package", sorted(extras.PACKAGES))
def test_a_missing_package_names_the_extras(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(UserError, match=rf"^{package} is not installed.*ralign\[cpu\].*ralign\[cuda\]"):
        with extras.named_when_missing():
            importlib.import_module(package)


@pytest.mark.parametrize("module", ["no_such_package", "json.no_such_part", "torch.no_such_part"])
def test_any_other_missing_module_is_a_bug(module):
    with pytest.raises(ModuleNotFoundError, match=module):
        with extras.named_when_missing():
            importlib.import_module(module)


def test_a_command_ends_with_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(SystemExit) as ended:
        run_main(lambda argv: importlib.import_module("vllm"), [])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: vllm is not installed")
