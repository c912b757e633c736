"""Notice before the time limit of a job: time for the rest of a step and a checkpoint.

`ralign-plan` predicts the step of the submitted recipe. The notice is 1.5 times the prediction, since the prediction is
not exact. If the notice is too short, the steps since the last checkpoint are lost: the batch script queues
the job again a minute before the limit.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ralign.engine.config.run import Run
from ralign.engine.planner import cli
from ralign.engine.planner.hardware import Chip, Constants
from ralign.engine.runtime.errors import UserError

DEFAULT_S = 1200
MAX_S = 65535  # sbatch --signal
MARGIN = 1.5
CHECKPOINT_BYTES_PER_S = 1e9  # to a shared file system, by all ranks together: a low estimate

_PLANNED = re.compile(r"^def \w+\(\) -> \w*Run:", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted seconds of a step and of writing a checkpoint."""

    step_s: float
    checkpoint_s: float
    gpus: str

    @property
    def needed_s(self) -> float:
        return self.step_s + self.checkpoint_s

    def __str__(self) -> str:
        step, checkpoint = _minutes(self.step_s), _minutes(self.checkpoint_s)
        return f"a step of {step} and a checkpoint of {checkpoint}, predicted for {self.gpus}"


def planned_run(recipe: Path, settings: Sequence[str]) -> Run | None:
    """The run as `ralign-plan` reads it; None for a file without a function `() -> Run`, since its import might run it.

    Raises:
        UserError: an invalid setting of the recipe.
    """
    if not _PLANNED.search(recipe.read_text(encoding="utf-8", errors="replace")):
        return None
    return cli.recipe_with(str(recipe), settings)


def predict(run: Run, num_gpus: int, chip: Chip) -> Prediction:
    """The prediction of `ralign-plan` for this run.

    Raises:
        UserError: the run cannot be planned, for example because the sizes of its model are unknown.
    """
    layout = cli.plan(run, num_gpus, chip, Constants(), search=False)["layout"]
    held = layout["memory_bytes"]["update"]
    # A checkpoint holds the fp32 weights and Adam's moments.
    state_bytes = num_gpus * sum(size for name, size in held.items() if name.endswith("optimizer"))
    return Prediction(
        step_s=layout["time_s"]["total"],
        checkpoint_s=state_bytes / CHECKPOINT_BYTES_PER_S,
        gpus=f"{num_gpus} x {chip.name}",
    )


def choose(
    asked_minutes: float | None, limit_s: float | None, prediction: Prediction | None
) -> tuple[int, str | None]:
    """Seconds of notice, and a remark for the user.

    Args:
        asked_minutes: the value of --warn-minutes; None to use the prediction.
        limit_s: the job's time limit; None if unknown.

    Raises:
        UserError: --warn-minutes leaves no time to train, or exceeds SLURM's maximum.
    """
    if asked_minutes is not None:
        notice = round(60 * asked_minutes)
        given = f"--warn-minutes={asked_minutes:g}"
        if not 0 < notice <= MAX_S:
            raise UserError(f"{given}: expected more than 0 and at most {MAX_S // 60}")
        if limit_s is not None and notice >= limit_s:
            raise UserError(f"{given}: the time limit is {_minutes(limit_s)}, so the job would stop at once")
    else:
        notice = DEFAULT_S
        if prediction:
            notice = min(max(notice, 60 * math.ceil(MARGIN * prediction.needed_s / 60)), MAX_S)
        if limit_s is not None:
            notice = min(notice, int(limit_s / 2))
    if prediction is None:
        return notice, None
    if notice < prediction.needed_s:
        return notice, (
            f"warning: a notice of {_minutes(notice)} is shorter than {prediction}: steps since the last"
            " checkpoint may be lost; give --warn-minutes, a longer --time, or checkpoint_every=1"
        )
    return notice, f"notice of {_minutes(notice)}, for {prediction}"


def limit_s(text: str) -> float:
    """Seconds of a time limit in SLURM's format: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not dash and len(parts) < 3:
        parts = [0, *parts]  # without days, one or two numbers begin with minutes
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return 86400 * int(days or 0) + 3600 * hours + 60 * minutes + seconds


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"
