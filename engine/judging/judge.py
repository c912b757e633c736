"""The interface of a language model that is asked: a request goes in, a reply comes out, later.

Three users share it: MetaRMs (`lm_metarm`), the writer of golden judgments (`annotate`), and rewards that a
GenRM gives to an actor. A call that fails is a reply too: no exception crosses this interface, so that a lost
sample is counted by whoever asked.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from ralign.engine.runtime.errors import UserError


@dataclass(kw_only=True, slots=True, frozen=True)
class Request:
    """What is asked. Requests that are equal share one answer from the cache."""

    messages: tuple[tuple[str, str], ...]  # (role, content), oldest first
    attempt: int = 0  # asks for another answer to the same messages

    @staticmethod
    def of(prompt: str, attempt: int = 0) -> "Request":
        """One user message."""
        return Request(messages=(("user", prompt),), attempt=attempt)


@dataclass(kw_only=True, slots=True, frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: the visible answer; "" if there is none.
        failed: no answer could be had: the call failed for good.
        problem: why there is no usable text ("" if there is): of a failed call, or of an answer that was empty
            or too long.
        finish_reason: "stop", "length" (cut off) or what the server says.
        num_prompt_tokens, num_answer_tokens: as the server counted; what a cached reply once cost.
        cached: it was paid for earlier.
    """

    text: str = ""
    failed: bool = False
    problem: str = ""
    finish_reason: str = ""
    num_prompt_tokens: int = 0
    num_answer_tokens: int = 0
    cached: bool = False


@dataclass(kw_only=True, slots=True)
class Usage:
    """What one asker used since it was made."""

    num_calls: int = 0  # requests sent that got an answer
    num_cached: int = 0  # answers that came from the cache
    num_retries: int = 0
    num_failed: int = 0  # requests without an answer
    num_prompt_tokens: int = 0  # of the calls; cached answers cost none
    num_answer_tokens: int = 0


class Judge(Protocol):
    """A language model that can be asked from any thread."""

    usage: Usage

    @property
    def stop_reason(self) -> str | None:
        """Why nothing more will be answered (budget spent, key refused), or None."""
        ...

    def submit(self, request: Request) -> Future[Reply]:
        """Asks without waiting; the future never raises."""
        ...

    def close(self) -> None: ...


def awake(judge: Judge) -> AbstractContextManager[None]:
    """To be held open while `judge` is asked, by all ranks: one with a server of the job's own may sleep otherwise."""
    return judge.awake() if hasattr(judge, "awake") else nullcontext()


class JudgeStopped(UserError):
    """Nothing more will be answered, for a reason that the user can mend: a spent budget, a refused key."""


def ask(judge: Judge, requests: Sequence[Request]) -> list[Reply]:
    """Replies in order, when all are there."""
    return [future.result() for future in [judge.submit(request) for request in requests]]
