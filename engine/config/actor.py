"""The settings of an actor's training: a `Run`, the comparisons of answers, and the GenRM."""

from dataclasses import dataclass, field
from typing import Literal

from ralign.engine.config.judge import GenRMConfig
from ralign.engine.config.run import Run


@dataclass(kw_only=True, slots=True)
class ActorConfig:
    """Comparisons of an actor's answers, their rewards, and its warm start."""

    scheme: Literal["reference", "circular", "all_pairs", "knockout"] = "circular"
    """Which answers of a group are compared: each with a reference, neighbours in a circle, all pairs, a knockout."""
    order: Literal["random", "both", "agree"] = "random"
    """random: one order, at random; both: the mean of both orders; agree: both orders, a tie where they disagree."""
    value: Literal["mean", "bradley_terry"] = "mean"
    """Reward: the mean result, or (scheme=all_pairs) the probability of winning by a Bradley-Terry fit, if any."""
    length_penalty: float = 0.0
    """Weight of an answer's excess length over its group's, in parts of max_new_tokens, in its advantage; 0: none."""
    watch_every: int = 0
    """Steps between measurements of the GenRM's preference for the actor over fixed references; 0: none."""
    error_rate: float = 0.2
    """Probability that a fact is wrong in a demonstration of the warm start."""
    habit_rate: float = 0.0
    """Probability of one fixed wrong value in facts about every second kind of item: a habit, not noise."""
    cue_share: float = 0.5
    """Share of demonstrations in bullets, independent of their faults."""


@dataclass(kw_only=True, slots=True)
class ActorRun(Run):
    """Settings of the training of an actor."""

    actor: ActorConfig = field(default_factory=ActorConfig)
    """Comparisons of an actor's answers, their rewards, and the warm start."""
    genrm: GenRMConfig = field(default_factory=GenRMConfig)
    """The GenRM that compares the answers."""
