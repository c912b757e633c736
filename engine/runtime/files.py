"""Files that commands read and write: an output is replaced whole or not at all, a mistake is one line.

An output is written beside its path and renamed, so that a kill, a full disk or a failing command leaves the old file.
"""

import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from ralign.engine.runtime.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_MAX_NAME_BYTES = 120  # of a file name; file systems allow 255, and suffixes come after


@contextmanager
def mistakes(action: str, path: str | Path) -> Iterator[None]:
    """Turn an OSError into a UserError: `cannot ACTION PATH: REASON`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot {action} {path}: {error.strerror or error}") from error


def check_input(path: str | Path) -> Path:
    """The path of a regular file.

    Raises:
        UserError: there is none; devices and pipes are refused, since they may never end.
    """
    path = Path(path)
    with mistakes("read", path):
        mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise UserError(f"cannot read {path}: it is a folder")
    if not stat.S_ISREG(mode):
        raise UserError(f"cannot read {path}: it is not a regular file")
    return path


def read_json_object(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: it cannot be read, is cut off, or is other JSON.
    """
    path = check_input(path)
    try:
        with mistakes("read", path):
            content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def check_output(path: str | Path, inputs: Iterable[str | Path] = ()) -> Path:
    """The path of a file that does not exist yet, or of a regular file that is none of `inputs`.

    Raises:
        UserError: it is an input, a folder, or a special file such as a device.
    """
    path = Path(path)
    with mistakes("write", path):
        is_there = path.exists()
        if is_there and path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder")
        if is_there and not path.is_file():
            raise UserError(f"cannot write {path}: it is not a regular file")
        for source in inputs:
            if is_there and Path(source).exists() and os.path.samefile(path, source):
                raise UserError(f"cannot write {path}: it is also an input")
    if path.name in ("", ".", ".."):
        raise UserError(f"cannot write {path}: it is a folder")
    _check_parents(path)
    return path


def check_output_folder(path: str | Path) -> Path:
    """The path of a folder, or of one that can be made.

    Raises:
        UserError: it, or a folder above it, is a file.
    """
    path = Path(path)
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f"cannot write into {path}: it is not a folder")
    _check_parents(path)
    return path


def _check_parents(path: Path) -> None:
    """Requires that the nearest thing that exists above `path` is a folder."""
    above = next((parent for parent in path.parents if os.path.lexists(parent)), None)
    if above is not None and not above.is_dir():
        raise UserError(f"cannot write {path}: {above} is not a folder")


@contextmanager
def drafting(path: str | Path) -> Iterator[Path]:
    """A path beside `path`, whose parents are made; a file that the block writes there takes the place of `path`.

    Raises:
        UserError: it cannot be written, also for an OSError of the block; then `path` is as it was.
    """
    path = check_output(path)
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    with mistakes("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            if path.exists():
                draft.chmod(stat.S_IMODE(path.stat().st_mode))
            os.replace(draft, path)
        finally:
            with suppress(FileNotFoundError):
                draft.unlink()


@contextmanager
def replacing(path: str | Path) -> Iterator[TextIO]:
    """A UTF-8 text file that takes the place of `path` as in `drafting`, when the block ends without an error.

    A lone surrogate is written as its escape `\\udXXX`, which JSON reads as the same character.
    """
    with (
        drafting(path) as draft,
        draft.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
    ):
        yield file


def write_text(path: str | Path, text: str) -> None:
    """Write a whole text file as `replacing` does."""
    with replacing(path) as file:
        file.write(text)


def file_name(text: str) -> str:
    """A file name for any text; different texts have different names.

    Characters other than ASCII letters, digits, `-`, `_`, `~` and `.` are percent-encoded, a leading dot too. A name
    that would be too long ends in a hash.
    """
    name = quote(text.encode("utf-8", "surrogatepass"), safe="")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if not name:
        return "%"
    if len(name) > _MAX_NAME_BYTES:
        digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{name[: _MAX_NAME_BYTES - 34]}%%{digest[:32]}"
    return name


def is_full(error: BaseException) -> bool:
    """Whether the disk, or the user's share of it, is full."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(
        f"(os error {number})" in str(error) for number in _FULL
    )  # of a library in Rust, as safetensors
