"""Lines survive kills and full disks; one process at a time has the file."""

import errno
import fcntl
import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
from ralign.engine.runtime.append_log import LineLog
from ralign.engine.runtime.errors import UserError

KILLED = """
import os, signal, sys
from ralign.engine.runtime.append_log import LineLog
log = LineLog(sys.argv[1])
log.add(b"first")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_line_is_in_the_file_when_add_returns(tmp_path):
    path = tmp_path / "folder" / "log"
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], timeout=120).returncode == -9
    log = LineLog(path)
    log.add(b"second")
    assert log.lines() == [b"first", b"second"]


def test_a_line_that_was_cut_short_is_ignored_and_overwritten(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"whole\ncut sho")
    log = LineLog(path)
    assert log.lines() == [b"whole"]
    log.add(b"next")
    log.close()
    assert path.read_bytes() == b"whole\nnext\n"


def test_a_second_process_is_refused_until_the_first_has_closed(tmp_path):
    log = LineLog(tmp_path / "log")
    with pytest.raises(UserError, match="log is in use by another process"):
        LineLog(tmp_path / "log")
    log.close()
    LineLog(tmp_path / "log").close()


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/log: "):
        LineLog(tmp_path / "file" / "log")


@contextmanager
def disk_with(num_bytes):
    """Files of this process cannot grow beyond this size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_one_line_and_the_log_goes_on_after_room_is_made(tmp_path):
    path = tmp_path / "log"
    log = LineLog(path)
    log.add(b"first")
    with disk_with(10):  # takes a part of the line
        with pytest.raises(UserError, match=f"^cannot write {path}: File too large$"):
            log.add(b"second")
        assert path.read_bytes() == b"first\n"
        log.close()
    again = LineLog(path)
    with disk_with(10), pytest.raises(UserError, match="File too large"):
        again.add(b"second")
    again.add(b"second")  # by the same process, too
    again.close()
    assert path.read_bytes() == b"first\nsecond\n"


def test_a_disk_that_is_found_full_at_the_end_is_one_line_and_frees_the_file(tmp_path, monkeypatch):
    log = LineLog(tmp_path / "log")
    log.add(b"first")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="cannot write .*log: No space left on device"):
            log.close()
    LineLog(tmp_path / "log").close()


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        LineLog(tmp_path / "pipe")


def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UserError, match="cannot lock .*log: No locks available"):
        LineLog(tmp_path / "log")
