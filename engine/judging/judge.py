"""The interface of a language model that judges: requests go in, futures of replies come out.

Three users share it: MetaRMs (`lm_metarm`), the writer of golden judgments (`annotate`), and rewards from a GenRM's
comparisons (`pairwise`). A failed call is a reply too, so that its caller counts it: no error of the network or of the
model crosses this interface as an exception.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ralign.engine.runtime.errors import UserError

if TYPE_CHECKING:  # it imports torch
    from ralign.engine.runtime.cluster import Cluster


@dataclass(kw_only=True, slots=True, frozen=True)
class Request:
    """A prompt. Equal requests share one reply in the cache."""

    messages: tuple[tuple[str, str], ...]  # (role, content), oldest first
    attempt: int = 0  # another number asks for another reply to the same messages
    greedy: bool = False  # at temperature 0, whatever the judge's is

    @staticmethod
    def of(prompt: str, attempt: int = 0) -> "Request":
        """One user message."""
        return Request(messages=(("user", prompt),), attempt=attempt)


@dataclass(kw_only=True, slots=True, frozen=True)
class Reply:
    """The result of a request.

    Attributes:
        text: the visible answer; "" if there is none.
        failed: the call failed for good.
        problem: why there is no usable text ("" if there is): the call failed, or the answer is empty or too long.
        finish_reason: "stop", "length" (cut off) or another of the server's.
        num_prompt_tokens, num_answer_tokens: what the server counted, tries without usable text included; for a cached
            reply those of the original call.
        tokens_estimated: the server reported no usable count, and one is estimated by length.
        cached: the reply came from the cache.
        too_long: the call failed since the model does not take a prompt of this length.
    """

    text: str = ""
    failed: bool = False
    problem: str = ""
    finish_reason: str = ""
    num_prompt_tokens: int = 0
    num_answer_tokens: int = 0
    tokens_estimated: bool = False
    cached: bool = False
    too_long: bool = False


@dataclass(kw_only=True, slots=True)
class Usage:
    """Counts since a judge was opened."""

    num_calls: int = 0  # requests with an answer from the model
    num_cached: int = 0  # replies from the cache
    num_retries: int = 0
    num_failed: int = 0  # requests without an answer
    num_prompt_tokens: int = 0  # of all tries that the server charged for; cached replies cost none
    num_answer_tokens: int = 0
    num_estimated: int = 0  # tries whose tokens are estimated by length


@dataclass(kw_only=True, slots=True, frozen=True)
class ClientContext:
    """The process that opens a judge or a MetaRM.

    Attributes:
        client_id: its name in the reply cache, which a restarted process must keep.
        num_clients: number of processes that share the budget, an equal part each.
        tokens_used: prompt and answer tokens that already count against this client's part of the budget.
        server_log: log file of a server that the job starts; every rank sees its folder.
        cluster: the training job; None outside one.
    """

    client_id: str = "main"
    num_clients: int = 1
    tokens_used: tuple[int, int] = (0, 0)
    server_log: Path = Path("judge_server.log")
    cluster: "Cluster | None" = None

    @classmethod
    def of_rank(cls, cluster: "Cluster", folder: Path, num_clients: int) -> "ClientContext":
        """This rank of a job whose run folder is `folder`."""
        return cls(
            client_id=f"{folder} rank{cluster.rank}",
            num_clients=num_clients,
            server_log=folder / "judge_server.log",
            cluster=cluster,
        )


class Judge(ABC):
    """A language model. `submit` may be called from any thread."""

    usage: Usage

    @property
    def stop_reason(self) -> str | None:
        """Why all further requests fail (the budget is spent, the key was refused), or None."""
        return None

    @property
    def tokens_used(self) -> tuple[int, int] | None:
        """Prompt and answer tokens that count against this client's part of the budget; None without a budget."""
        return None

    def restore_tokens_used(self, tokens: tuple[int, int]) -> None:
        """Count tokens of earlier processes against the budget; the larger of `tokens` and the known count holds.

        A judge that counts tokens overrides this.
        """
        assert self.tokens_used is None, "a judge with a token count must be able to restore it"

    @abstractmethod
    def submit(self, request: Request) -> Future[Reply]:
        """Sends a request without waiting. A future with an exception means a bug, never a failed call."""

    def awake(self) -> AbstractContextManager[None]:
        """A context to hold open while requests are under way: a server of the job may sleep outside it.

        Collective over the job. JudgeStopped, on every rank, if the server is gone for good.
        """
        return nullcontext()

    def close(self) -> None:  # noqa: B027, optional
        """Free all resources; requests under way fail. Collective where opening was."""


class JudgeStopped(UserError):
    """All further requests fail, for a reason that the user can mend: a spent budget, a refused key."""


def ask(judge: Judge, requests: Sequence[Request]) -> list[Reply]:
    """All replies, in the order of the requests."""
    return [future.result() for future in [judge.submit(request) for request in requests]]
