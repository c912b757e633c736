"""The main function of every command: a user's mistake ends in one line and exit status 2."""

import os
import sys
import time
from collections.abc import Callable, Sequence

from ralign.engine.runtime.errors import UserError

# torchrun ends all processes as soon as one has failed. The others let rank 0 say what is wrong first;
# whoever is still alive after this time failed alone, and speaks for itself.
_GRACE_S = 3.0


def run_main(main: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> None:
    """Calls `main` with the command line; a UserError becomes one line on stderr and exit status 2.

    Everything else is a bug and keeps its traceback.
    """
    try:
        main(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        if own_rank := rank():
            time.sleep(_GRACE_S)
        message = " ".join(str(error).split())
        speaker = f"error (rank {own_rank})" if own_rank else "error"
        print(f"{speaker}: {message}", file=sys.stderr, flush=True)
        sys.exit(2)


def rank() -> int:
    """This process's rank in the job that torchrun started; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))
