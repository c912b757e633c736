"""torchrun without its own log lines and traceback: a failed job ends with what its processes reported.

    python -m ralign.engine.runtime.launch --standalone --nproc-per-node 2 recipes/r_align_mini.py num_steps=5

Takes torchrun's arguments. The exit status is that of the process that failed first (2 after a user's mistake), or 128
plus the number of the signal that ended that process, or the launcher itself. Read in torch 2.11 and 2.13.
"""

import logging
import signal
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure


def main(argv: list[str]) -> int:
    """Run the job to its end; returns the exit status."""
    logging.disable(logging.ERROR)  # in this process only
    try:
        run.run(run.parse_args(argv))
    except ChildFailedError as error:
        return _status(*error.get_first_failure())
    except SignalException as error:
        return 128 + error.sigval
    except KeyboardInterrupt:  # before the processes are started
        return 128 + signal.SIGINT
    return 0


def _status(rank: int, failure: ProcessFailure) -> int:
    has_reported = isinstance(failure.message, dict)  # by an error file; see entry_point.py
    if failure.exitcode < 0:
        print(f"error: rank {rank} was ended by {failure.signal_name()}", file=sys.stderr)
        return 128 - failure.exitcode
    if not has_reported:
        print(f"error: rank {rank} ended with exit status {failure.exitcode}", file=sys.stderr)
    return failure.exitcode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
