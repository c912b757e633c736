"""Keeps ralign's own lines on the terminal and sends the output of all other packages to a log file.

torch, Megatron-core and vLLM write warnings, log lines and progress bars to stdout and stderr, from Python and from
C++. `capture` redirects file descriptors 1 and 2 of this process, and thereby those of its children, to a file, which
`move_log` moves to the run's folder. ralign writes to the original stdout and stderr by `show`, `stdout` and `stderr`.

Without `capture` nothing is redirected: so it is in the light commands, in tests, and with RALIGN_OUTPUT=all.
"""

import errno
import faulthandler
import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ralign.engine.runtime.errors import UserError

VARIABLE = "RALIGN_OUTPUT"  # own (the default) or all


@dataclass(kw_only=True)
class _Capture:
    stdout: TextIO  # the original streams
    stderr: TextIO
    rank: int
    log: Path
    is_final: bool = False  # the log stays where it is


_capture: _Capture | None = None


def capture(rank: int) -> None:
    """Send all output except ralign's own to a temporary file, until the process ends.

    Raises:
        UserError: RALIGN_OUTPUT is neither `own` nor `all`.
    """
    global _capture
    mode = os.environ.get(VARIABLE, "own")
    if mode not in ("own", "all"):
        raise UserError(f"{VARIABLE}={mode}: expected own or all")
    if mode == "all":
        return
    assert _capture is None, "the output is captured already"
    descriptor, path = tempfile.mkstemp(prefix=f"ralign-rank{rank:05d}-", suffix=".txt")
    _capture = _Capture(stdout=_copy(sys.stdout, 1), stderr=_copy(sys.stderr, 2), rank=rank, log=Path(path))
    for stream in (sys.stdout, sys.stderr):  # line by line, so that a kill loses nothing
        stream.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    _redirect(descriptor)
    os.close(descriptor)
    faulthandler.enable(_capture.stderr)  # a fatal signal leaves the Python stacks on the terminal
    own_warnings = logging.StreamHandler(_capture.stderr)
    own_warnings.setLevel(logging.WARNING)
    logging.getLogger("ralign").addHandler(own_warnings)


def move_log(path: Path) -> None:
    """Append the temporary log to the file `path` and go on there; rank 0 names it on the terminal.

    Does nothing without `capture`. Call it before this process starts others: they would keep the temporary file.
    """
    if _capture is None:
        return
    assert not _capture.is_final, f"the log is {_capture.log} already"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        _redirect(log.fileno())
        log.write(_capture.log.read_bytes())
    _capture.log.unlink()
    _capture.log = path
    faulthandler.enable(_capture.stderr)  # again: a package may have enabled it for descriptor 2
    if _capture.rank == 0:
        _name(path)
    _capture.is_final = True


def finish() -> None:
    """Name the temporary log on the terminal if the process ends before `move_log`; an empty one is removed."""
    if _capture is None or _capture.is_final:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if _capture.log.stat().st_size:
        _name(_capture.log)
    else:
        _capture.log.unlink()
    _capture.is_final = True


def discard() -> None:
    """Remove the temporary log of a rank whose mistake another rank has reported."""
    if _capture is not None and not _capture.is_final:
        _capture.log.unlink()
        _capture.is_final = True


def is_captured() -> bool:
    return _capture is not None


def stdout() -> TextIO:
    """ralign's stream for results."""
    return sys.stdout if _capture is None else _capture.stdout


def stderr() -> TextIO:
    """ralign's stream for progress and errors."""
    return sys.stderr if _capture is None else _capture.stderr


def show(text: str) -> None:
    """Print a result on the terminal."""
    print(text, file=stdout(), flush=True)


def _name(log: Path) -> None:
    print(f"Output of other packages: {log}", file=stderr(), flush=True)


def _copy(stream: TextIO, descriptor: int) -> TextIO:
    """A stream to what `descriptor` refers to now; it is not inherited by programs that this process starts."""
    stream.flush()
    return _Terminal(
        open(os.dup(descriptor), "wb"), encoding=stream.encoding, errors=stream.errors, line_buffering=True
    )


class _Terminal(io.TextIOWrapper):
    """A stream that goes on in the log, descriptor 1, once its terminal or pipe is gone, which must not end the run."""

    def write(self, text: str) -> int:
        with self._or_log():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._or_log():
            super().flush()

    @contextmanager
    def _or_log(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            os.dup2(1, self.fileno(), inheritable=False)  # what could not be written is still in the buffer


def _redirect(descriptor: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
