import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.folder_lock import FolderLock

HOLD = (
    "import sys, time; from ralign.engine.runtime.folder_lock import FolderLock; lock = FolderLock(sys.argv[1]);"
    " print('locked', flush=True); time.sleep(60)"
)


@pytest.fixture
def owner(tmp_path):
    """Another process that owns tmp_path/run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_learns_whose_the_folder_is(tmp_path, owner):
    with pytest.raises(
        UserError, match=rf"run is in use by process {owner.pid} on {os.uname().nodename} since 20"
    ):
        FolderLock(tmp_path / "run")


def test_a_killed_owner_leaves_the_folder_free(tmp_path, owner):
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    FolderLock(tmp_path / "run").release()


def test_a_released_folder_can_be_locked_again_and_renamed_meanwhile(tmp_path):
    first = FolderLock(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run").rename(tmp_path / "run.1")
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} "):
        FolderLock(tmp_path / "run")
    first.release()
    FolderLock(tmp_path / "run").release()


def test_folders_of_other_names_are_independent(tmp_path):
    locks = [FolderLock(tmp_path / name) for name in ("run", "run.1", "other")]
    for lock in locks:
        lock.release()


def test_a_folder_that_cannot_be_locked_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot lock .*file/run: "):
        FolderLock(tmp_path / "file" / "run")


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    FolderLock(tmp_path / "run").release()
    assert "its file system has no locks" in caplog.text
