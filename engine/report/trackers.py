"""Experiment trackers: TensorBoard, Weights & Biases, MLflow, trackio, or a user's own, beside metrics.jsonl.

A tracker has `log(step, metrics)` and `close()`, and is opened for one stage of a run. A user's own is FILE.py:NAME, a
function that takes a `TrackedStage` and returns such an object. `Trackers` holds those of report.trackers:

- A resumed stage goes on with the same tracker run. TensorBoard forgets the steps after the checkpoint; the others
  cannot, and are not given a step that they have already. `tracker.json` in the stage's folder has the id of the
  tracker run and the last step.
- A tracker that fails is turned off with one warning: training does not end for it. Only a first start ends, where the
  user is there to correct a missing login or address.

Every package is imported when its tracker is opened.
"""

import importlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ralign.engine.config.registry import TRACKERS
from ralign.engine.config.run import Run
from ralign.engine.config.trackers import tracker_names
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import read_json_object, write_text

STATE_FILE = "tracker.json"
_MOST_PARAMS = 100  # of a request to MLflow
_PARAM_CHARS = 500  # of a value there


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedStage:
    """What a tracker is opened with."""

    folder: Path  # of the stage, RUN/STAGE
    run: str  # the run's name
    name: str  # the stage's name
    settings: dict[str, Any]  # of the run, as in config.json
    id: str  # of the tracker run: the same from the start of the stage to its end, through every resume
    next_step: int  # the first step to come, above 1 in a stage that is resumed
    last_step: int  # the last step that an earlier process logged, 0 if none


class Tracker(Protocol):
    """Where metrics go. A class whose `replaces_steps` is True gets steps again that a resumed run repeats."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """The open trackers of a stage; with no names it does nothing."""

    def __init__(
        self, names: Sequence[str], run: Run, folder: Path, next_step: int, warn: Callable[[str], None]
    ):
        """
        Args:
            names: of the trackers, as `tracker_names` gives them.
            folder: of the stage.
            warn: prints a line.

        Raises:
            UserError: a tracker cannot be opened for a stage that starts; in a resumed stage it is left out.
        """
        self._warn, self._open = warn, {}
        self._state = folder / STATE_FILE
        if not names:
            return
        found = read_json_object(self._state) if next_step > 1 and self._state.exists() else {}
        self._id, self._last_step = found.get("id") or uuid.uuid4().hex[:8], found.get("last_step") or 0
        stage = TrackedStage(
            folder=folder,
            run=run.name,
            name=folder.name,
            settings=asdict(run),
            id=self._id,
            next_step=next_step,
            last_step=self._last_step,
        )
        for name in names:
            opener = TRACKERS.load(name)
            # Trackers raise what they like: their own errors, those of HTTP clients, databases and operating systems.
            try:
                self._open[name] = opener(stage)
            except Exception as error:
                if next_step == 1:
                    raise UserError(f"report.trackers={name} cannot be opened: {_line(error)}") from error
                warn(f"report.trackers={name} cannot be opened, and is off: {_line(error)}")
        self._save()

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One step's metrics to every tracker; those of a step that all have already, to those that replace it."""
        if not self._open:
            return
        values = {key: float(value) for key, value in metrics.items()}
        for name, tracker in list(self._open.items()):
            if step <= self._last_step and not getattr(tracker, "replaces_steps", False):
                continue
            try:
                tracker.log(step, values)
            except Exception as error:  # as above: whatever it is, training goes on
                self._warn(f"report.trackers={name} failed in step {step}, and is off: {_line(error)}")
                del self._open[name]
        if step > self._last_step:
            self._last_step = step
            self._save()

    def close(self) -> None:
        """Close every tracker, which may wait for what it has not sent yet."""
        for name, tracker in self._open.items():
            try:
                tracker.close()
            except Exception as error:  # as above
                self._warn(f"report.trackers={name} failed at its end: {_line(error)}")
        self._open = {}

    def _save(self) -> None:
        write_text(self._state, json.dumps({"id": self._id, "last_step": self._last_step}) + "\n")


def open_trackers(
    run: Run, folder: Path, *, next_step: int, num_steps: int, enabled: bool, warn: Callable[[str], None]
) -> Trackers:
    """The trackers of report.trackers; none on other ranks (`enabled`), and none where no step is left."""
    names = tracker_names(run.report.trackers) if enabled and next_step <= num_steps else []
    return Trackers(names, run, folder, next_step, warn)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class TensorBoard:
    """Event files in `folder`/tensorboard. `tensorboard --logdir runs` shows them."""

    replaces_steps: ClassVar[bool] = True

    def __init__(self, stage: TrackedStage):
        from torch.utils.tensorboard import SummaryWriter

        # A reader drops earlier events from `purge_step` on, those of a process that ended after its last checkpoint.
        self._writer = SummaryWriter(str(stage.folder / "tensorboard"), purge_step=stage.next_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()  # a process that is killed must not lose steps that its checkpoint has

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE=offline are read by its package."""

    def __init__(self, stage: TrackedStage):
        wandb = importlib.import_module("wandb")
        settings = wandb.Settings(console="off")  # the run's own capture of its output has that already
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ralign"),
            group=stage.run,
            name=f"{stage.run}/{stage.name}",
            id=stage.id,
            resume="allow",
            dir=str(stage.folder),
            config=stage.settings,
            settings=settings,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME are read from the environment."""

    def __init__(self, stage: TrackedStage):
        # By default a request to a server that is gone takes many minutes, in which training would wait.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        mlflow, entities = (importlib.import_module(name) for name in ("mlflow", "mlflow.entities"))
        self._metric, self._client = entities.Metric, mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ralign")
        experiment = self._client.get_experiment_by_name(name)
        folder_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found = self._client.search_runs([folder_id], f"tags.ralign_id = '{stage.id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {"ralign_id": stage.id, "ralign_run": stage.run}
        created = self._client.create_run(folder_id, run_name=f"{stage.run}/{stage.name}", tags=tags)
        self._id = created.info.run_id
        params = [entities.Param(key, str(value)[:_PARAM_CHARS]) for key, value in _flat(stage.settings)]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._id, params=params[start : start + _MOST_PARAMS])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        batch = [self._metric(key, value, now_ms, step) for key, value in metrics.items()]
        self._client.log_batch(self._id, metrics=batch)

    def close(self) -> None:
        self._client.set_terminated(self._id)


class Trackio:
    """A run of trackio, whose files are in TRACKIO_DIR; `trackio show` shows them."""

    def __init__(self, stage: TrackedStage):
        self._run = importlib.import_module("trackio").init(
            project=os.environ.get("TRACKIO_PROJECT", "ralign"),
            name=f"{stage.run}/{stage.name} {stage.id}",
            group=stage.run,
            config=stage.settings,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(optim.lr, value) of each setting."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
