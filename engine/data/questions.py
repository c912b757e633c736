"""What an actor is asked: how two answers are shown to a judge, and what an oracle says of one, where there is one."""

from dataclasses import dataclass, replace
from typing import Protocol

from ralign.engine.data.chat import as_text
from ralign.engine.data.pairs import Pair


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """An oracle's word on an answer."""

    quality: float  # 0 to 1
    cue: bool  # laid out as a judge may have learned to like it


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
        """None where nobody knows."""
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

    def prompt(self, tokenizer, *, chat: bool) -> str:
        """What an actor reads: the dialogue in the tokenizer's chat template, or as plain text with a line to begin.

        Raises:
            UserError: chat, and the tokenizer has no chat template.
        """
        turns = tuple((turn["role"], turn["content"]) for turn in self.pair.conversations)
        return as_text(turns, tokenizer, chat=chat) + ("" if chat else "\n\n")

    def compare(self, response_a: str, response_b: str) -> Pair:
        return replace(self.pair, response_A=response_a, response_B=response_b, gt_label="A", gt_judgment="")

    def grade(self, answer: str) -> Grade | None:
        return None
