"""The settings of the paper in miniature: one tree for its judges, one for its actors.

Judges and actors use one policy, one engine and one world, one after the other. Settings that build these must be equal
in both trees.
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

# Group of settings that must be equal for judges and actors -> its settings that may differ.
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
    """`budgets` of the paper, copied so that other budgets count as another run."""


@dataclass(kw_only=True, slots=True)
class PaperRun:
    """Settings of judges and actors; both use name, folder and seed."""

    name: str = "paper_in_miniature"
    """Folder of the run, inside `out`."""
    out: str = "runs"
    """Folder of all runs."""
    seed: int = 0
    """Seed of the worlds, the initial weights and the sampling."""
    budgets: tuple[int, ...] = (10, 20, 40, 80)
    """RL steps after which a judge is exported, evaluated, and used to train an actor."""
    judges: JudgesRun = field(default_factory=JudgesRun)
    """The judges: warm start, RLVR and R-Align, evaluation."""
    actors: ActorRun = field(default_factory=ActorRun)
    """The actors: warm start, RL against a judge."""

    @property
    def folder(self) -> Path:
        """Folder of all outputs of this run."""
        return Path(self.out) / self.name

    def resolve(self, world_size: int) -> None:
        """Copy name, folder, seed, budgets and world into both trees; UserError for settings that cannot work."""
        if not self.budgets or any(a >= b for a, b in zip((0, *self.budgets), self.budgets, strict=False)):
            raise UserError(f"budgets must rise from 1 or more, got {list(self.budgets)}")
        if self.judges.budgets not in ((), self.budgets):
            raise UserError(
                f"judges.budgets={list(self.judges.budgets)} differs from budgets={list(self.budgets)}:"
                " give budgets only"
            )
        self.judges.budgets, self.judges.num_steps = self.budgets, self.budgets[-1]
        self._share_world()
        self._check_shared()
        for name, run in (("judges", self.judges), ("actors", self.actors)):
            run.name, run.out, run.seed = name, str(self.folder), self.seed
            if run.data.train is not None:
                raise UserError(f"{name}.data.train={run.data.train}: this recipe supports JudgeWorld only")
            try:
                validate(run, world_size)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
        self._check_genrm()
        check_actor(self.actors)

    def _share_world(self) -> None:
        """Copy the judges' world to the actors: another world could test them on notes of the judges' training."""
        ours, theirs, default = self.judges.data.world, self.actors.data.world, JudgeWorldConfig()
        ours.seed = theirs.seed = self.seed
        for name in (item.name for item in fields(ours)):
            value = getattr(theirs, name)
            if value not in (getattr(ours, name), getattr(default, name)):
                raise UserError(
                    f"actors.data.world.{name}={value} differs from judges.data.world.{name}={getattr(ours, name)}: "
                    "both need one world, otherwise judges could be trained on the actors' tests"
                )
        self.actors.data.world = replace(ours)

    def _check_shared(self) -> None:
        for group, free in _SHARED.items():
            ours, theirs = getattr(self.judges, group), getattr(self.actors, group)
            for name in (item.name for item in fields(ours) if item.name not in free):
                a, b = getattr(theirs, name), getattr(ours, name)
                if a != b:
                    raise UserError(
                        f"actors.{group}.{name}={a} differs from judges.{group}.{name}={b}: judges and actors use "
                        "one policy and one engine, so give both the same value"
                    )
        longest = {name: _longest(run) for name, run in (("judges", self.judges), ("actors", self.actors))}
        if longest["actors"] > longest["judges"]:
            raise UserError(
                f"actors.data.max_prompt_tokens and the longest of the actors' answers are {longest['actors']} "
                f"tokens, the judges' {longest['judges']}: the engine is built for the judges' length"
            )

    def _check_genrm(self) -> None:
        """The checks of `check_actor` for a run with a GenRM, which has no folder before the judges are trained."""
        from ralign.engine.judging.comparisons import Schedule

        actor, genrm, judges = self.actors.actor, self.actors.genrm, self.judges
        if genrm.model is not None:
            raise UserError(
                f"actors.genrm.model={genrm.model}: cannot be set: the judges trained by this run are the GenRMs"
            )
        if genrm.kind == "endpoint":
            raise UserError(
                "actors.genrm.kind=endpoint cannot serve the judges trained by this run: use process"
            )
        if genrm.template != judges.data.template:
            raise UserError(
                f"actors.genrm.template={genrm.template} differs from judges.data.template={judges.data.template}: "
                "a judge needs the prompt of its training"
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
    """Tokens of the longest sequence of a run."""
    return run.data.max_prompt_tokens + max(run.generator.max_new_tokens, run.eval.max_new_tokens)
