"""SIGTERM asks a run to stop: it finishes its step, saves a checkpoint, and exits with status 0."""

import signal
from types import FrameType


class StopSignal:
    """Remembers that SIGTERM (or SIGUSR1, which batch systems send ahead of a limit) arrived."""

    def __init__(self) -> None:
        """Take the signals over; call it in the main thread."""
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


class Stopped(SystemExit):
    """Raised when a run was asked to stop and has saved its checkpoint; ends the process with status 0."""

    def __init__(self) -> None:
        super().__init__(0)
