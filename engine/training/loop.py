"""The training loop: the steps of a stage, their log and checkpoints, and the ways in which a stage ends early.

`warm_start` and `reinforce` are the two kinds of stages. Every function is collective over all ranks.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ralign.engine.checkpoint.checkpoints import Checkpoints
from ralign.engine.config.run import Run
from ralign.engine.data.examples import encode_answer
from ralign.engine.judging.judge import JudgeStopped
from ralign.engine.policy.megatron_model import MegatronModel
from ralign.engine.report.metrics_log import MetricsLog
from ralign.engine.report.trackers import open_trackers
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import is_full
from ralign.engine.training.competence import Probe
from ralign.engine.training.session import Session
from ralign.engine.training.sft import SFT
from ralign.engine.training.tasks import Prompt, Response, Task
from ralign.engine.training.trainer import Trainer

Metrics = dict[str, float]


class Stage(Protocol):
    """What the loop trains: an `SFT` or a `Trainer`."""

    models: dict[str, MegatronModel]
    num_steps_done: int
    is_complete: bool  # it ends before its last step

    def step(self) -> tuple[Metrics, list[Response]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def warm_start(
    session: Session,
    run: Run,
    name: str,
    examples: Sequence[Prompt],
    texts: Sequence[str],
    probe: Probe | None = None,
) -> Path:
    """Supervised training on the given answers; returns the exported folder. `probe`: for `sft.competence`."""
    answers = [encode_answer(text, session.tokenizer) for text in texts]
    return warm_start_on_ids(session, run, name, examples, answers, probe)


def warm_start_on_ids(
    session: Session,
    run: Run,
    name: str,
    examples: Sequence[Prompt],
    answers: Sequence[np.ndarray],
    probe: Probe | None = None,
) -> Path:
    """`warm_start` on token ids, [L] int64 each, with the end token."""
    session.begin_training()
    stage = SFT(session, run, examples, answers, probe)
    keys = ("policy/loss",)
    train(session, run, name, "SFT warm start", stage, run.sft.num_steps, progress_keys=keys)
    session.generator.weights_changed()  # an evaluation may come before the next stage
    return session.export(run.folder / name / "hf")


def reinforce(
    session: Session,
    run: Run,
    name: str,
    start: Path,
    task: Task,
    after_step: Callable[[int], Metrics] = lambda step: {},
) -> Path:
    """RL on a task from the checkpoint in `start`; returns the exported folder.

    `after_step` may add metrics of the updated policy. A critic starts each stage from its own folder or, with all
    values 0, from the policy's start.
    """
    session.load(start)
    if session.critic is not None:
        session.critic.load(run.critic.hf_path or start)
    session.generator.weight_version = 0  # a stage counts its own updates
    session.begin_training()
    stage = Trainer(session, run, task)
    train(
        session,
        run,
        name,
        task.title,
        stage,
        run.num_steps,
        progress_keys=task.progress_keys,
        after_step=after_step,
        on_responses=lambda step, responses: _write_rollouts(session, run, name, step, task, responses),
        best_by=run.checkpoint.watch if run.checkpoint.keep_best else None,
    )
    if session.critic is not None:
        session.watchdog.phase("export")
        session.critic.export(run.folder / name / "critic_hf")
    return session.export(run.folder / name / "hf")


def train(
    session: Session,
    run: Run,
    name: str,
    title: str,
    stage: Stage,
    num_steps: int,
    *,
    progress_keys: Sequence[str],
    after_step: Callable[[int], Metrics] = lambda step: {},
    on_responses: Callable[[int, list[Response]], None] = lambda step, responses: None,
    best_by: str | None = None,
) -> None:
    """Steps of a stage, from its newest checkpoint where there is one, to the end, with a checkpoint there.

    A judge that stops ends the run. If it stops within a step, the checkpoint is of the step before; if it stops in
    `after_step`, of this one.

    Args:
        progress_keys: metrics of the progress line.
        best_by: the metric by which the best checkpoints are kept; None keeps none.
    """
    checkpoints = Checkpoints(
        run.folder / name / "checkpoints",
        session.cluster,
        stage.models,
        keep_last=run.checkpoint.keep_last,
        keep_best=run.checkpoint.keep_best,
    )
    if (state := checkpoints.restore()) is not None:
        stage.load_state_dict(state)
        session.progress.say(f"{name} continues after step {stage.num_steps_done}")
    log = MetricsLog(
        run.folder / name / "metrics.jsonl",
        next_step=stage.num_steps_done + 1,
        enabled=session.cluster.is_first_rank,
    )
    trackers = open_trackers(
        run,
        run.folder / name,
        next_step=stage.num_steps_done + 1,
        num_steps=num_steps,
        enabled=session.cluster.is_first_rank,
        warn=session.progress.say,
    )
    with (
        closing(trackers),
        session.progress.stage(name, title, num_steps=num_steps - stage.num_steps_done),
        _disk_errors(run.folder / name, checkpoints),
    ):
        while not stage.is_complete and (number := stage.num_steps_done + 1) <= num_steps:
            metrics, stopped = {}, None
            try:
                metrics, responses = stage.step()
                on_responses(number, responses)
                session.progress.step(**{key.split("/")[1]: metrics[key] for key in progress_keys})
                metrics |= after_step(number)
            except JudgeStopped as reason:
                stopped = reason
            if metrics:
                metrics.pop("step")
                for kind, model in stage.models.items():
                    metrics[f"{kind}/num_skipped"] = model.num_skipped_updates
                metrics |= session.memory.metrics()
                log.write(number, metrics)
                trackers.log(number, metrics)
            if stopped:
                _save_before_end(session, name, checkpoints, stage)
                raise stopped
            _check_skipped(run, name, stage, number)
            is_last = stage.is_complete or number == num_steps
            _save_if_due(
                session,
                run,
                name,
                checkpoints,
                stage,
                is_last=is_last,
                score=partial(_score, best_by, metrics),
            )
        checkpoints.wait()


@contextmanager
def _disk_errors(folder: Path, checkpoints: Checkpoints) -> Iterator[None]:
    """Turns the errors of a full disk and of a removed folder into a UserError.

    folder: of the stage.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not folder.is_dir():
            raise UserError(f"{folder} was removed while the run was writing to it") from error
        if not is_full(error):
            raise
        raise UserError(
            f"{error.filename or folder}: {error.strerror}; after room is made, the same command continues "
            f"{folder.name} after step {checkpoints.last_step}"
        ) from error


def _save_before_end(session: Session, name: str, checkpoints: Checkpoints, stage: Stage) -> None:
    """A checkpoint of the steps that are done, before the run ends early."""
    if step := stage.num_steps_done:
        session.begin_training()  # the optimizer's state may be in host memory
        checkpoints.save(step, stage.state_dict())
        checkpoints.wait()
        session.progress.say(f"saved step {step} of {name}; the same command continues")


def _save_if_due(
    session: Session,
    run: Run,
    name: str,
    checkpoints: Checkpoints,
    stage: Stage,
    *,
    is_last: bool,
    score: Callable[[], float | None],
) -> None:
    """A checkpoint every `checkpoint_every` steps, after the last one, and on request, which then ends the run.

    `score` is of the metrics of the step, which need not have the watched one when no checkpoint is due.
    """
    session.watchdog.phase("checkpoint")
    step, every = stage.num_steps_done, run.checkpoint_every
    go_on, is_written = session.cluster.all_true(not session.stop.requested, checkpoints.is_written)
    if is_written:
        checkpoints.wait()
    is_due = bool(every and step % every == 0) or is_last
    if is_due or not go_on:
        session.begin_training()  # the optimizer's state may be in host memory
        checkpoints.save(step, stage.state_dict(), score=score() if is_due else None)
    if not go_on:
        checkpoints.wait()
        session.stop_early(f"stopped on request: saved step {step} of {name}; the same command continues")


def _score(best_by: str | None, metrics: Metrics) -> float | None:
    """Raises UserError where no metric has the configured name."""
    if best_by is None:
        return None
    if best_by not in metrics:
        raise UserError(f"checkpoint.watch={best_by}: no such metric; there are {', '.join(metrics)}")
    return metrics[best_by]


def _check_skipped(run: Run, name: str, stage: Stage, step: int) -> None:
    """Raises UserError when too many updates were skipped: the settings make training diverge."""
    limit = run.faults.max_skipped_updates
    for kind, model in stage.models.items():
        if (skipped := model.num_skipped_updates) > limit:
            optim = "critic.optim" if kind == "critic" else "optim"
            raise UserError(
                f"{name}, step {step}: {skipped} updates of the {kind} were skipped "
                f"(faults.max_skipped_updates={limit}); a lower {optim}.lr or {optim}.clip_grad may help"
            )


def _write_rollouts(
    session: Session, run: Run, name: str, step: int, task: Task, responses: list[Response]
) -> None:
    """The responses of every `rollouts_every`-th step, as JSONL."""
    if not (run.rollouts_every and step % run.rollouts_every == 0 and session.cluster.is_first_rank):
        return
    path = run.folder / name / "rollouts" / f"step{step:05d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for response in responses:
            record = {
                **task.record(response),
                "group": response.group,
                "text": response.text,
                "finish_reason": response.rollout.finish_reason,
                "weight_version": response.rollout.weight_version,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
