"""The loop of a training stage: its steps, their log, its checkpoints, and the ways in which it ends early."""

from collections.abc import Callable
from typing import NoReturn

from ralign.engine.checkpoint.checkpoints import Checkpoints
from ralign.engine.config.run import Run
from ralign.engine.judging.judge import JudgeStopped
from ralign.engine.report.metrics_log import MetricsLog
from ralign.engine.report.progress import Progress
from ralign.engine.runtime.cluster import Cluster
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.signals import StopSignal
from ralign.engine.runtime.watchdog import Watchdog
from ralign.engine.training.memory_phases import MemoryPhases
from ralign.engine.training.sft import SFT
from ralign.engine.training.trainer import Trainer

Metrics = dict[str, float]


class StageLoop:
    """Trains one stage, an `SFT` or a `Trainer`; collective over all ranks."""

    def __init__(
        self,
        run: Run,
        cluster: Cluster,
        memory: MemoryPhases,
        progress: Progress,
        watchdog: Watchdog,
        stop: StopSignal,
        leave: Callable[[str], NoReturn],
    ):
        """`leave` ends the run in order, with a line to say why."""
        self.run, self.cluster, self.memory, self.progress = run, cluster, memory, progress
        self.watchdog, self.stop, self.leave = watchdog, stop, leave

    def train(
        self,
        name: str,
        title: str,
        stage: SFT | Trainer,
        step: Callable[[], Metrics],
        num_steps: int,
        after_step: Callable[[int], Metrics] = lambda step: {},
    ) -> None:
        """Steps of a stage, from its newest checkpoint where there is one, to the end, with a checkpoint there.

        A judge that stops ends the run with a checkpoint: in a step of the one before, after a step of that one.
        """
        config = self.run.checkpoint
        checkpoints = Checkpoints(
            self.run.folder / name / "checkpoints",
            self.cluster,
            stage.models,
            keep_last=config.keep_last,
            keep_best=config.keep_best,
        )
        if (state := checkpoints.restore()) is not None:
            stage.load_state_dict(state)
            self.progress.say(f"{name} goes on after step {stage.num_steps_done}")
        log = MetricsLog(
            self.run.folder / name / "metrics.jsonl",
            next_step=stage.num_steps_done + 1,
            enabled=self.cluster.is_first_rank,
        )
        with self.progress.stage(name, title, num_steps=num_steps - stage.num_steps_done):
            while (number := stage.num_steps_done + 1) <= num_steps:
                metrics, stopped = {}, None
                try:
                    metrics = step()
                    metrics |= after_step(number)
                except JudgeStopped as reason:
                    stopped = reason
                if metrics:
                    metrics.pop("step")
                    for kind, model in stage.models.items():
                        metrics[f"{kind}/num_skipped"] = model.num_skipped_updates
                    metrics |= self.memory.metrics()
                    log.write(number, metrics)
                if stopped:
                    self._save_for_later(name, checkpoints, stage)
                    raise stopped
                self._check_skipped(name, stage, number)
                self._save_if_due(name, checkpoints, stage, number == num_steps, metrics)
            checkpoints.wait()

    def _save_for_later(self, name: str, checkpoints: Checkpoints, stage: SFT | Trainer) -> None:
        """A checkpoint of what was learned, before the run ends early."""
        if step := stage.num_steps_done:
            self.memory.before_training()  # the optimizer's state may be away
            checkpoints.save(step, stage.state_dict())
            checkpoints.wait()
            self.progress.say(f"saved step {step} of {name}; the same command goes on")

    def _save_if_due(
        self,
        name: str,
        checkpoints: Checkpoints,
        stage: SFT | Trainer,
        is_last: bool,
        metrics: Metrics,
    ) -> None:
        """A checkpoint every so many steps, after the last one, and when asked to stop, which then ends the run."""
        self.watchdog.phase("checkpoint")
        step, every = stage.num_steps_done, self.run.checkpoint_every
        go_on, is_written = self.cluster.all_true(not self.stop.requested, checkpoints.is_written)
        if is_written:
            checkpoints.wait()
        if (every and step % every == 0) or is_last or not go_on:
            self.memory.before_training()  # what came after the step may have sent the optimizer's state away
            checkpoints.save(step, stage.state_dict(), score=self._score(stage, metrics))
        if not go_on:
            checkpoints.wait()
            self.leave(f"asked to stop: saved step {step} of {name}; the same command goes on")

    def _score(self, stage: SFT | Trainer, metrics: Metrics) -> float | None:
        """What decides which checkpoint is best; the warm start has no such thing.

        Raises:
            UserError: no metric has the configured name.
        """
        config = self.run.checkpoint
        if isinstance(stage, SFT) or not config.keep_best:
            return None
        if config.watch not in metrics:
            raise UserError(
                f"checkpoint.watch={config.watch}: no such metric; there are {', '.join(metrics)}"
            )
        return metrics[config.watch]

    def _check_skipped(self, name: str, stage: SFT | Trainer, step: int) -> None:
        """Raises UserError when too many updates were skipped: the settings make training diverge."""
        limit = self.run.faults.max_skipped_updates
        for kind, model in stage.models.items():
            if (skipped := model.num_skipped_updates) > limit:
                optim = "critic.optim" if kind == "critic" else "optim"
                raise UserError(
                    f"{name}, step {step}: {skipped} updates of the {kind} were skipped for a loss or gradient that "
                    f"is not finite (faults.max_skipped_updates={limit}); a lower {optim}.lr or {optim}.clip_grad "
                    "may help"
                )
