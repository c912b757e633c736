"""The main function of every command: a user's mistake ends in one line and exit status 2."""

import io
import json
import os
import resource
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from ralign.engine.runtime import extras, output
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import is_full
from ralign.engine.runtime.text import printable

Main = Callable[[list[str]], None]
LEAST_MIB = 256  # of address space for Python, numpy and matplotlib, which need about 190

# A mistake that all processes find is reported by the first one of each node. A process that is still alone with its
# mistake after this time reports it itself. torchrun ends all processes as soon as one has failed.
_GRACE_S = 3.0
_POLL_S = 0.1
_LEAVE_S = 0.5  # for the others to leave: torchrun lists each process that it has to end as a failure


def run_main(main: Main, argv: Sequence[str] | None = None, *, least_mib: int = LEAST_MIB) -> None:
    """Call `main` with the command line; a UserError becomes one line on stderr and exit status 2.

    So do a full disk, a lack of memory, and a limit on the address space (`ulimit -v`) of less than `least_mib`. Ctrl-C
    becomes one line and status 130, a reader of the output that has left (`| head`) status 141. Any other exception is
    a bug and keeps its traceback.
    """

    def with_room(argv: list[str]) -> None:
        _check_address_space(least_mib)
        main(argv)

    try:
        _call(with_room, argv)
    except KeyboardInterrupt:
        print("interrupted", file=output.stderr(), flush=True)
        sys.exit(130)
    except MemoryError as error:
        _report_mistake(f"not enough memory: {error}" if str(error) else "not enough memory")
    except BrokenPipeError:
        if not (left := _streams_without_reader()):
            raise
        for stream in left:  # what is still in the buffer goes nowhere, at exit too
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(141)


def _check_address_space(least_mib: int) -> None:
    """Requires room for numpy, which `main` may import later.

    numpy's OpenBLAS allocates 32 MiB at its first product, which numpy's import makes, and tries again forever where
    that fails (blas_memory_alloc, OpenBLAS 0.3). Each of its threads takes more address space.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    if limit < least_mib << 20:
        raise UserError(
            f"the address space is limited to {limit >> 20} MiB (ulimit -v): at least {least_mib} MiB are needed"
        )
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _call(main: Main, argv: Sequence[str] | None) -> None:
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # what they cannot encode, such as "…" in the locale C, is escaped
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with extras.named_when_missing():
            main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # at exit, a full disk or a closed pipe would be a traceback
    except UserError as error:
        _report_mistake(str(error))
    except Exception as error:  # of every library that writes files
        if not is_full(error):
            raise
        is_os = isinstance(error, OSError)
        _report_mistake(f"{error.filename or 'output'}: {error.strerror}" if is_os else f"output: {error}")


def _streams_without_reader() -> list[io.TextIOWrapper]:
    """Those of stdout and stderr that are pipes whose other end is closed."""
    left = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLOUT)
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                left.append(stream)
    return left


def run_job(main: Main, argv: Sequence[str] | None = None) -> None:
    """Call `main` for a job, whose terminal shows ralign's own lines only (see output.py).

    A UserError ends as in `run_main`; an interrupt and a lack of memory leave their traceback in the log.
    """

    def captured(argv: list[str]) -> None:
        if {"-h", "--help"}.isdisjoint(argv):  # the help is printed by a package
            output.capture(rank())
            sys.excepthook = _report_bug
            threading.excepthook = _show_thread_exception
        main(argv)

    try:
        _call(captured, argv)
    finally:
        output.finish()


def rank() -> int:
    """This process's rank in the job that torchrun started; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def _report_mistake(message: str) -> NoReturn:
    """One process of a node reports; the others leave with status 0, so that torchrun has no failure to list."""
    message = printable(" ".join(message.split()))
    claim = _claim_file()
    if rank() and (claim is None or int(os.environ["LOCAL_RANK"])):
        _wait(claim)
    if claim is not None and not _create(claim):
        output.discard()
        sys.exit(0)
    output.finish()
    line = f"error (rank {rank()}): {message}" if rank() else f"error: {message}"
    print(line, file=output.stderr(), flush=True)
    _write_error_file(line)
    if claim is not None:
        time.sleep(_LEAVE_S)
    sys.exit(2)


def _claim_file() -> Path | None:
    """The file that the reporting process of a node creates; None without torchrun."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # ATTEMPT/LOCAL_RANK/error.json
    return None if error_file is None else Path(error_file).parents[1] / "ralign_mistake"


def _wait(claim: Path | None) -> None:
    """Give the first process of the node time to find the same mistake."""
    if claim is None:
        time.sleep(_GRACE_S)
        return
    end_s = time.monotonic() + _GRACE_S
    while time.monotonic() < end_s and not claim.exists():
        time.sleep(_POLL_S)


def _create(file: Path) -> bool:
    """Whether this process is the one that created the file."""
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In place of `sys.excepthook`: the traceback goes to the terminal and, after what led to it, to the log."""
    if isinstance(error, KeyboardInterrupt):
        traceback.print_exception(kind, error, trace)
        if rank() == 0:
            print("interrupted", file=output.stderr(), flush=True)
        return
    _show_exception(kind, error, trace)
    _write_error_file("".join(traceback.format_exception_only(kind, error)).strip())


def _show_thread_exception(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:  # which ends a thread and means nothing else
        _show_exception(args.exc_type, args.exc_value, args.exc_traceback)


def _show_exception(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        text = f"rank {rank()}: {text}"
    for stream in dict.fromkeys((output.stderr(), sys.stderr)):  # one stream if nothing is captured
        stream.write(text)  # in one piece: ranks share the terminal
        stream.flush()


def _write_error_file(message: str) -> None:
    """Give torchrun the message for the summary that it prints last. Read in torch 2.11 and 2.13."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        reply = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(path).write_text(json.dumps({"message": reply}))
