"""The kernels that compute packed attention on CUDA: which kernel a device gets, and one interface to all of them.

| device, head size | kernel |
|---|---|
| compute capability 9.x and 10.x, head sizes of `HEAD_SIZES`, bf16, with the package flash-attn-4 | flash-attn 4 |
| everything else | torch's varlen attention, which is FlashAttention 2 |
| the same, with flash-attn 2 installed, where torch's has no option for fewer key heads (2.11) | flash-attn 2 |

flash-attn 4 is written in CuTe DSL and compiles its kernels when they are first called. The kernels depend on the head
size, the query heads per key head, whether there are gradients, whether these are deterministic, and whether a
micro-batch has more than 256 sequences. They do not depend on lengths, see `_LEAST_SEQLEN`. They are kept on disk only
if the environment asks for it.
"""

import fcntl
import functools
import importlib.util
import inspect
import logging
import os
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from ralign.engine.runtime.errors import UserError
from torch import Tensor

logger = logging.getLogger(__name__)

# flash-attn 4 supports more (multiples of 8 up to 256 on 9.x, up to 128 and 256 on 10.x). These are the sizes that the
# families have, that its tiles are tuned for, and that tests compile for both.
HEAD_SIZES = (64, 96, 128)

# It compiles other kernels if the longest sequence fits one or two tiles (256 rows at most). The lengths are upper
# bounds: with this one, a batch of short sequences does not compile kernels in the middle of a run.
_LEAST_SEQLEN = 257

_COMPILE_LIMIT_S = 120  # all kernels of one model took 16 s of CPU time for sm_90a, 29 s for sm_100a
_CACHE_SWITCH = "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"
_CACHE_FOLDER = "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"


@functools.cache
def varlen_kernel(device: torch.device, dtype: torch.dtype, head_size: int) -> Callable[..., Tensor]:
    """Causal attention of packed sequences in half precision, chosen once for each device, dtype and head size.

    Its arguments are query [T, N, D], key and value [S, G, D], `cu_seqlens` of queries and of keys, int32 [B + 1],
    and the longest sequence of each (upper bounds). It returns [T, N, D]. Causality is aligned at the ends of the
    sequences. Keys and values are not repeated for the query heads of a group, and autograd saves them once. Rows that
    belong to no sequence are uninitialised, in the output and in the gradients.

    With `torch.use_deterministic_algorithms` gradients have the same bits in every run.

    Raises:
        UserError: compiled kernels cannot be stored in the folder for them.
    """
    major, minor = torch.cuda.get_device_capability(device)
    fits = dtype == torch.bfloat16 and head_size in HEAD_SIZES and major in (9, 10)
    return _flash_attn_4(f"sm_{major}{minor}") if fits and _installed("flash-attn-4") else _flash_attn_2()


def _flash_attn_2() -> Callable[..., Tensor]:
    """torch's, if it has the option for fewer key heads than query heads (2.12 and later), else flash-attn 2 if it is
    installed, else torch's after all: in 2.11 it runs the same kernel and does not compare the numbers of heads."""
    from torch.nn.attention.varlen import varlen_attn

    takes_groups = "enable_gqa" in inspect.signature(varlen_attn).parameters
    # Found by its compiled module: flash-attn 4 has a package `flash_attn`, too.
    if not takes_groups and importlib.util.find_spec("flash_attn_2_cuda"):
        from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

        logger.info("packed attention: flash-attn 2")
        return functools.partial(_call_flash_attn_2, flash_attn_varlen_func)
    logger.info("packed attention: torch's varlen attention")
    options: dict[str, Any] = {"enable_gqa": True} if takes_groups else {}
    # It reads torch's determinism flag itself, and returns one tensor: `return_aux` is not given.
    return functools.partial(varlen_attn, window_size=(-1, 0), **options)  # pyright: ignore[reportReturnType]


def _call_flash_attn_2(function: Callable[..., Tensor], *args) -> Tensor:
    return function(*args, causal=True, deterministic=torch.are_deterministic_algorithms_enabled())


def _flash_attn_4(architecture: str) -> Callable[..., Tensor]:
    """Loads the package with a cache on disk, in the folder that the environment names, or in the default one."""
    folder = Path(os.environ.get(_CACHE_FOLDER) or _cache_folder(architecture))
    environment = {_CACHE_SWITCH: os.environ.get(_CACHE_SWITCH, "1"), _CACHE_FOLDER: str(folder)}
    _check_folder(folder)
    # The package reads them at import. vLLM's own copy of it reads the same variables and must not see these values.
    with mock.patch.dict(os.environ, environment):
        from flash_attn.cute import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    # One per compilation, about an argument of the package's own.
    warnings.filterwarnings("ignore", "Argument aux_data", UserWarning)
    logger.info("packed attention: flash-attn 4 (%s)", architecture)
    if os.environ.get("RANK", "0") == "0" and not any(folder.rglob("*.o")):
        logger.warning(
            "flash-attn 4 compiles attention for %s at the first calls, at most %d s in all, and stores it in %s",
            architecture, _COMPILE_LIMIT_S, folder,
        )  # fmt: skip
    return functools.partial(_call_flash_attn_4, flash_attn_varlen_func)


def _call_flash_attn_4(
    function: Callable[..., tuple[Tensor, Tensor | None]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
) -> Tensor:
    output, _ = function(
        query,
        key,
        value,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max(max_seqlen_q, _LEAST_SEQLEN),
        max_seqlen_k=max(max_seqlen_k, _LEAST_SEQLEN),
        causal=True,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return output


def _cache_folder(architecture: str) -> Path:
    """`~/.cache/ralign/flash_attn/...`. The package's own keys contain the versions of itself and of CuTe, but not of
    quack, whose code it compiles, too."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    versions = f"{version('flash-attn-4')}-quack-{version('quack-kernels')}"
    return Path(root, "ralign", "flash_attn", versions, architecture)


def _check_folder(folder: Path) -> None:
    """The package writes files there and locks them. Without locks it stops after 15 s, at its first kernel."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
    except OSError as error:
        raise UserError(
            f"compiled attention kernels cannot be kept in {folder}: {error.strerror}; XDG_CACHE_HOME or "
            f"{_CACHE_FOLDER} can name another folder, on a file system with locks"
        ) from error


def _installed(distribution: str) -> bool:
    """Found by metadata: flash-attn 2 and 4 share the package name `flash_attn`, and flash-attn 2 has a `cute`, too."""
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
