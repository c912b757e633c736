"""The settings of the paper in miniature: those of its judges and those of its actors.

Judges and actors are one policy and one engine, one after the other, in one world: what builds those must be the same
in both trees, and is refused where it is not.
"""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from ralign.engine.actors.validation import check_actor
from ralign.engine.config.actor import ActorRun
from ralign.engine.config.judge import check_endpoint
from ralign.engine.config.run import GenRMRun, Run
from ralign.engine.config.validation import validate
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig
from ralign.engine.runtime.errors import UserError

# Groups of settings that build what judges and actors share -> those of the group that each stage reads for itself.
_SHARED = {
    "model": (),
    "parallel": (),
    "kernels": (),
    "memory": (),
    "generator": ("max_new_tokens", "verify"),
    "faults": ("max_skipped_updates",),
}


@dataclass(kw_only=True, slots=True)
class JudgesRun(GenRMRun):
    """All settings of the judges' training."""

    budgets: tuple[int, ...] = ()
    """The paper's own `budgets`, handed down so that a run with other ones counts as another run."""


@dataclass(kw_only=True, slots=True)
class PaperRun:
    """Settings of judges and actors; name, folder and seed are those of both."""

    name: str = "paper_in_miniature"
    """Folder of the run, inside `out`."""
    out: str = "runs"
    """Folder of all runs."""
    seed: int = 0
    """Fixes the worlds, the fresh weights and the sampling."""
    budgets: tuple[int, ...] = (10, 20, 40, 80)
    """RL steps after which a judge is taken out of its training to be measured and to pay an actor."""
    judges: JudgesRun = field(default_factory=JudgesRun)
    """The judges: warm start, RLVR and R-Align, evaluation."""
    actors: ActorRun = field(default_factory=ActorRun)
    """The actors: warm start, RL paid by a judge."""

    @property
    def folder(self) -> Path:
        """Where everything of this run goes."""
        return Path(self.out) / self.name

    def resolve(self, world_size: int) -> None:
        """Hand name, folder, seed, budgets and world down; UserError for what cannot work."""
        if not self.budgets or any(a >= b for a, b in zip((0, *self.budgets), self.budgets, strict=False)):
            raise UserError(f"budgets must rise from 1 or more, got {list(self.budgets)}")
        if self.judges.budgets not in ((), self.budgets):
            raise UserError(
                f"judges.budgets={list(self.judges.budgets)} is not to be given: budgets={list(self.budgets)} is"
            )
        self.judges.budgets, self.judges.num_steps = self.budgets, self.budgets[-1]
        self._share_world()
        self._check_shared()
        for name, run in (("judges", self.judges), ("actors", self.actors)):
            run.name, run.out, run.seed = name, str(self.folder), self.seed
            if run.data.train is not None:
                raise UserError(
                    f"{name}.data.train={run.data.train}: judges and actors live in JudgeWorld here"
                )
            try:
                validate(run, world_size)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
        self._check_genrm()
        check_actor(self.actors)

    def _share_world(self) -> None:
        """The judges' world is the actors' too: another would have notes in its tests that judges were trained on."""
        ours, theirs, default = self.judges.data.world, self.actors.data.world, JudgeWorldConfig()
        ours.seed = theirs.seed = self.seed
        for name in (item.name for item in fields(ours)):
            value = getattr(theirs, name)
            if value not in (getattr(ours, name), getattr(default, name)):
                raise UserError(
                    f"actors.data.world.{name}={value} differs from judges.data.world.{name}={getattr(ours, name)}: "
                    "both have one world, or judges would be trained on the actors' tests"
                )
        self.actors.data.world = replace(ours)

    def _check_shared(self) -> None:
        for group, free in _SHARED.items():
            ours, theirs = getattr(self.judges, group), getattr(self.actors, group)
            for name in (item.name for item in fields(ours) if item.name not in free):
                a, b = getattr(theirs, name), getattr(ours, name)
                if a != b:
                    raise UserError(
                        f"actors.{group}.{name}={a} differs from judges.{group}.{name}={b}: judges and actors are "
                        "one policy and one engine, so give both the same"
                    )
        longest = {name: _longest(run) for name, run in (("judges", self.judges), ("actors", self.actors))}
        if longest["actors"] > longest["judges"]:
            raise UserError(
                f"actors.data.max_prompt_tokens and the longest of the actors' answers are {longest['actors']} "
                f"tokens, the judges' {longest['judges']}: the engine is built for the judges'"
            )

    def _check_genrm(self) -> None:
        """What `check_actor` looks at once a GenRM has a name: here that comes late, when judges are trained."""
        from ralign.engine.judging.comparisons import Schedule

        actor, genrm, judges = self.actors.actor, self.actors.genrm, self.judges
        if genrm.model is not None:
            raise UserError(
                f"actors.genrm.model={genrm.model}: the judges that are trained here are the actors' GenRMs"
            )
        if genrm.kind == "endpoint":
            raise UserError(
                "actors.genrm.kind=endpoint cannot serve judges that are trained here: use process"
            )
        if genrm.template != judges.data.template:
            raise UserError(
                f"actors.genrm.template={genrm.template} differs from judges.data.template={judges.data.template}: "
                "a judge reads the prompt that it was trained on"
            )
        tensor = judges.generator.tensor or judges.parallel.tensor
        if genrm.kind == "process" and tensor > 1:
            raise UserError(
                f"actors.genrm.kind=process needs engines of one rank each, got a tensor-parallel size of {tensor}: "
                "use actors.genrm.kind=managed"
            )
        Schedule(
            scheme=actor.scheme,
            num_samples=self.actors.algo.num_samples,
            order=actor.order,
            value=actor.value,
        )
        try:
            check_endpoint(replace(genrm, model="GenRM"), needs_url=False)
        except UserError as error:
            raise UserError(f"actors.{error}") from None


def _longest(run: Run) -> int:
    """Tokens of the longest sequence that a run generates."""
    return run.data.max_prompt_tokens + max(run.generator.max_new_tokens, run.eval.max_new_tokens)
