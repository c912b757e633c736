"""The settings of an actor's training: a `Run`, and who pays the actor."""

from dataclasses import dataclass, field
from typing import Literal

from ralign.engine.config.run import Run


@dataclass(kw_only=True, slots=True)
class ActorConfig:
    """What an actor's answer is paid, and where its judge is."""

    genrm: str | None = None
    """The GenRM that judges: a Hugging Face folder; with judge=managed also ORG/NAME; or its name at an endpoint."""
    judge: Literal["process", "managed", "endpoint"] = "process"
    """Where it answers: an engine in the training processes, a server that the job starts, or judge.base_url."""
    template: str = "compact"
    """Judge prompt, the one that the GenRM was trained on: compact, full, or a file of your own."""
    scheme: Literal["reference", "circular", "all_pairs", "knockout"] = "circular"
    """Who is compared with whom in a group of answers."""
    seats: Literal["random", "both", "agree"] = "random"
    """Who sits first: by lot; both orders and their mean; both orders, and a tie where they disagree."""
    value: Literal["mean", "bradley_terry"] = "mean"
    """Reward from comparisons: the mean result, or (all_pairs) the chance of winning by a Bradley-Terry fit, if any."""
    num_tries: int = 1
    """Times that the GenRM is asked where its answer has no verdict."""
    length_penalty: float = 0.0
    """Weight of the dynamic length penalty within a group of answers, whoever pays; 0 for none."""
    watch_every: int = 0
    """Steps between measurements of how often the GenRM prefers the actor to fixed references; 0 for none."""
    kv_cache_gib: float = 0.25
    """KV cache of a judge in the training processes, GiB, on a machine without a GPU."""
    gpu_memory_utilization: float = 0.3
    """Share of a GPU's memory for a judge in the training processes."""
    error_rate: float = 0.2
    """Chance that a fact is wrong in a demonstration of the warm start."""
    habit_rate: float = 0.0
    """Chance that a fact about every second kind of item gets one fixed wrong value there: a habit, not noise."""
    cue_share: float = 0.5
    """Share of demonstrations in bullets, whatever their faults."""


@dataclass(kw_only=True, slots=True)
class ActorRun(Run):
    """All settings of an actor's training; `judge` says how the GenRM is sampled and served."""

    actor: ActorConfig = field(default_factory=ActorConfig)
    """Who pays the actor."""
