"""Python code of the user: what it raises is the user's mistake, reported by its place.

A file that a setting names (FILE.py:NAME) and a recipe of the user run in our process, and may raise anything.
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import ModuleType

from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.extras import PACKAGES

_MAX_MESSAGE_CHARS = 500


@contextmanager
def named_by_line(file: str) -> Iterator[None]:
    """Turn an error of the code in `file` into a UserError: `FILE:LINE: CLASS: MESSAGE`.

    LINE is the last one of `file` that was being executed; for a SyntaxError, the place that Python names.

    Raises:
        UserError: the code raises anything else than what follows, or calls sys.exit.
        MemoryError, KeyboardInterrupt: as they are, as is the import error of a package of an extra.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except SyntaxError as error:
        place = f"{error.filename}:{error.lineno}" if error.filename else file
        raise UserError(f"{place}: {error.msg}") from error
    except (Exception, SystemExit) as error:  # any: the code is not ours
        if isinstance(error, ModuleNotFoundError) and error.name in PACKAGES:
            raise
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file
        ]
        place = f"{file}:{lines[-1]}" if lines else file
        message = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{place}: {message[:_MAX_MESSAGE_CHARS]}") from error


def run_module(spec: ModuleSpec) -> ModuleType:
    """The module of a file, which is in `sys.modules` from here on.

    Raises:
        UserError: its code raises (as `named_by_line`); the module is not kept, and the next call runs the file again.
    """
    assert spec.loader is not None and spec.origin is not None, spec
    module = sys.modules[spec.name] = module_from_spec(spec)
    try:
        with named_by_line(spec.origin):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]  # half a module
        raise
    return module
