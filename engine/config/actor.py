"""The settings of an actor's training: a `Run`, and who pays the actor."""

from dataclasses import dataclass, field
from typing import Literal

from ralign.engine.config.judge import GenRMConfig
from ralign.engine.config.run import Run


@dataclass(kw_only=True, slots=True)
class ActorConfig:
    """What an actor's answer is paid, and where its judge is."""

    scheme: Literal["reference", "circular", "all_pairs", "knockout"] = "circular"
    """Who is compared with whom in a group of answers."""
    order: Literal["random", "both", "agree"] = "random"
    """Order of two answers: random; both orders and their mean; both orders, and a tie where they disagree."""
    value: Literal["mean", "bradley_terry"] = "mean"
    """Reward from comparisons: the mean result, or (all_pairs) the chance of winning by a Bradley-Terry fit, if any."""
    length_penalty: float = 0.0
    """Weight of the dynamic length penalty within a group of answers, whoever pays; 0 for none."""
    watch_every: int = 0
    """Steps between measurements of how often the GenRM prefers the actor to fixed references; 0 for none."""
    error_rate: float = 0.2
    """Chance that a fact is wrong in a demonstration of the warm start."""
    habit_rate: float = 0.0
    """Chance that a fact about every second kind of item gets one fixed wrong value there: a habit, not noise."""
    cue_share: float = 0.5
    """Share of demonstrations in bullets, whatever their faults."""


@dataclass(kw_only=True, slots=True)
class ActorRun(Run):
    """Settings of the training of an actor."""

    actor: ActorConfig = field(default_factory=ActorConfig)
    """Comparisons of an actor's answers, and the reward that they make."""
    genrm: GenRMConfig = field(default_factory=GenRMConfig)
    """The GenRM that compares them."""
