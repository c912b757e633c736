"""Any OpenAI-compatible server as a `Judge`, through the official asynchronous client.

One thread runs an event loop with all requests of this process. Requests without a free slot wait in a queue, not as
tasks.

    event                                                        reply
    timeout, lost connection, 408, 409, 425, 429, 5xx,           retries with back-off and jitter (not before a
        broken HTTP, a body that is not a completion             Retry-After header's time), then `failed`
    400, 413, 422, a redirect and other refusals                 `failed` at once; `stop_reason` if no request
                                                                 of the first ones is answered
    401, 402, 403, 404: wrong key, no credit, wrong model        `failed`, and `stop_reason` for all later requests
        or address; also as an error in a body of status 200
    an answer that was cut off before its text                   `failed`; its tokens count
    an empty answer, or one of more than MAX_REPLY_BYTES         an answer without text, with its `problem`
    budget spent, or an error of the cache                       `failed` without a call, and `stop_reason`

Every request ends: a try within `timeout_s`, a pause within `max_backoff_s` or MAX_RETRY_AFTER_S. Tokens of a try that
brings no usable text count against the budget if the server reports them.
"""

import asyncio
import logging
import random
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

from ralign.engine.config.judge import EndpointConfig, api_key_of, extra_fields
from ralign.engine.judging.cache import ReplyCache, cache_key
from ralign.engine.judging.client import (
    GREEDY,
    Address,
    ChatClient,
    Failure,
    estimated_tokens,
    log_errors_by_class,
)
from ralign.engine.judging.client_process import ClientProcess
from ralign.engine.judging.endpoint_advice import advice
from ralign.engine.judging.judge import ClientContext, Judge, Reply, Request, Usage

logger = logging.getLogger(__name__)

MAX_RETRY_AFTER_S = 120.0
REQUESTS_PER_PROCESS = 128  # under way at once; a process completes about 1,200 requests a second
NUM_REFUSED = 8  # refusals with the same sentence, before any answer, that stop the endpoint
_FIRST_BACKOFF_S = 0.5
_MAX_DOUBLINGS = 40
_RECONNECT_S = 1.0  # between tries while a managed server restarts
_COMMIT_S = 0.005  # replies of this period share a transaction
_CLOSED = Reply(failed=True, problem="the judge was closed")
_ALONE = ClientContext()


class Endpoint(Judge):
    """A `Judge` behind HTTP."""

    def __init__(
        self,
        config: EndpointConfig,
        context: ClientContext = _ALONE,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        model_key: str | None = None,
        patience_s: float = 0.0,
        use_proxy: bool = True,
        failure: Callable[[], str | None] = lambda: None,
    ):
        """Nothing is sent yet.

        Args:
            config: the endpoint's settings.
            context: this process among those that share the budget.
            base_url, api_key: override the configured ones.
            model_key: identifies the model in the cache; the configured name if None.
            patience_s: time for which one request waits for an unreachable server.
            use_proxy: whether the environment's proxies apply to this server.
            failure: why an unreachable server will not come back, or None.
        """
        self.config, self.patience_s, self._failure = config, patience_s, failure
        self.model_key, self.num_clients = model_key or config.model, context.num_clients
        self.client_id = f"{context.client_id} {self.model_key}"
        self.usage = Usage()
        self._stop_reason: str | None = None
        self._body = _shared_body(config)
        self._cache = ReplyCache(config.cache) if config.cache else None
        self._tokens_used = context.tokens_used
        if self._cache:
            self.restore_tokens_used(self._cache.tokens_used(self.client_id))
        self._uncommitted: list[tuple[bytes, Reply, asyncio.Future]] = []
        self._queue: deque[tuple[Request, Future[Reply]]] = deque()
        self._is_scheduled = False  # whether a call of _dispatch is on its way to the loop
        self._in_flight = 0
        self._is_closed = False
        self._num_charged = 0  # tries that cost tokens
        self._refusals: Counter[str] = (
            Counter()
        )  # sentence -> number of refused requests before the first answer
        self._waiting: dict[
            bytes, list[Future[Reply]]
        ] = {}  # cache key of a request under way -> its futures
        self._sending: set[asyncio.Task[Reply]] = set()
        url = base_url or config.base_url
        assert url is not None, "check_endpoint refuses it"
        self._address = Address(
            base_url=url,
            api_key=api_key or api_key_of(config),
            key_name=config.api_key_env,
            setting=config.SETTING,
            timeout_s=config.timeout_s,
            num_connections=config.concurrency,
            use_proxy=use_proxy,
            body=self._body,
        )
        self._loop = asyncio.new_event_loop()
        log_errors_by_class(self._loop)
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    async def _open(self) -> None:
        """Make the clients, which belong to the loop; several take requests in turn."""
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
    def tokens_used(self) -> tuple[int, int]:
        return self._tokens_used

    def restore_tokens_used(self, tokens: tuple[int, int]) -> None:
        self._tokens_used = max(self._tokens_used, tokens, key=sum)

    def submit(self, request: Request) -> Future[Reply]:
        future: Future[Reply] = Future()
        self._queue.append((request, future))
        if self._is_closed:
            self._close_queue()
        elif not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon_threadsafe(self._dispatch)
        return future

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._close_queue()  # for a thread that submits meanwhile
        if self._cache:
            self._cache.close()

    async def _end(self) -> None:
        self._is_closed = True
        self._close_queue()
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        self._commit()
        for client in self._clients:
            await client.close()

    def _close_queue(self) -> None:
        """Reply to all requests that were not sent. Called when `_is_closed` is set, by any thread."""
        with suppress(IndexError):
            while True:
                _, future = self._queue.popleft()
                if future.set_running_or_notify_cancel():
                    future.set_result(_CLOSED)

    def _dispatch(self) -> None:
        """Take requests from the queue while there are free slots: reply from the cache, or send."""
        self._is_scheduled = False  # first, so that a later `submit` schedules another call
        while self._queue and not self._is_closed and self._in_flight < self.config.concurrency:
            request, future = self._queue.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            body = self._body | ({"temperature": GREEDY} if request.greedy else {})
            key = cache_key(
                model=self.model_key, body=body, messages=request.messages, attempt=request.attempt
            )
            if key in self._waiting:
                self._waiting[key].append(future)
            elif reply := self._cached(key):
                self.usage.num_cached += 1
                future.set_result(reply)
            elif reason := self._refusal(request):
                self.usage.num_failed += 1
                future.set_result(Reply(failed=True, problem=reason))
            else:
                self._in_flight += 1
                self._waiting[key] = [future]
                task = self._loop.create_task(self._send(key, request))
                self._sending.add(task)
                task.add_done_callback(partial(self._deliver, key))

    def _cached(self, key: bytes) -> Reply | None:
        try:
            return self._cache.get(key) if self._cache else None
        except sqlite3.Error as error:
            self._stop(f"the cache {self.config.cache} cannot be read: {error}")

    def _stop(self, reason: str) -> None:
        """The first reason stays."""
        self._stop_reason = self._stop_reason or reason

    def _refusal(self, request: Request) -> str | None:
        """Why this request may not be sent, or None."""
        if self._stop_reason is None and (reason := self._over_budget(request, self._in_flight)):
            self._stop(reason)
        return self._stop_reason

    def _deliver(self, key: bytes, task: asyncio.Task[Reply]) -> None:
        """The task's reply to all futures of its request."""
        self._sending.discard(task)
        for future in self._waiting.pop(key):
            if not task.cancelled() and (error := task.exception()):
                future.set_exception(error)
            else:
                future.set_result(_CLOSED if task.cancelled() else task.result())

    async def _send(self, key: bytes, request: Request) -> Reply:
        try:
            reply = await self._with_retries(key, request)
        finally:
            self._in_flight -= 1
            self._loop.call_soon(self._dispatch)
        self.usage.num_failed += reply.failed
        return reply

    async def _with_retries(self, key: bytes, request: Request) -> Reply:
        """The reply, with the tokens of all tries."""
        start_s, retries = time.monotonic(), 0
        num_prompt = num_answer = 0  # of tries without usable text

        def counted(reply: Reply) -> Reply:
            if not num_prompt and not num_answer:
                return reply
            return replace(
                reply,
                num_prompt_tokens=num_prompt + reply.num_prompt_tokens,
                num_answer_tokens=num_answer + reply.num_answer_tokens,
            )

        while True:
            try:
                reply = await next(self._next_client).ask(request.messages, request.attempt, request.greedy)
            except Failure as failure:
                num_prompt += failure.num_prompt_tokens
                num_answer += failure.num_answer_tokens
                if failure.num_prompt_tokens or failure.num_answer_tokens:
                    unusable = Reply(
                        problem=failure.problem,
                        num_prompt_tokens=failure.num_prompt_tokens,
                        num_answer_tokens=failure.num_answer_tokens,
                    )
                    await self._count(key, unusable)
                waited_s = time.monotonic() - start_s
                if failure.unreachable and (reason := self._failure()):
                    self._stop(reason)
                    return counted(Reply(failed=True, problem=reason))
                if failure.unreachable and waited_s < self.patience_s and self._stop_reason is None:
                    await asyncio.sleep(_RECONNECT_S * random.uniform(0.5, 1))
                    continue
                if reason := self._gives_up(failure, retries):
                    return counted(Reply(failed=True, problem=reason, too_long=failure.too_long))
                await asyncio.sleep(self._pause_s(retries, failure.after_s))
                if (reason := self._over_budget(request, self._in_flight - 1)) is not None:
                    self._stop(reason)
                    return counted(Reply(failed=True, problem=reason))
                retries += 1
                self.usage.num_retries += 1
            else:
                self.usage.num_calls += 1
                await self._count(key, reply)
                return counted(reply)

    def _gives_up(self, failure: Failure, retries: int) -> str | None:
        """Why there is no other try after this failure, or None. Stops the endpoint if no request can succeed."""
        if failure.stops:
            self._stop(failure.problem)
        if failure.refused_status is not None and not self.usage.num_calls:
            self._refusals[failure.problem] += 1
            num_refused = self._refusals.total()
            # A few requests may be too long, and refused before others are answered: such sentences differ.
            if self._refusals[failure.problem] >= NUM_REFUSED or num_refused >= (
                NUM_REFUSED + self.config.concurrency
            ):
                self._stop(
                    f"{failure.problem}; the first {num_refused} requests were refused{advice(self.config, failure)}"
                )
        if failure.retry and retries < self.config.num_retries and self._stop_reason is None:
            return None
        return failure.problem + (f" (after {retries} retries)" if retries else "")

    async def _count(self, key: bytes, reply: Reply) -> None:
        """Count the tokens of one try, on disk too; a usable reply is cached."""
        if reply.tokens_estimated and not self.usage.num_estimated:
            logger.warning(
                "%s reports no usable token counts: tokens, budget and cost count one token for four characters",
                self._address.base_url,
            )
        self.usage.num_estimated += reply.tokens_estimated
        self.usage.num_prompt_tokens += reply.num_prompt_tokens
        self.usage.num_answer_tokens += reply.num_answer_tokens
        self._num_charged += 1
        num_prompt, num_answer = self._tokens_used
        self._tokens_used = (num_prompt + reply.num_prompt_tokens, num_answer + reply.num_answer_tokens)
        if self._cache:
            await self._save(key, reply)

    def _pause_s(self, retries: int, after_s: float | None) -> float:
        backoff_s = _FIRST_BACKOFF_S * 2 ** min(retries, _MAX_DOUBLINGS)
        backoff_s = min(self.config.max_backoff_s, backoff_s) * random.uniform(0.5, 1)
        return max(backoff_s, min(after_s or 0.0, MAX_RETRY_AFTER_S))

    def _over_budget(self, request: Request, num_others: int) -> str | None:
        """Why this request would exceed the budget, or None.

        Counts tokens used, the other requests under way (at the mean so far) and the request's own prompt.
        """
        config, (num_in, num_out) = self.config, self._tokens_used
        share = num_others / max(self._num_charged, 1)
        num_in = num_in + share * self.usage.num_prompt_tokens + estimated_tokens(request.messages)
        num_out = num_out + share * self.usage.num_answer_tokens
        if config.budget_tokens is not None and num_in + num_out > config.budget_tokens / self.num_clients:
            return f"the budget of {config.budget_tokens} tokens is spent"
        cost = (num_in * config.price_in + num_out * config.price_out) / 1e6
        if config.budget_cost is not None and cost > config.budget_cost / self.num_clients:
            return f"the budget of {config.budget_cost:g} is spent"
        return None

    async def _save(self, key: bytes, reply: Reply) -> None:
        """Write to the cache; returns when the reply is on disk."""
        if not self._uncommitted:
            self._loop.call_later(_COMMIT_S, self._commit)
        saved = self._loop.create_future()
        self._uncommitted.append((key, reply, saved))
        await saved

    def _commit(self) -> None:
        waiting, self._uncommitted = self._uncommitted, []
        try:
            if waiting:
                assert self._cache is not None
                self._cache.put(self.client_id, [(key, reply) for key, reply, _ in waiting])
        except (
            sqlite3.Error
        ) as error:  # such as a full disk: deliver these replies, and send no more requests
            self._stop(f"the cache {self.config.cache} cannot be written: {error}")
        finally:
            for *_, saved in waiting:
                if not saved.done():
                    saved.set_result(None)


def _shared_body(config: EndpointConfig) -> dict[str, Any]:
    """The fields that all requests share."""
    body = {
        "model": config.model,
        "temperature": config.temperature,
        "max_completion_tokens": config.max_new_tokens,
    }
    return {name: value for name, value in (body | extra_fields(config)).items() if value is not None}
