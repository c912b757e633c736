"""An append-only file of lines that survives kills and full disks and is written by one process at a time."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import check_output, mistakes


class LineLog:
    """A file of lines. `add` hands each line to the operating system before it returns.

    A last line that a kill cut short is ignored, and overwritten by the next `add`. The file is locked until `close`,
    or until the process ends.
    """

    def __init__(self, path: str | Path) -> None:
        """Open or create the file.

        Raises:
            UserError: it is not a regular file, cannot be written, or another process has locked it.
        """
        self._path = check_output(path)
        self._size_bytes: int | None = None  # of the whole lines; None: not known yet
        with mistakes("write", path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open(
                "a+b", buffering=0
            )  # no buffer: a line is written when `add` returns
        try:
            with mistakes("lock", path):
                self._lock()
        except UserError:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self._path} is in use by another process") from None

    def lines(self) -> list[bytes]:
        """All whole lines, without line ends.

        Raises:
            UserError: the file cannot be read.
        """
        with mistakes("read", self._path):
            self._file.seek(0)
            return self._file.read().split(b"\n")[:-1]

    def add(self, line: bytes) -> None:
        """Append one line, given without its line end.

        Raises:
            UserError: it cannot be written, for example on a full disk; the file then has the lines before it.
        """
        if self._size_bytes is None:
            self._size_bytes = sum(len(line) + 1 for line in self.lines())
            with mistakes("write", self._path):
                self._file.truncate(self._size_bytes)
        rest = memoryview(line + b"\n")
        size_bytes = self._size_bytes + len(rest)
        try:
            with mistakes("write", self._path):
                while rest:  # a disk that gets full may take a part
                    rest = rest[self._file.write(rest) :]
        except UserError:
            with suppress(OSError):
                self._file.truncate(self._size_bytes)
            self._size_bytes = None
            raise
        self._size_bytes = size_bytes

    def close(self) -> None:
        """Write the file to the disk and unlock it.

        Raises:
            UserError: the disk did not take it; the file is unlocked all the same.
        """
        try:
            with mistakes("write", self._path):
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
