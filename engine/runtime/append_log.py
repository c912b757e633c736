"""Lines that are kept as they come, by one process at a time: what was done before a kill is not done again."""

import fcntl
import os
from pathlib import Path

from ralign.engine.runtime.errors import UserError


class LineLog:
    """A file of lines, each on its way to the disk as soon as `add` returns.

    A last line that a kill cut off is not among them, and the next one takes its place. The file is locked until
    `close`, or until the process ends in whatever way.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens the file, or makes it. Raises UserError if it cannot be written, or another process has it."""
        path = Path(path)
        self._is_whole = False  # no remains of a cut line at the end
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
        """All whole lines, without their ends."""
        self._file.seek(0)
        return self._file.read().split(b"\n")[:-1]

    def add(self, line: bytes) -> None:
        """Keeps one more line, given without its end."""
        if not self._is_whole:
            self._file.truncate(sum(len(line) + 1 for line in self.lines()))
            self._is_whole = True
        self._file.write(line + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Waits for the disk, and lets others have the file."""
        os.fsync(self._file.fileno())
        self._file.close()
