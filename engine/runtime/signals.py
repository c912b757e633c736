"""A request to stop: the run finishes its step, saves a checkpoint, and exits with status 0."""

import signal
from types import FrameType


class StopSignal:
    """Records SIGTERM, SIGUSR1, which batch systems send before a time limit, and SIGHUP of a closed terminal.

    Attributes:
        requested: whether one of them has arrived.
    """

    def __init__(self) -> None:
        """Install the signal handlers; call it in the main thread."""
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


class Stopped(SystemExit):
    """Raised after a stopped run has saved its checkpoint; ends the process with status 0."""

    def __init__(self) -> None:
        super().__init__(0)
