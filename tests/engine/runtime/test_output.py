"""Jobs that write as other packages do: what reaches the terminal, and what the log holds. No package is needed."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

JOB = """
import ctypes, logging, os, signal, subprocess, sys, threading, time, warnings
from pathlib import Path
from ralign.engine.report.progress import Progress
from ralign.engine.runtime import output
from ralign.engine.runtime.entry_point import run_job
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.signals import StopSignal

def write_as_packages_do(stage):
    warnings.warn(f"{stage} warning")
    logging.getLogger("package").warning("%s log line", stage)
    print(f"{stage} print")
    print(f"{stage} progress bar", end="\\r", file=sys.stderr)
    os.write(1, f"{stage} C++ stdout\\n".encode())
    os.write(2, f"{stage} C++ stderr\\n".encode())
    subprocess.run(["echo", f"{stage} child"], check=True)

def main(argv):
    kind, log = argv
    if kind == "mistake at once":
        raise UserError("unknown setting")
    write_as_packages_do("early")
    logging.getLogger("ralign.engine.data.pairs").warning("a warning of ralign")
    if kind == "mistake":
        raise UserError("no such\\nfile")
    if kind == "early bug":
        raise ZeroDivisionError("an early bug")
    output.move_log(Path(log))
    progress = Progress()
    with progress.stage("rl", "RL", num_steps=1):
        write_as_packages_do("late")
        progress.step()
    if kind == "bug":
        raise ZeroDivisionError("a bug")
    if kind == "thread":
        thread = threading.Thread(target=lambda: [].pop())
        thread.start()
        thread.join()
    if kind == "terminal":
        stop = StopSignal()
        print("started")
        while not stop.requested:
            time.sleep(0.01)
        for number in range(3):
            output.show(f"line {number}")
            progress.say(f"message {number}")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "fault":
        ctypes.string_at(0)
    if kind == "interrupt":
        raise KeyboardInterrupt
    output.show("result 1")

if __name__ == "__main__":
    run_job(main)
"""
WRITTEN = ("warning", "log line", "print", "progress bar", "C++ stdout", "C++ stderr", "child")
EARLY, LATE = (tuple(f"{stage} {what}" for what in WRITTEN) for stage in ("early", "late"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the job as a user would; `log` is what the packages wrote to the run's folder."""
    (tmp_path / "tmp").mkdir()
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_ERROR_FILE", "RALIGN_OUTPUT", "PYTHONUNBUFFERED"):
        monkeypatch.delenv(name, raising=False)

    def run(kind: str, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            command(kind, tmp_path),
            env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), **env},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


def command(kind: str, folder: Path) -> list[str]:
    (folder / "job.py").write_text(JOB)
    return [sys.executable, str(folder / "job.py"), kind, str(folder / "run" / "log" / "rank00000.txt")]


def read_log(folder: Path) -> str:
    assert not list((folder / "tmp").iterdir()), "the temporary log is still there"
    return (folder / "run" / "log" / "rank00000.txt").read_text()


def plain(text: str) -> list[str]:
    """Lines with times taken out."""
    return [re.sub(r"[\d.]+ ?s\b", "_", line) for line in text.splitlines()]


def test_the_terminal_shows_own_lines_and_the_log_all_others(run, tmp_path):
    done = run("success")
    assert done.returncode == 0 and done.stdout == "result 1\n"
    assert plain(done.stderr) == [
        "a warning of ralign",
        f"Output of other packages: {tmp_path}/run/log/rank00000.txt",
        "== RL",
        "  step 1/1: _/step",
        "  done in _",
    ]
    log = read_log(tmp_path)
    assert [text for text in EARLY + LATE if text not in log] == []
    assert log.index(EARLY[-1]) < log.index(LATE[0])


def test_a_later_start_appends_to_the_log(run, tmp_path):
    run("success")
    run("success")
    assert read_log(tmp_path).count("late print") == 2


def test_a_bug_shows_its_traceback_on_the_terminal_and_in_the_log(run, tmp_path):
    done = run("bug")
    assert done.returncode == 1 and done.stdout == ""
    assert "Traceback (most recent call last):" in done.stderr
    assert done.stderr.endswith("ZeroDivisionError: a bug\n")
    log = read_log(tmp_path)
    assert log.rindex("late child") < log.index("ZeroDivisionError: a bug")


def test_a_bug_in_a_thread_shows_its_traceback(run, tmp_path):
    done = run("thread")
    assert "IndexError: pop from empty list" in done.stderr and done.stdout == "result 1\n"
    assert "IndexError: pop from empty list" in read_log(tmp_path)


@pytest.mark.parametrize(
    ("kind", "last"), [("mistake", "error: no such file"), ("early bug", "ZeroDivisionError: an early bug")]
)
def test_a_failure_before_the_run_has_a_folder_names_the_temporary_log(run, tmp_path, kind, last):
    done = run(kind)
    (log,) = (tmp_path / "tmp").iterdir()
    lines = done.stderr.splitlines()
    assert f"Output of other packages: {log}" in lines and lines[-1] == last
    assert [text for text in EARLY if text not in log.read_text()] == []
    assert not any(text in done.stderr for text in EARLY)


def test_a_mistake_found_at_once_is_one_line_and_leaves_no_file(run, tmp_path):
    done = run("mistake at once")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: unknown setting\n")
    assert not list((tmp_path / "tmp").iterdir())


def test_a_kill_loses_nothing(run, tmp_path):
    done = run("kill")
    assert done.returncode == -9 and "  step 1/1" in done.stderr
    log = read_log(tmp_path)
    assert [text for text in EARLY + LATE if text not in log] == []


def test_a_fault_in_native_code_shows_the_python_stack(run):
    done = run("fault")
    assert done.returncode == -11
    assert "Fatal Python error: Segmentation fault" in done.stderr and "job.py" in done.stderr


def test_an_interrupt_is_one_line_on_the_terminal(run, tmp_path):
    done = run("interrupt")
    assert done.returncode == -2 and done.stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in done.stderr and "KeyboardInterrupt" in read_log(tmp_path)


def test_output_all_shows_everything(run, tmp_path):
    done = run("bug", RALIGN_OUTPUT="all")
    shown = done.stdout + done.stderr
    assert [text for text in EARLY + LATE if text not in shown] == []
    assert done.stderr.count("ZeroDivisionError: a bug") == 1
    assert not (tmp_path / "run").exists() and not list((tmp_path / "tmp").iterdir())


def test_a_wrong_output_mode_is_refused(run):
    done = run("success", RALIGN_OUTPUT="none")
    assert done.returncode == 2 and done.stderr == "error: RALIGN_OUTPUT=none: expected own or all\n"


def test_a_bar_on_a_terminal_stays_free_of_other_output(run, tmp_path):
    """rich prints what others write while a bar is shown, on the terminal."""
    ours, theirs = pty.openpty()
    job = subprocess.Popen(
        command("success", tmp_path),
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while part := _read(ours):
        shown += part
    os.close(ours)
    assert job.wait(timeout=240) == 0 and b"1/1" in shown and b"\x1b" in shown
    assert not any(text.encode() in shown for text in EARLY + LATE), shown
    assert "late print" in read_log(tmp_path)


def test_a_closed_terminal_asks_to_stop_and_loses_no_line(tmp_path):
    """SIGHUP is what a shell's end sends; every later write to the terminal fails."""
    (tmp_path / "tmp").mkdir()
    ours, theirs = pty.openpty()
    log = tmp_path / "run" / "log" / "rank00000.txt"
    job = subprocess.Popen(
        command("terminal", tmp_path),
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    end_s = time.monotonic() + 120
    while not (log.exists() and "started" in log.read_text()):
        assert time.monotonic() < end_s
        time.sleep(0.05)
    os.close(ours)
    job.send_signal(signal.SIGHUP)
    assert job.wait(timeout=60) == 0
    written = read_log(tmp_path)
    for number in range(3):
        assert f"line {number}" in written and f"message {number}" in written
    assert "result 1" in written and "Traceback" not in written


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # on Linux: nothing has the other end open
        return b""
