"""Lets a Python without an installation of ralign import it from this source tree: a GPU machine's own, say."""

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def make_importable() -> None:
    """Make the packages of ralign importable in this process and in those that it starts.

    Where ralign is installed nothing changes. Else a folder of links, removed at exit, goes on the import path.
    """
    if importlib.util.find_spec("ralign") is not None:
        return
    folder = Path(tempfile.mkdtemp(prefix="ralign-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "ralign").mkdir()
    for name in ("engine", "kernels", "recipes"):
        (folder / "ralign" / name).symlink_to(ROOT / name)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
