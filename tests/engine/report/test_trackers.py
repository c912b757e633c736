"""Trackers get every step once, survive neither a mistake at the start nor end a run by a failure later."""

import importlib.util
import json
import math

import pytest
from ralign.engine.config.registry import TRACKERS
from ralign.engine.config.run import GenRMRun, ReportConfig
from ralign.engine.config.trackers import check_trackers, tracker_names
from ralign.engine.config.validation import validate
from ralign.engine.report import trackers
from ralign.engine.report.trackers import open_trackers
from ralign.engine.runtime.errors import UserError

_OWN = """
import json

class Lines:
    def __init__(self, stage):
        self.path, self.stage = stage.folder / "lines.jsonl", stage
        self.say("open", stage.next_step, stage.id)

    def say(self, *what):
        with self.path.open("a") as file:
            file.write(json.dumps(what) + "\\n")

    def log(self, step, metrics):
        if metrics.get("reward/mean") == 13:
            raise ConnectionError("the server\\nis gone")
        self.say(step, metrics["reward/mean"])

    def close(self):
        self.say("close")

class Replacing(Lines):
    replaces_steps = True

def broken(stage):
    raise RuntimeError("no login")
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(_OWN)
    return str(path)


@pytest.fixture
def opened(tmp_path):
    """Opens the trackers of a stage in which `warnings` collects what they say."""
    warnings: list[str] = []

    def make(names, next_step=1, *, num_steps=100, enabled=True):
        run = GenRMRun(name="run", out=str(tmp_path), report=ReportConfig(trackers=names))
        folder = run.folder / "rl"
        folder.mkdir(parents=True, exist_ok=True)
        return open_trackers(
            run, folder, next_step=next_step, num_steps=num_steps, enabled=enabled, warn=warnings.append
        )

    make.warnings = warnings
    make.lines = lambda: [
        json.loads(line) for line in (tmp_path / "run/rl/lines.jsonl").read_text().splitlines()
    ]
    return make


def _log(tracker, steps, values=lambda step: step):
    for step in steps:
        tracker.log(step, {"reward/mean": values(step), "judge/s_corr": math.nan})


def test_a_resumed_stage_goes_on_with_the_same_tracker_run_and_repeats_no_step(own, opened):
    _log(opened(f"{own}:Lines"), range(1, 8))  # killed after step 7, with a checkpoint of step 4
    again = opened(f"{own}:Lines", next_step=5)
    _log(again, range(5, 10))
    again.close()
    lines = opened.lines()
    assert [line for line in lines if line[0] == "open"] == [
        ["open", 1, lines[0][2]],
        ["open", 5, lines[0][2]],
    ]
    assert [line[0] for line in lines if isinstance(line[0], int)] == list(range(1, 10))
    assert lines[-1] == ["close"] and not opened.warnings


def test_a_tracker_that_can_replace_steps_gets_them_again(own, opened):
    _log(opened(f"{own}:Replacing"), range(1, 8))
    _log(opened(f"{own}:Replacing", next_step=5), range(5, 9))
    assert [line[0] for line in opened.lines() if isinstance(line[0], int)] == [*range(1, 8), *range(5, 9)]


def test_a_stage_that_starts_over_is_another_tracker_run(own, opened):
    for _ in range(2):
        _log(opened(f"{own}:Lines"), [1])
    (first, _, second, repeated) = opened.lines()
    assert first[2] != second[2] and repeated == [1, 1]


def test_a_failure_while_training_is_one_warning_and_the_end_of_that_tracker(own, opened, tmp_path):
    tracker = opened(f"{own}:Lines,{own}:Replacing")
    _log(tracker, range(1, 4), lambda step: 13 if step == 2 else step)
    tracker.close()
    assert opened.warnings == [
        f"report.trackers={own}:{name} failed in step 2, and is off: ConnectionError: the server is gone"
        for name in ("Lines", "Replacing")
    ]
    assert [line[0] for line in opened.lines()] == ["open", "open", 1, 1]


def test_a_tracker_that_cannot_be_opened_ends_a_start_and_not_a_resume(own, opened):
    with pytest.raises(UserError, match="own.py:broken cannot be opened: RuntimeError: no login"):
        opened(f"{own}:broken")
    _log(opened(f"{own}:Lines"), range(1, 5))
    both = opened(f"{own}:broken,{own}:Lines", next_step=5)
    _log(both, [5])
    (warning,) = opened.warnings
    assert "own.py:broken cannot be opened, and is off: RuntimeError: no login" in warning
    assert opened.lines()[-1] == [5, 5]


def test_other_ranks_and_stages_that_are_done_open_nothing(own, opened, tmp_path):
    for options in ({"enabled": False}, {"next_step": 6, "num_steps": 5}):
        tracker = opened(f"{own}:Lines", **options)
        _log(tracker, [6])
        tracker.close()
    tracker = opened("none")
    _log(tracker, [1])
    assert list((tmp_path / "run" / "rl").iterdir()) == []


def _without_packages(monkeypatch, *names):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name in names else found(name, *args)
    )


def test_auto_is_tensorboard_where_it_is_installed(monkeypatch):
    _without_packages(monkeypatch, "tensorboard")
    assert tracker_names("auto") == tracker_names("none") == []
    check_trackers("auto")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: object())
    assert tracker_names("auto") == ["tensorboard"]
    assert tracker_names("wandb, mlflow") == ["wandb", "mlflow"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_tracker_without_its_package_is_refused_with_the_command(monkeypatch, name):
    _without_packages(monkeypatch, name)
    with pytest.raises(UserError) as error:
        validate(GenRMRun(report=ReportConfig(trackers=name)), 1)
    assert str(error.value) == f"report.trackers={name}: {name} is not installed (pip install {name})"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("tensorbord", "report.trackers=tensorbord: expected one of tensorboard, wandb, mlflow, trackio"),
        ("", "expected auto, none, or a list"),
        ("auto,own.py:Lines", "expected auto, none, or a list"),
        ("own.py:Lines,own.py:Lines", "without repetition"),
        ("missing.py:Lines", "no module missing.py"),
    ],
)
def test_a_mistake_is_named(setting, said):
    with pytest.raises(UserError, match=said):
        check_trackers(setting)


def test_every_name_leads_to_a_tracker():
    for name in ("tensorboard", "wandb", "mlflow", "trackio"):
        assert TRACKERS.load(name).__module__ == trackers.__name__


def test_tensorboard_shows_each_step_once_after_a_resume(opened, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _log(opened("tensorboard"), range(1, 8))
    again = opened("tensorboard", next_step=5)
    _log(again, range(5, 10), lambda step: step + 0.5)
    again.close()
    events = EventAccumulator(str(tmp_path / "run" / "rl" / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"reward/mean", "judge/s_corr"}
    shown = [(event.step, event.value) for event in events.Scalars("reward/mean")]
    assert shown == [(step, float(step)) for step in range(1, 5)] + [
        (step, step + 0.5) for step in range(5, 10)
    ]


def test_weights_and_biases_without_network(opened, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for next_step in (1, 3):
        tracker = opened("wandb", next_step=next_step)
        _log(tracker, range(next_step, next_step + 2))
        tracker.close()
    runs = list((tmp_path / "run" / "rl" / "wandb").glob("offline-run-*"))
    assert len({path.name.rpartition("-")[2] for path in runs}) == 1 and not opened.warnings


def test_mlflow_has_each_step_once_in_one_run(opened, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for next_step in (1, 3):
        tracker = opened("mlflow", next_step=next_step)
        _log(tracker, range(next_step, next_step + 4))
        tracker.close()
    client = MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("ralign").experiment_id])
    history = client.get_metric_history(found.info.run_id, "reward/mean")
    assert [(metric.step, metric.value) for metric in history] == [(step, step) for step in range(1, 7)]
    assert found.data.params["optim.lr"] == str(GenRMRun().optim.lr)
