"""Packages of the extras `cpu` and `cuda`, which training and local models need and the light commands do not."""

from collections.abc import Iterator
from contextlib import contextmanager

from ralign.engine.runtime.errors import UserError

PACKAGES = frozenset({"torch", "triton", "transformers", "tokenizers", "vllm", "megatron"})


@contextmanager
def named_when_missing() -> Iterator[None]:
    """Turn the import error of one of `PACKAGES` that is not installed into a UserError with the command to run.

    Raises:
        UserError: the package is not installed.
        ModuleNotFoundError: a module of any other name, such as one that an installed torch does not have.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        raise UserError(
            f"{error.name} is not installed, which training and local models need: pip install 'ralign[cpu]', or"
            " 'ralign[cuda]' on a machine with NVIDIA GPUs"
        ) from error
