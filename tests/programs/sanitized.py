"""Runs pytest with another build of the extension: sanitized.py EXTENSION [pytest's arguments]; see `make asan`."""

import importlib.util
import sys

import pytest
import ralign.kernels


def main(path: str, *arguments: str) -> int:
    name = "ralign.kernels._packing"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ralign.kernels._packing = module
    return pytest.main(list(arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
