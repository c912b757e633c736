"""The settings of the paper in miniature: those of its judges and those of its actors."""

from dataclasses import dataclass, field
from pathlib import Path

from ralign.engine.actor_config import ActorRun, check_actor
from ralign.engine.config import Run
from ralign.engine.errors import UserError
from ralign.engine.validation import validate


@dataclass(kw_only=True, slots=True)
class PaperRun:
    """Settings of judges and actors; name, folder and seed are those of both."""

    name: str = "paper_in_miniature"
    """Folder of the run, inside `out`."""
    out: str = "runs"
    """Folder of all runs."""
    seed: int = 0
    """Fixes the worlds, the fresh weights and the sampling."""
    budgets: tuple[int, ...] = (20, 80)
    """RL steps after which a judge is taken out of its training to be measured and to pay an actor."""
    judges: Run = field(default_factory=Run)
    """The judges: warm start, RLVR and R-Align, evaluation."""
    actors: ActorRun = field(default_factory=ActorRun)
    """The actors: warm start, RL paid by a judge."""

    @property
    def folder(self) -> Path:
        """Where everything of this run goes."""
        return Path(self.out) / self.name

    def settle(self, world_size: int) -> None:
        """Hand name, folder and seed down; UserError for what cannot work."""
        if not self.budgets or any(a >= b for a, b in zip((0, *self.budgets), self.budgets, strict=False)):
            raise UserError(f"budgets must rise from 1 or more, got {list(self.budgets)}")
        for name, run in (("judges", self.judges), ("actors", self.actors)):
            run.name, run.out, run.seed = name, str(self.folder), self.seed
            run.data.world.seed = self.seed
            validate(run, world_size)
        self.judges.num_steps = self.budgets[-1]
        check_actor(self.actors)
