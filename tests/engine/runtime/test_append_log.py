"""Lines survive kills; one process at a time has the file."""

import subprocess
import sys

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
