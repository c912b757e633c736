"""Any OpenAI-compatible server as a `Judge`, through the official asynchronous client.

One thread runs an event loop with all requests of this process. What becomes of a request:

    what the server does                                         reply
    timeout, lost connection, 408, 409, 425, 429, 5xx,           retried with back-off and jitter (a Retry-After
        a body that is no completion                             header is kept to), then `failed`
    400, 413, 422 and other refusals of this request             `failed` at once
    401, 403, 404: key, model or address are wrong               `failed`, and `stop_reason` for all that follow
    an empty answer, or one of more than MAX_REPLY_BYTES         an answer without text, with its `problem`
    budget spent                                                 `failed` without being sent, and `stop_reason`
"""

import asyncio
import json
import os
import random
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from ralign.engine.judging.cache import ReplyCache, cache_key
from ralign.engine.judging.config import EndpointConfig, extra_fields
from ralign.engine.judging.judge import Reply, Request, Usage

MAX_REPLY_BYTES = 1 << 20
MAX_RETRY_AFTER_S = 120.0
_FIRST_BACKOFF_S = 0.5
_RECONNECT_S = 1.0  # between tries while a managed server is being started again
# Headers in which the client tells of this machine: nobody's business, and a third of the time of a request.
_TOLD = tuple(f"X-Stainless-{name}" for name in ("Lang", "Package-Version", "OS", "Arch", "Async"))
_TOLD += ("X-Stainless-Runtime", "X-Stainless-Runtime-Version")
_TOLD_PER_CALL = ("X-Stainless-Retry-Count", "X-Stainless-Read-Timeout")
_RETRIED_STATUS = frozenset({408, 409, 425, 429})
_STOPPING_STATUS = frozenset({401, 403, 404})
_CHARS_PER_TOKEN = 4  # for servers that do not count
_COMMIT_S = 0.005  # answers that arrive together are written together


@dataclass(eq=False)
class _Failure(Exception):
    """Why one try got no answer."""

    problem: str
    retry: bool
    after_s: float | None = None  # the server's own wish
    unreachable: bool = False
    stops: bool = False


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
    ):
        """Nothing is sent yet.

        Args:
            base_url, api_key: in place of the configured ones.
            model_key: what tells this model from others in the cache; the configured name if None.
            asker, num_askers: this asker's name, and how many share the budget, each an equal part.
            patience_s: how long one request waits for a server that cannot be reached.
            use_proxy: whether the proxies of the environment are for this server too.
            spent: prompt and answer tokens that count against the budget already, unless the cache knows of
                more.
        """
        self.config, self.asker, self.patience_s, self.use_proxy = config, asker, patience_s, use_proxy
        self.base_url = base_url or config.base_url
        self.api_key = api_key or os.environ.get(config.api_key_env) or "none"
        self.model_key, self.num_askers = model_key or config.model, num_askers
        self.usage = Usage()
        self._stop_reason: str | None = None
        self._body = self._shared_body()
        self._cache = ReplyCache(config.cache) if config.cache else None
        self._spent = max(spent, self._cache.spent(asker), key=sum) if self._cache else spent
        self._uncommitted: list[tuple[bytes, Reply, asyncio.Future]] = []
        self._in_flight = 0
        self._asked: dict[bytes, asyncio.Task[Reply]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()
        self._client = asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    def _shared_body(self) -> dict[str, Any]:
        config = self.config
        body = {
            "model": config.model,
            "temperature": config.temperature,
            "max_completion_tokens": config.max_new_tokens,
        }
        return {name: value for name, value in (body | extra_fields(config)).items() if value is not None}

    async def _open(self):
        """The client lives in the loop's thread."""
        import httpx
        from openai import AsyncOpenAI, DefaultAioHttpClient, omit

        self._slots = asyncio.Semaphore(self.config.concurrency)
        # aiohttp's pool: httpx's own takes time quadratic in the connections (7 ms a request at 256).
        limits = httpx.Limits(max_connections=self.config.concurrency)
        http = DefaultAioHttpClient(limits=limits, trust_env=self.use_proxy)
        self._options = {"headers": dict.fromkeys(_TOLD_PER_CALL, omit)}
        return AsyncOpenAI(
            base_url=self.base_url,
            api_key=self.api_key,
            timeout=self.config.timeout_s,
            max_retries=0,
            http_client=http,
            default_headers=dict.fromkeys(_TOLD, omit),
        )

    @property
    def stop_reason(self) -> str | None:
        return self._stop_reason

    def submit(self, request: Request) -> Future[Reply]:
        return asyncio.run_coroutine_threadsafe(self._answer(request), self._loop)

    def close(self) -> None:
        """Drops what is under way."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._cache:
            self._cache.close()

    async def _end(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._commit()
        await self._client.close()

    async def _answer(self, request: Request) -> Reply:
        """From the cache, from an equal request under way, or from the server."""
        key = cache_key(
            model=self.model_key, body=self._body, messages=request.messages, attempt=request.attempt
        )
        if self._cache and (reply := self._cache.get(key)):
            self.usage.num_cached += 1
            return reply
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.get_running_loop().create_task(self._send(key, request))
            task.add_done_callback(lambda _: self._asked.pop(key))
        return await task

    async def _send(self, key: bytes, request: Request) -> Reply:
        async with self._slots:
            if self._stop_reason is None:
                self._stop_reason = self._over_budget(request)
            if self._stop_reason is not None:
                self.usage.num_failed += 1
                return Reply(failed=True, problem=self._stop_reason)
            self._in_flight += 1
            try:
                reply = await self._with_retries(request)
            finally:
                self._in_flight -= 1
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
                return await self._call(request)
            except _Failure as failure:
                waited_s = time.monotonic() - start_s
                if failure.unreachable and waited_s < self.patience_s and self._stop_reason is None:
                    await asyncio.sleep(_RECONNECT_S * random.uniform(0.5, 1))
                    continue
                if not failure.retry or retries == self.config.num_retries:
                    if failure.stops and self._stop_reason is None:
                        self._stop_reason = failure.problem
                    tries = f" (after {retries} retries)" if retries else ""
                    return Reply(failed=True, problem=failure.problem + tries)
                await asyncio.sleep(self._pause_s(retries, failure.after_s))
                retries += 1
                self.usage.num_retries += 1

    def _pause_s(self, retries: int, after_s: float | None) -> float:
        backoff_s = min(self.config.max_backoff_s, _FIRST_BACKOFF_S * 2**retries) * random.uniform(0.5, 1)
        return max(backoff_s, min(after_s or 0.0, MAX_RETRY_AFTER_S))

    async def _call(self, request: Request) -> Reply:
        """One try; `_Failure` if it gets no answer."""
        import httpx
        import openai

        messages = [{"role": role, "content": content} for role, content in request.messages]
        body = {**self._body, "messages": messages}
        if request.attempt:
            body["seed"] = request.attempt
        try:
            # The client's general form: its typed one spends most of its time on checking types.
            response = await self._client.post(
                "/chat/completions", body=body, cast_to=httpx.Response, options=self._options
            )
        except openai.APIConnectionError as error:  # timeouts among them
            lost = _lost_connection(error)
            problem = f"{self.base_url}: {lost}" if lost else f"no answer within {self.config.timeout_s:g} s"
            raise _Failure(problem, retry=True, unreachable=lost is not None) from None
        except openai.APIStatusError as error:
            raise self._refused(error) from None
        return read_completion(response.content, _num_chars(request))

    def _refused(self, error) -> _Failure:
        status = error.status_code
        stops = status in _STOPPING_STATUS
        said = " ".join(str(error.message).split())[:300]
        hint = f" (key from {self.config.api_key_env})" if status in (401, 403) else ""
        problem = f"{self.base_url} refuses model {self.config.model} with status {status}{hint}: {said}"
        after = error.response.headers.get("retry-after", "")
        return _Failure(
            problem,
            retry=status in _RETRIED_STATUS or status >= 500,
            after_s=float(after) if after.replace(".", "", 1).isdigit() else None,
            stops=stops,
        )

    def _over_budget(self, request: Request) -> str | None:
        """Why this request may not be sent: what is spent, under way (by the mean so far) and its own prompt."""
        config, (num_in, num_out) = self.config, self._spent
        calls = max(self.usage.num_calls, 1)
        factor = 1 + self._in_flight / calls if self.usage.num_calls else 1
        num_in = num_in + (factor - 1) * self.usage.num_prompt_tokens + _num_chars(request) / _CHARS_PER_TOKEN
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
        if waiting:
            self._cache.put(self.asker, [(key, reply) for key, reply, _ in waiting])
        for *_, kept in waiting:
            if not kept.done():
                kept.set_result(None)


def read_completion(content: bytes, num_prompt_chars: int = 0) -> Reply:
    """The reply in the body of a chat completion; `_Failure` (to retry) if it is none."""
    if len(content) > MAX_REPLY_BYTES:
        tokens = {
            "num_prompt_tokens": num_prompt_chars // _CHARS_PER_TOKEN,
            "num_answer_tokens": len(content) // _CHARS_PER_TOKEN,
        }
        return Reply(problem=f"the answer has {len(content)} bytes, more than {MAX_REPLY_BYTES}", **tokens)
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        text, finish_reason = choice["message"]["content"], choice.get("finish_reason")
        usage = body.get("usage") or {}
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise _Failure(f"the body is no completion: {content[:80]!r}", retry=True) from None
    if not isinstance(text, str | None):
        raise _Failure(f"the content is no text: {content[:80]!r}", retry=True)
    text = (text or "").encode("utf-8", "replace").decode("utf-8")  # no lone surrogates
    reply = Reply(
        text=text,
        problem="" if text.strip() else "the answer is empty",
        finish_reason=finish_reason if isinstance(finish_reason, str) else "",
    )
    return replace(
        reply,
        num_prompt_tokens=_count(usage, "prompt_tokens", num_prompt_chars),
        num_answer_tokens=_count(usage, "completion_tokens", len(text)),
    )


def _lost_connection(error: BaseException | None) -> BaseException | None:
    """What broke the connection, or None for a timeout: the client calls some broken connections timeouts."""
    import aiohttp

    while error is not None:
        if isinstance(error, ConnectionError | aiohttp.ClientConnectionError | aiohttp.ClientPayloadError):
            return None if isinstance(error, TimeoutError) else error
        error = error.__cause__ or error.__context__
    return None


def _count(usage: Any, name: str, num_chars: int) -> int:
    """Tokens as the server counted them; by length if it did not."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and count >= 0 else -(-num_chars // _CHARS_PER_TOKEN)


def _num_chars(request: Request) -> int:
    return sum(len(content) for _, content in request.messages)
