"""Prompts of an actor: the pair that a GenRM judges, and an oracle's grade where there is an oracle."""

from dataclasses import dataclass, replace
from typing import Protocol

from ralign.engine.data.chat import Messages
from ralign.engine.data.pairs import Pair
from ralign.engine.data.verdicts import visible


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """An oracle's grade of an answer."""

    quality: float  # 0 to 1
    cue: bool  # has the layout that a judge may prefer spuriously


class Question(Protocol):
    """One prompt of an actor."""

    @property
    def id(self) -> str: ...

    @property
    def reference(self) -> str | None:
        """The fixed answer of the `reference` scheme."""
        ...

    def compare(self, response_a: str, response_b: str) -> Pair:
        """The pair that a GenRM judges; its label and golden judgment are placeholders that no template shows."""
        ...

    def grade(self, answer: str) -> Grade | None:
        """None if there is no oracle."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenQuestion:
    """The dialogue of a preference pair; its better response is the reference."""

    pair: Pair

    @property
    def id(self) -> str:
        return self.pair.id

    @property
    def reference(self) -> str | None:
        return self.pair.response_A if self.pair.gt_label == "A" else self.pair.response_B

    def messages(self) -> Messages:
        """The dialogue; earlier answers are without their thinking, as chat templates leave it out."""
        return tuple(
            (turn["role"], visible(turn["content"]) if turn["role"] == "assistant" else turn["content"])
            for turn in self.pair.conversations
        )

    def compare(self, response_a: str, response_b: str) -> Pair:
        return replace(self.pair, response_A=response_a, response_B=response_b, gt_label="A", gt_judgment="")

    def grade(self, answer: str) -> Grade | None:
        return None
