"""Any OpenAI-compatible server as a `Judge`, through the official asynchronous client.

One thread runs an event loop with all requests of this process; those that find no free slot wait in a queue, not
as tasks. What becomes of a request:

    what the server does                                         reply
    timeout, lost connection, 408, 409, 425, 429, 5xx,           retried with back-off and jitter (a Retry-After
        a body that is no completion                             header is kept to), then `failed`
    400, 413, 422 and other refusals of this request             `failed` at once
    401, 403, 404: key, model or address are wrong               `failed`, and `stop_reason` for all that follow
    an empty answer, or one of more than MAX_REPLY_BYTES         an answer without text, with its `problem`
    budget spent, or the cache out of order                      `failed` without being sent, and `stop_reason`
"""

import asyncio
import os
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import cycle
from typing import Any

from ralign.engine.config.judge import EndpointConfig, extra_fields
from ralign.engine.judging.cache import ReplyCache, cache_key
from ralign.engine.judging.client import Address, ChatClient, Failure, estimated_tokens
from ralign.engine.judging.client_process import ClientProcess
from ralign.engine.judging.judge import Reply, Request, Usage

MAX_RETRY_AFTER_S = 120.0
REQUESTS_PER_PROCESS = 128  # under way: a process gets through about 1,200 requests a second
_FIRST_BACKOFF_S = 0.5
_RECONNECT_S = 1.0  # between tries while a managed server is being started again
_COMMIT_S = 0.005  # answers that arrive together are written together
_CLOSED = Reply(failed=True, problem="the judge was closed")


class Endpoint:
    """A `Judge` behind HTTP."""

    def __init__(
        self,
        config: EndpointConfig,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        model_key: str | None = None,
        asker: str = "main",
        num_askers: int = 1,
        patience_s: float = 0.0,
        spent: tuple[int, int] = (0, 0),
        use_proxy: bool = True,
        lost: Callable[[], str | None] = lambda: None,
    ):
        """Nothing is sent yet.

        Args:
            base_url, api_key: in place of the configured ones.
            model_key: what tells this model from others in the cache; the configured name if None.
            asker, num_askers: this asker's name, and how many share the budget, each an equal part.
            patience_s: how long one request waits for a server that cannot be reached.
            use_proxy: whether the proxies of the environment are for this server too.
            lost: why a server that cannot be reached will not come back, or None.
            spent: prompt and answer tokens that count against the budget already, unless the cache knows of
                more.
        """
        self.config, self.patience_s, self.lost = config, patience_s, lost
        self.model_key, self.num_askers = model_key or config.model, num_askers
        self.asker = f"{asker} {self.model_key}"
        self.usage = Usage()
        self._stop_reason: str | None = None
        self._body = _shared_body(config)
        self._cache = ReplyCache(config.cache) if config.cache else None
        self._spent = max(spent, self._cache.spent(self.asker), key=sum) if self._cache else spent
        self._uncommitted: list[tuple[bytes, Reply, asyncio.Future]] = []
        self._queue: deque[tuple[Request, Future[Reply]]] = deque()
        self._is_called = False  # whether the loop is going to look at the queue
        self._in_flight = 0
        self._asked: dict[bytes, list[Future[Reply]]] = {}  # who waits for each request under way
        self._sending: set[asyncio.Task[Reply]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()
        self._address = Address(
            base_url=base_url or config.base_url,
            api_key=api_key or os.environ.get(config.api_key_env) or "none",
            key_name=config.api_key_env,
            timeout_s=config.timeout_s,
            num_connections=config.concurrency,
            use_proxy=use_proxy,
            body=self._body,
        )
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    async def _open(self) -> None:
        """Clients belong to the loop; with several, requests go to each in turn."""
        num_processes = self.config.num_processes
        if num_processes is None:
            num_processes = self.config.concurrency // REQUESTS_PER_PROCESS
        self._clients = [ClientProcess(self._address) for _ in range(num_processes)]
        self._clients = self._clients or [ChatClient(self._address)]
        self._next_client = cycle(self._clients)

    @property
    def stop_reason(self) -> str | None:
        return self._stop_reason

    @property
    def spent(self) -> tuple[int, int]:
        """Prompt and answer tokens that count against this asker's part of the budget."""
        return self._spent

    @spent.setter
    def spent(self, tokens: tuple[int, int]) -> None:
        """What is known from elsewhere, a checkpoint say; never less than what is known here."""
        self._spent = max(self._spent, tokens, key=sum)

    def submit(self, request: Request) -> Future[Reply]:
        future: Future[Reply] = Future()
        self._queue.append((request, future))
        if not self._is_called:
            self._is_called = True
            self._loop.call_soon_threadsafe(self._dispatch)
        return future

    def close(self) -> None:
        """Drops what is under way."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._cache:
            self._cache.close()

    async def _end(self) -> None:
        for _, future in self._queue:
            if future.set_running_or_notify_cancel():
                future.set_result(_CLOSED)
        self._queue.clear()
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        self._commit()
        for client in self._clients:
            await client.close()

    def _dispatch(self) -> None:
        """Takes from the queue while there are free slots: a reply from the cache, or a request on its way."""
        self._is_called = False  # before looking: what is appended from now on calls again
        while self._queue and self._in_flight < self.config.concurrency:
            request, future = self._queue.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            key = cache_key(
                model=self.model_key, body=self._body, messages=request.messages, attempt=request.attempt
            )
            if key in self._asked:
                self._asked[key].append(future)
            elif reply := self._known(key):
                self.usage.num_cached += 1
                future.set_result(reply)
            elif reason := self._why_not(request):
                self.usage.num_failed += 1
                future.set_result(Reply(failed=True, problem=reason))
            else:
                self._in_flight += 1
                self._asked[key] = [future]
                task = self._loop.create_task(self._send(key, request))
                self._sending.add(task)
                task.add_done_callback(partial(self._pass_on, key))

    def _known(self, key: bytes) -> Reply | None:
        try:
            return self._cache.get(key) if self._cache else None
        except sqlite3.Error as error:
            self._stop(f"the cache {self.config.cache} cannot be read: {error}")

    def _stop(self, reason: str) -> None:
        """The first reason is the one that is told."""
        self._stop_reason = self._stop_reason or reason

    def _why_not(self, request: Request) -> str | None:
        """Why this request is not sent, or None."""
        if self._stop_reason is None and (reason := self._over_budget(request)):
            self._stop(reason)
        return self._stop_reason

    def _pass_on(self, key: bytes, task: asyncio.Task[Reply]) -> None:
        """To everybody who asked the same."""
        self._sending.discard(task)
        for future in self._asked.pop(key):
            if not task.cancelled() and (error := task.exception()):
                future.set_exception(error)
            else:
                future.set_result(_CLOSED if task.cancelled() else task.result())

    async def _send(self, key: bytes, request: Request) -> Reply:
        try:
            reply = await self._with_retries(request)
        finally:
            self._in_flight -= 1
            self._loop.call_soon(self._dispatch)
        if reply.failed:
            self.usage.num_failed += 1
            return reply
        self.usage.num_calls += 1
        self.usage.num_prompt_tokens += reply.num_prompt_tokens
        self.usage.num_answer_tokens += reply.num_answer_tokens
        self._spent = (self._spent[0] + reply.num_prompt_tokens, self._spent[1] + reply.num_answer_tokens)
        if self._cache:
            await self._keep(key, reply)
        return reply

    async def _with_retries(self, request: Request) -> Reply:
        start_s, retries = time.monotonic(), 0
        while True:
            try:
                return await next(self._next_client).ask(request.messages, request.attempt)
            except Failure as failure:
                waited_s = time.monotonic() - start_s
                if failure.unreachable and (reason := self.lost()):
                    self._stop(reason)
                    return Reply(failed=True, problem=reason)
                if failure.unreachable and waited_s < self.patience_s and self._stop_reason is None:
                    await asyncio.sleep(_RECONNECT_S * random.uniform(0.5, 1))
                    continue
                if not failure.retry or retries == self.config.num_retries:
                    if failure.stops:
                        self._stop(failure.problem)
                    tries = f" (after {retries} retries)" if retries else ""
                    return Reply(failed=True, problem=failure.problem + tries)
                await asyncio.sleep(self._pause_s(retries, failure.after_s))
                retries += 1
                self.usage.num_retries += 1

    def _pause_s(self, retries: int, after_s: float | None) -> float:
        backoff_s = min(self.config.max_backoff_s, _FIRST_BACKOFF_S * 2**retries) * random.uniform(0.5, 1)
        return max(backoff_s, min(after_s or 0.0, MAX_RETRY_AFTER_S))

    def _over_budget(self, request: Request) -> str | None:
        """Why this request may not be sent: what is spent, under way (by the mean so far) and its own prompt."""
        config, (num_in, num_out) = self.config, self._spent
        calls = max(self.usage.num_calls, 1)
        factor = 1 + self._in_flight / calls if self.usage.num_calls else 1
        num_in = num_in + (factor - 1) * self.usage.num_prompt_tokens + estimated_tokens(request.messages)
        num_out = num_out + (factor - 1) * self.usage.num_answer_tokens
        if config.budget_tokens is not None and num_in + num_out > config.budget_tokens / self.num_askers:
            return f"the budget of {config.budget_tokens} tokens is spent"
        cost = (num_in * config.price_in + num_out * config.price_out) / 1e6
        if config.budget_cost is not None and cost > config.budget_cost / self.num_askers:
            return f"the budget of {config.budget_cost:g} is spent"
        return None

    async def _keep(self, key: bytes, reply: Reply) -> None:
        """Returns when the reply is safe on disk."""
        if not self._uncommitted:
            self._loop.call_later(_COMMIT_S, self._commit)
        kept = self._loop.create_future()
        self._uncommitted.append((key, reply, kept))
        await kept

    def _commit(self) -> None:
        waiting, self._uncommitted = self._uncommitted, []
        try:
            if waiting:
                self._cache.put(self.asker, [(key, reply) for key, reply, _ in waiting])
        except sqlite3.Error as error:  # a full disk, say: these answers are used, and no more are bought
            self._stop(f"the cache {self.config.cache} cannot be written: {error}")
        for *_, kept in waiting:
            if not kept.done():
                kept.set_result(None)


def _shared_body(config: EndpointConfig) -> dict[str, Any]:
    """What all requests have in common."""
    body = {
        "model": config.model,
        "temperature": config.temperature,
        "max_completion_tokens": config.max_new_tokens,
    }
    return {name: value for name, value in (body | extra_fields(config)).items() if value is not None}
