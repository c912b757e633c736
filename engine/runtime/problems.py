"""Mistakes that are reported together, so that a user corrects all of them at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from ralign.engine.runtime.errors import UserError


class Mistakes(UserError):
    """Several mistakes; `messages` has one for each."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__(f"{len(messages)} mistakes: {'; '.join(messages)}")
        self.messages = messages


class Problems:
    """Collects mistakes; each message is kept once, in order."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def require(self, condition: bool, message: str) -> bool:
        """Note the message unless the condition holds; returns the condition, for checks that depend on it."""
        if not condition:
            self.add(message)
        return condition

    def add(self, message: str) -> None:
        """Note one mistake."""
        if message not in self.messages:
            self.messages.append(message)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Note a UserError of the block, which ends there, and go on after the block."""
        try:
            yield
        except Mistakes as error:
            for message in error.messages:
                self.add(message)
        except UserError as error:
            self.add(str(error))

    def check(self) -> None:
        """Raises UserError with all mistakes, if there are any."""
        if len(self.messages) > 1:
            raise Mistakes(self.messages)
        if self.messages:
            raise UserError(self.messages[0])
