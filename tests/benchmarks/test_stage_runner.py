"""Stages run, fail, hang and resume; figures meet their limits or miss them; stages here are one line of Python."""

import json
import math
import sys
import time

import pytest
from stage_runner import Outcome, Record, Row, Stage, last_words, missing, run_all, run_stage, table

MACHINE = {"device": "NVIDIA H200", "torch": "2.13.0"}


def stage(name="one", code="", **options) -> Stage:
    """Runs `code`, which finds the stage's folder in `folder`; its result is the number in folder/value."""

    def command(folder):
        return [
            sys.executable,
            "-c",
            f"import pathlib, sys, time\nfolder = pathlib.Path({str(folder)!r})\n{code}",
        ]

    def read(folder):
        return [Row(name="answer", value=float((folder / "value").read_text()), at_most=42)]

    return Stage(
        **{"name": name, "title": name, "limit_s": 30, "needs": (), "command": command, "read": read}
        | options
    )


def write(value) -> str:
    return f"(folder / 'value').write_text('{value}')"


@pytest.mark.parametrize(
    ("value", "limits", "limit", "verdict"),
    [
        (1.0, {}, "", ""),
        (0.015, {"at_most": 0.015}, "<= 0.015", "met"),
        (0.0151, {"at_most": 0.015}, "<= 0.015", "MISSED"),
        (1, {"at_least": 1}, ">= 1", "met"),
        (0, {"at_least": 1}, ">= 1", "MISSED"),
        (0.9, {"at_least": 0.9, "at_most": 1.1}, "0.9 to 1.1", "met"),
        (1.11, {"at_least": 0.9, "at_most": 1.1}, "0.9 to 1.1", "MISSED"),
        (math.nan, {"at_most": 1.0}, "<= 1", "MISSED"),
        (math.nan, {"at_least": 1.0}, ">= 1", "MISSED"),
        (math.nan, {}, "", ""),
        (0, {"at_most": 0}, "<= 0", "met"),
    ],
)
def test_a_figure_meets_its_limits_or_misses_them(value, limits, limit, verdict):
    row = Row(name="x", value=value, **limits)
    assert (row.limit, row.verdict) == (limit, verdict)
    assert Outcome(status="done", rows=[row]).is_good == (verdict != "MISSED")
    assert not Outcome(status="failed", rows=[row]).is_good


def test_a_stage_gives_its_figures_and_keeps_its_output(tmp_path):
    outcome = run_stage(stage(code="print('hello'); " + write(41)), tmp_path / "one")
    assert outcome.status == "done" and outcome.is_good and outcome.rows[0].value == 41
    assert outcome.elapsed_s > 0 and (tmp_path / "one" / "log").read_text() == "hello\n"


def test_what_an_earlier_run_left_is_no_result(tmp_path):
    run_stage(stage(code=write(41)), tmp_path / "one")
    outcome = run_stage(stage(code="print('did nothing')"), tmp_path / "one")
    assert (outcome.status, outcome.rows) == ("failed", [])
    assert outcome.reason == "exit status 0, no result (FileNotFoundError): did nothing"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "raise RuntimeError('CUDA error: misaligned address')",
            "exit status 1: RuntimeError: CUDA error: misaligned",
        ),
        ("sys.exit(3)", "exit status 3: it said nothing"),
        ("import os; os.abort()", "exit status -6"),
        (write("forty"), "exit status 0, no result (ValueError): it said nothing"),
    ],
)
def test_a_stage_that_fails_says_why(tmp_path, code, reason):
    outcome = run_stage(stage(code=code), tmp_path / "one")
    assert outcome.status == "failed" and outcome.reason.startswith(reason)


def test_an_exit_status_may_be_a_result(tmp_path):
    outcome = run_stage(stage(code=write(43) + "; sys.exit(1)", exit_statuses=(0, 1)), tmp_path / "one")
    assert outcome.status == "done" and not outcome.is_good


def test_a_stage_that_hangs_is_ended_with_what_it_started(tmp_path):
    """The child ignores a polite end, as a collective that waits does."""
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    child += "print('up', flush=True); time.sleep(60)"
    code = (
        "import subprocess\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "(folder / 'pid').write_text(str(child.pid))\n"
        "time.sleep(60)"
    )
    start = time.monotonic()
    outcome = run_stage(stage(code=code, limit_s=8), tmp_path / "one")
    assert (outcome.status, outcome.reason) == ("failed", "stopped after 8 s")
    assert time.monotonic() - start < 30
    psutil = pytest.importorskip("psutil")
    pid = int((tmp_path / "one" / "pid").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.05)


def test_a_stage_gets_no_more_time_than_is_left(tmp_path):
    outcome = run_stage(stage(code="time.sleep(60)"), tmp_path / "one", left_s=1)
    assert (outcome.status, outcome.reason) == ("no time left", "stopped after 1 s")


def test_a_stage_without_its_packages_is_not_started(tmp_path):
    absent = stage(code=write(1), needs=("json", "no_such_package", "no_such.part", "json.no_such"))
    outcome = run_stage(absent, tmp_path / "one")
    assert (
        outcome.status == "not installed" and outcome.reason == "no_such_package, no_such.part, json.no_such"
    )
    assert not (tmp_path / "one").exists()
    assert missing(("json", "json.decoder")) == []


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("a\nb\n\n", "b"),
        ("", "it said nothing"),
        (
            "Traceback\n  x\ntorch.OutOfMemoryError: CUDA out of memory\nbye\n",
            "torch.OutOfMemoryError: CUDA out of memory",
        ),
        (
            "[rank0]: ValueError: 7\ntorch.distributed.elastic.errors.ChildFailedError:\n===\nFAILED\n===",
            "[rank0]: ValueError: 7",
        ),
        (
            "error: parallel.tensor=3 does not divide\nE1129 failed (exitcode: 2)\n",
            "error: parallel.tensor=3 does not divide",
        ),
    ],
)
def test_the_reason_is_the_last_error_that_was_named(log, words):
    assert last_words(log) == words


@pytest.fixture
def run(tmp_path):
    """`run_all` with outcomes given by name; returns (names of what ran, record, what was said)."""

    def run_all_of(outcomes: dict[str, Outcome], minutes=10.0, machine=MACHINE):
        record, ran, said = Record(tmp_path / "state.json", machine), [], []

        def run_one(stage, folder, left_s):
            ran.append(stage.name)
            return outcomes[stage.name]

        stages = [stage(name) for name in outcomes]
        run_all(stages, record, tmp_path, minutes=minutes, run=run_one, say=said.append)
        return ran, record, said

    return run_all_of


GOOD = Outcome(status="done", elapsed_s=2.0, rows=[Row(name="x", value=1.0, at_most=2.0)])
MISSED = Outcome(status="done", elapsed_s=3.0, rows=[Row(name="y", value=3.0, at_most=2.0, note="why")])
FAILED = Outcome(status="failed", elapsed_s=4.0, reason="exit status 1: RuntimeError: no")
ABSENT = Outcome(status="not installed", reason="vllm")


def test_the_next_stage_runs_whatever_came_of_the_last(run):
    ran, record, said = run({"a": FAILED, "b": ABSENT, "c": MISSED, "d": GOOD})
    assert ran == ["a", "b", "c", "d"]
    assert [record.is_good(name) for name in "abcd"] == [False, False, False, True]
    assert "1/4 a: failed after 4 s: exit status 1: RuntimeError: no" in said


def test_what_is_done_is_not_repeated_and_the_rest_is(run):
    run({"a": GOOD, "b": FAILED, "c": ABSENT, "d": MISSED})
    ran, record, said = run({"a": FAILED, "b": GOOD, "c": GOOD, "d": FAILED})
    assert ran == ["b", "c"] and "1/4 a: done before" in said
    assert record.outcomes["a"] == GOOD and record.outcomes["d"] == MISSED and record.is_good("c")


def test_an_interrupted_run_goes_on_from_the_file(run, tmp_path):
    run({"a": GOOD})
    ran, _, _ = run({"a": GOOD, "b": GOOD})
    assert ran == ["b"]
    assert list(json.loads((tmp_path / "state.json").read_text())["stages"]) == ["a", "b"]


def test_a_stage_is_done_anew_when_it_is_forgotten(tmp_path, run):
    _, record, _ = run({"a": GOOD, "b": GOOD})
    record.forget([stage("a"), stage("never ran")])
    assert record.is_done("b") and not record.is_done("a")


def test_another_machine_starts_afresh_and_the_first_ones_results_are_kept(run, tmp_path):
    run({"a": GOOD})
    ran, record, _ = run({"a": MISSED}, machine=MACHINE | {"device": "NVIDIA H100"})
    assert ran == ["a"] and record.set_aside == tmp_path / "state.old.json"
    assert json.loads(record.set_aside.read_text())["machine"] == MACHINE


def test_no_stage_begins_when_time_is_out(run):
    ran, record, _ = run({"a": GOOD, "b": GOOD}, minutes=0.0)
    assert ran == [] and {outcome.status for outcome in record.outcomes.values()} == {"no time left"}
    ran, _, _ = run({"a": GOOD, "b": GOOD})
    assert ran == ["a", "b"]


def test_a_stage_hears_how_much_time_is_left(tmp_path):
    left: list[float] = []

    def run_one(stage, folder, left_s):
        left.append(left_s)
        return GOOD

    record = Record(tmp_path / "state.json", MACHINE)
    run_all([stage("a"), stage("b")], record, tmp_path, minutes=1.0, run=run_one, say=lambda line: None)
    assert 50 < left[1] <= left[0] <= 60


def test_the_file_has_every_figure_with_its_limit_and_verdict(run, tmp_path):
    run({"a": GOOD, "b": MISSED, "c": FAILED})
    saved = json.loads((tmp_path / "state.json").read_text())
    assert saved["machine"] == MACHINE
    (row,) = saved["stages"]["b"]["rows"]
    assert (row["value"], row["limit"], row["verdict"], row["note"]) == (3.0, "<= 2", "MISSED", "why")
    assert saved["stages"]["b"]["elapsed_s"] == 3.0
    assert saved["stages"]["c"]["status"] == "failed" and "RuntimeError" in saved["stages"]["c"]["reason"]


def test_the_table_has_a_line_a_figure_and_one_for_each_stage_without(run):
    _, record, _ = run({"a": GOOD, "b": MISSED, "c": FAILED, "d": ABSENT})
    lines = table(record, [stage(name) for name in "abcde"]).splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["a", "x", "1", "<=", "2", "met", "2"],
        ["b", "y", "3", "<=", "2", "MISSED", "3", "why"],
    ]
    assert [" ".join(line.split()) for line in lines[3:]] == [
        "c failed: exit status 1: RuntimeError: no", "d not installed: vllm", "e not run",
    ]  # fmt: skip
