"""A libcuda.so.1 for machines without NVIDIA's driver: enough to load the CUDA packages and to run autograd.

Extension modules of vLLM and a library of torch name some functions of the driver and do not load without it. In the
stub each of them returns CUDA_ERROR_NO_DEVICE, which is the truth. Two answers are not:

- Autograd asks about each device that torch has whether this process holds a context on it, to order streams. The
  stub says no, as for a GPU that nothing has run on.
- torch counts devices through the driver. The stub's count, 0 at first, is set by `pretend_devices`.

It is compiled at test time from the packages that are installed, so that a new release needs no new list.
"""

import ctypes
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

_SOURCE = """
static signed char num_devices = 0;
void ralign_pretend_devices(int count) { num_devices = count; }
/* c10::cuda::device_count(), found here before torch's own because this library is loaded first */
signed char _ZN3c104cuda12device_countEv(void) { return num_devices; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = *active = 0; return 0; }
"""
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


def driver_functions() -> list[str]:
    """Names of the driver's functions that the installed packages ask for."""
    vllm, torch = (Path(importlib.util.find_spec(name).origin).parent for name in ("vllm", "torch"))
    modules = [*vllm.rglob("*.so"), *(torch / "lib").glob("libcaffe2_nvrtc.so")]
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", "--format=posix", *modules],
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted({name for name in listing.stdout.split() if name.startswith("cu") and name[2:3].isupper()})


def build(folder: Path) -> Path:
    """Compile the stub into `folder`; returns the library's path."""
    source, library = folder / "libcuda.c", folder / "libcuda.so.1"
    names = [name for name in driver_functions() if f"{name}(" not in _SOURCE]
    functions = "".join(f"int {name}(void) {{ return {_NO_DEVICE}; }}\n" for name in names)
    source.write_text(_SOURCE + functions)
    subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, source], check=True)
    return library


def load(library: Path) -> None:
    """Into this process, before torch, and into those that it starts.

    Whoever asks for libcuda.so.1 later gets the library of that name that is loaded already.
    """
    assert "torch" not in sys.modules, "torch would count devices by itself"
    global _library
    _library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    paths = [str(library.parent), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(paths)


def pretend_devices(count: int) -> None:
    """How many devices torch's C++ part counts from now on."""
    _library.ralign_pretend_devices(count)


_library: ctypes.CDLL
