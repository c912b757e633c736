"""Lines and times of stages, by a clock that the tests advance."""

import io
import re

import pytest
from ralign.engine.report.progress import Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock():
    return Clock()


def test_plain_lines_where_there_is_no_terminal(clock):
    stream = io.StringIO()
    progress = Progress(stream=stream, every_s=0.0, clock=clock)
    with progress.stage("sft", "Warm start [x]", num_steps=3):
        for step in range(3):
            clock.advance(30)
            progress.step(loss=1 / (step + 1))
        progress.say("saved [bold]here")
    assert stream.getvalue().splitlines() == [
        "== Warm start [x]",  # brackets are text, not markup
        "  step 1/3: 30 s/step, 1m00s left, loss 1",
        "  step 2/3: 30 s/step, 30s left, loss 0.5",
        "  step 3/3: 30 s/step, loss 0.3333",
        "  saved [bold]here",
        "  done in 1m30s",
    ]


def test_plain_lines_are_rare_but_the_first_and_last_step_have_one(clock):
    stream = io.StringIO()
    progress = Progress(stream=stream, every_s=5.0, clock=clock)
    with progress.stage("sft", num_steps=50):
        for _ in range(50):
            clock.advance(0.25)
            progress.step()
    steps = [line.split(":")[0] for line in stream.getvalue().splitlines()[1:-1]]
    assert steps == ["  step 1/50", "  step 21/50", "  step 41/50", "  step 50/50"]


def test_other_ranks_measure_times_and_print_nothing(clock):
    stream = io.StringIO()
    progress = Progress(enabled=False, stream=stream, clock=clock)
    for _ in range(2):
        with progress.stage("rl", num_steps=1):
            clock.advance(2)
            progress.step(reward=1.0)
        clock.advance(50)
    assert stream.getvalue() == "" and progress.time_s == {"rl": 4.0}


def test_a_stage_that_fails_is_not_called_done_and_frees_the_next():
    stream = io.StringIO()
    progress = Progress(stream=stream)
    with pytest.raises(ZeroDivisionError), progress.stage("rl"):
        _ = 1 / 0
    assert "done" not in stream.getvalue()
    with progress.stage("rl"), pytest.raises(AssertionError, match="inside another stage"):
        with progress.stage("inner"):
            pass
    assert list(progress.time_s) == ["rl"]


def test_a_slow_first_step_does_not_change_the_rate(clock):
    progress = Progress(enabled=False, clock=clock)
    with progress.stage("rl", num_steps=4) as stage:
        for seconds, rate in ((60, 60), (2, 2), (4, 3)):
            clock.advance(seconds)
            progress.step()
            assert stage.step_s == rate
        assert stage.elapsed_s == 66


class Terminal(io.StringIO):
    def isatty(self):
        return True


HOSTILE = [
    "\x1b[31m",
    "\x9b31m",
    "a\nb",
    "\r",
    "\0",
    "\u202e",
    "\ud800",
    "[/]",
    "[red]x[/red]",
    "{task}",
    "%s",
]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
@pytest.mark.parametrize("stream_type", [io.StringIO, Terminal])
def test_no_name_steers_the_terminal(stream_type, name):
    stream = stream_type()
    progress = Progress(stream=stream, every_s=0)
    progress.say(name)
    with progress.stage("key", name, num_steps=1):
        progress.step(**{name: 1.0})
    text = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", stream.getvalue())  # rich's own
    assert all(char.isprintable() or char in "\r\n" for char in text)
    assert text.count(name if name.isprintable() else repr(name)[1:-1]) >= 3
    if stream_type is io.StringIO:
        assert text.count("\n") == 4 and "\r" not in text  # each is one line: said, heading, step, done


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    progress = Progress(stream=stream)
    with progress.stage("rl", "RL", num_steps=2):
        progress.step(reward=0.25)
        progress.step(reward=0.5)
    assert "2/2" in stream.getvalue() and "reward 0.5" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0s"), (8.21, "8.2s"), (59.7, "1m00s"), (67, "1m07s"), (7500, "2h05m")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
