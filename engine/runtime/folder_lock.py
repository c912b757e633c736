"""One process at a time owns a folder of results."""

import errno
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path

from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import mistakes

logger = logging.getLogger(__name__)

# Some mounts of network file systems have no locks; a run must be possible there.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


class FolderLock:
    """A lock on a folder until `release`, or until the process ends in any way.

    The lock is a file beside the folder, `.NAME.lock`, so that the folder can be renamed. It names the owner.
    """

    def __init__(self, folder: str | Path) -> None:
        """Lock a folder, which need not exist.

        Raises:
            UserError: another process owns it; the message has its host, process id and start. The file cannot be
                written.
        """
        folder = Path(folder)
        self.path = folder.with_name(f".{folder.name}.lock")
        with mistakes("lock", folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+", encoding="utf-8")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = self._owner()
                self._file.close()
                raise UserError(
                    f"{folder} is in use by {owner}: wait for its end, or give another name="
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                logger.warning("%s: its file system has no locks: start each run once only", folder)
            self._file.truncate(0)
            start = time.strftime("%Y-%m-%d %H:%M:%S")
            json.dump({"host": socket.gethostname(), "pid": os.getpid(), "start": start}, self._file)
            self._file.flush()

    def _owner(self) -> str:
        self._file.seek(0)
        try:
            owner = json.loads(self._file.read())
            return f"process {owner['pid']} on {owner['host']} since {owner['start']}"
        except (ValueError, KeyError, TypeError):  # the owner has not written it yet
            return "another process"

    def release(self) -> None:
        """Give the folder free. The file stays, empty: removing it could let two processes lock two files."""
        self._file.truncate(0)
        self._file.close()
