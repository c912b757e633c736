import io
import time

import pytest
from ralign.engine.report.progress import Progress, duration


def test_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    progress = Progress(stream=stream, every_s=0.0)
    with progress.stage("sft", "Warm start [x]", num_steps=3):
        for step in range(3):
            progress.step(loss=1 / (step + 1))
        progress.say("saved [bold]here")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "== Warm start [x]"  # brackets are text, not markup
    assert lines[1].startswith("  step 1/3: ") and " left, loss 1" in lines[1]
    assert lines[3].startswith("  step 3/3: ") and "left" not in lines[3] and lines[3].endswith("loss 0.3333")
    assert lines[4] == "  saved [bold]here" and lines[5].startswith("  done in ")
    assert "\x1b" not in stream.getvalue()


def test_plain_lines_are_rare_but_the_first_and_last_step_are_told():
    stream = io.StringIO()
    progress = Progress(stream=stream, every_s=3600)
    with progress.stage("sft", num_steps=50):
        for _ in range(50):
            progress.step()
    told = [line.split(":")[0] for line in stream.getvalue().splitlines()]
    assert told[1:-1] == ["  step 1/50", "  step 50/50"]


def test_other_ranks_keep_the_time_in_silence():
    stream = io.StringIO()
    progress = Progress(enabled=False, stream=stream)
    for _ in range(2):
        with progress.stage("rl", num_steps=1):
            time.sleep(0.02)
            progress.step(reward=1.0)
    assert stream.getvalue() == "" and 0.04 <= progress.time_s["rl"] < 1


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


def test_the_slow_first_step_does_not_spoil_the_rate():
    progress = Progress(enabled=False)
    with progress.stage("rl", num_steps=3) as stage:
        time.sleep(0.3)
        progress.step()
        for _ in range(2):
            time.sleep(0.01)
            progress.step()
        assert stage.step_s < 0.1 < stage.elapsed_s / 3


def test_a_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    progress = Progress(stream=stream)
    with progress.stage("rl", "RL", num_steps=2):
        progress.step(reward=0.25)
        progress.step(reward=0.5)
    assert "2/2" in stream.getvalue() and "reward 0.5" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0s"), (8.21, "8.2s"), (59.7, "1m00s"), (67, "1m07s"), (7500, "2h05m")]
)
def test_duration(seconds, said):
    assert duration(seconds) == said
