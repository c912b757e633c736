"""How mistakes end: one line a node and status 2, whatever the order in which processes find them."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

MISTAKE = """
import sys
from ralign.engine.runtime import entry_point, output
from ralign.engine.runtime.errors import UserError

def main(argv):
    print("started", file=output.stdout(), flush=True)
    if argv[0] == "yes":
        raise UserError("no such file")

entry_point._GRACE_S = float(sys.argv[2])
entry_point.run_job(main)
"""


def start(
    folder: Path, rank: int, *, local_rank: int | None = None, wrong: bool = True, grace_s: float = 60.0
):
    """A process as torchrun starts it."""
    local_rank = rank if local_rank is None else local_rank
    error_file = folder / "attempt_0" / str(local_rank) / "error.json"
    error_file.parent.mkdir(parents=True, exist_ok=True)
    env = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": 16, "TORCHELASTIC_ERROR_FILE": error_file}
    return subprocess.Popen(
        [sys.executable, "-c", MISTAKE, "yes" if wrong else "no", str(grace_s)],
        env={**os.environ, **{name: str(value) for name, value in env.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen) -> tuple[int, str]:
    _, errors = process.communicate(timeout=240)
    return process.returncode, errors


@pytest.mark.parametrize("first", [0, 1])
def test_a_mistake_that_all_ranks_find_is_reported_once(tmp_path, first):
    """The other ranks leave with status 0, so that torchrun lists one failure."""
    earlier = start(tmp_path, first)
    assert earlier.stdout.readline() == "started\n"
    later = start(tmp_path, 1 - first)
    rank_0, rank_1 = (earlier, later) if first == 0 else (later, earlier)
    assert end(rank_0) == (2, "error: no such file\n")
    assert end(rank_1) == (0, "")


def test_a_mistake_of_one_rank_is_reported_by_it(tmp_path):
    right, wrong = start(tmp_path, 0, wrong=False), start(tmp_path, 1, grace_s=0.1)
    assert end(right) == (0, "") and end(wrong) == (2, "error (rank 1): no such file\n")


def test_each_node_reports(tmp_path):
    ranks = [start(tmp_path, 8, local_rank=0), start(tmp_path, 9, local_rank=1)]
    assert [end(rank) for rank in ranks] == [(2, "error (rank 8): no such file\n"), (0, "")]


def test_torchrun_gets_the_message_for_its_summary(tmp_path):
    assert end(start(tmp_path, 0))[0] == 2
    reply = json.loads((tmp_path / "attempt_0" / "0" / "error.json").read_text())["message"]
    assert reply["message"] == "error: no such file" and int(reply["extraInfo"]["timestamp"])


def command(body: str, **options) -> subprocess.CompletedProcess:
    """A command whose main function has this body, run in its own process."""
    lines = ["import os, signal, sys, numpy as np", "from ralign.engine.runtime.entry_point import run_main"]
    lines += ["from ralign.engine.runtime.errors import UserError", "def main(argv):"]
    lines.insert(
        1, "signal.signal(signal.SIGINT, signal.default_int_handler)"
    )  # in the background it is ignored
    lines += [f"    {line}" for line in body.splitlines()] + ["run_main(main, [])"]
    program = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(program, **{"capture_output": True, "text": True, "timeout": 120, **options})


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "interrupted"),
        ("np.empty(10**15)", 2, "error: not enough memory: Unable to allocate 7.11 PiB for an array"),
        ("raise MemoryError", 2, "error: not enough memory"),
        ("raise OSError(28, 'No space left on device', 'a/b')", 2, "error: a/b: No space left on device"),
        ("raise RuntimeError('I/O error: no space (os error 28)')", 2, "error: output: I/O error: no space"),
        (
            "with open('/dev/full', 'w') as file: file.write('x')",
            2,
            "error: output: No space left on device",
        ),
        (r"raise UserError('\x1b[2J\x07 two\nlines \udc80')", 2, r"error: \x1b[2J\x07 two lines \udc80"),
    ],
)
def test_what_is_no_bug_ends_in_one_line(body, status, line):
    done = command(body)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1)
    assert done.stderr.startswith(line)


@pytest.mark.parametrize("error", ["OSError(2, 'no such file')", "BrokenPipeError(32, 'of a socket')"])
def test_a_bug_keeps_its_traceback(error):
    done = command(f"raise {error}")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_full_disk_under_the_output_is_one_line():
    with open("/dev/full", "w") as full:
        done = command("print('x')", stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert (done.returncode, done.stderr) == (2, "error: output: No space left on device\n")


@pytest.mark.parametrize("size", [1, 10**6])
def test_a_reader_that_has_left_ends_the_command_in_silence(size):
    reader, writer = os.pipe()
    os.close(reader)
    done = command(f"print('x' * {size})", stdout=writer, stderr=subprocess.PIPE, capture_output=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def limited_to(mib: int, body: str, **options) -> subprocess.CompletedProcess:
    """A light command, which imports numpy in `main`, under `ulimit -v`."""
    lines = ["import os, sys", "from ralign.engine.runtime.entry_point import run_main", "def main(argv):"]
    lines += [f"    {line}" for line in body.splitlines()] + ["run_main(main, [])"]
    program = shlex.join([sys.executable, "-c", "\n".join(lines)])
    command = ["bash", "-c", f"ulimit -v {mib * 1024}; exec {program}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("mib", [100, 150, 255])
def test_an_address_space_in_which_numpy_would_spin_is_refused(mib):
    done = limited_to(mib, "import numpy")
    message = f"error: the address space is limited to {mib} MiB (ulimit -v): at least 256 MiB are needed\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_in_a_limited_address_space_numpy_has_one_thread():
    body = "import numpy\nprint(os.environ['OPENBLAS_NUM_THREADS'])"
    env = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    assert limited_to(256, body, env=env).stdout == "1\n"
    assert limited_to(1024, body, env={**env, "OPENBLAS_NUM_THREADS": "2"}).stdout == "2\n"
    assert "OPENBLAS_NUM_THREADS" not in command("print(*os.environ)", env=env).stdout


def test_what_the_terminal_cannot_encode_is_escaped():
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    env.pop("PYTHONIOENCODING", None)
    done = command(r"print('a \u2026 \udcff'); raise UserError('\u2013')", env=env)
    assert (done.returncode, done.stdout, done.stderr) == (2, "a \\u2026 \\udcff\n", "error: \\u2013\n")
