"""An append-only file of lines that survives kills and is written by one process at a time."""

import fcntl
import os
from pathlib import Path

from ralign.engine.runtime.errors import UserError


class LineLog:
    """A file of lines. `add` hands each line to the operating system before it returns.

    A last line that a kill cut short is ignored, and overwritten by the next `add`. The file is locked until `close`,
    or until the process ends.
    """

    def __init__(self, path: str | Path) -> None:
        """Open or create the file.

        Raises:
            UserError: the file cannot be written, or another process has locked it.
        """
        path = Path(path)
        self._ends_whole = False  # checked: the file does not end in the middle of a line
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(f"{path} is in use by another process") from None

    def lines(self) -> list[bytes]:
        """All whole lines, without line ends."""
        self._file.seek(0)
        return self._file.read().split(b"\n")[:-1]

    def add(self, line: bytes) -> None:
        """Append one line, given without its line end."""
        if not self._ends_whole:
            self._file.truncate(sum(len(line) + 1 for line in self.lines()))
            self._ends_whole = True
        self._file.write(line + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Write the file to the disk and unlock it."""
        os.fsync(self._file.fileno())
        self._file.close()
