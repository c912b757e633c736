"""One try of one request to an OpenAI-compatible server, through the official asynchronous client.

A try gives a `Reply` (text, or the reason why there is no usable text) or raises a `Failure` (which states whether a
retry makes sense). Clients are made and used in one event loop.
"""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from ralign.engine.judging.judge import Reply

MAX_REPLY_BYTES = 1 << 20
_RETRIED_STATUS = frozenset({408, 409, 425, 429})
_STOPPING_STATUS = frozenset({401, 403, 404})
_READ_HEADERS = ("content-type", "retry-after")
_CHARS_PER_TOKEN = 4  # for servers that report no token counts

Messages = Iterable[tuple[str, str]]  # (role, content), oldest first


@dataclass(eq=False)
class Failure(Exception):
    """One try without an answer."""

    problem: str
    retry: bool
    after_s: float | None = None  # the server's Retry-After
    unreachable: bool = False
    stops: bool = False  # all other requests would fail too


@dataclass(kw_only=True, slots=True, frozen=True)
class Address:
    """A server, and the settings that all requests to it share."""

    base_url: str
    api_key: str
    key_name: str  # environment variable of the key, for messages
    timeout_s: float
    num_connections: int
    use_proxy: bool = True
    body: dict[str, Any] = field(default_factory=dict)  # fields of every request: model name and sampling


class ChatClient:
    """Sends requests to one server."""

    def __init__(self, address: Address):
        from openai import AsyncOpenAI, omit

        self.address = address
        # The client would send headers about this machine.
        telemetry_headers = ("Lang", "Package-Version", "OS", "Arch", "Async", "Runtime", "Runtime-Version")
        self._client = AsyncOpenAI(
            base_url=address.base_url,
            api_key=address.api_key,
            timeout=address.timeout_s,
            max_retries=0,
            http_client=_http_client(address),
            default_headers=cast(Any, {f"X-Stainless-{name}": omit for name in telemetry_headers}),
        )
        self._url = str(self._client.base_url.join("chat/completions"))
        per_call = ("X-Stainless-Retry-Count", "X-Stainless-Read-Timeout")
        self._options: Any = {"headers": dict.fromkeys(per_call, omit)}

    async def ask(self, messages: Messages, attempt: int = 0) -> Reply:
        """One try. Raises `Failure` without an answer."""
        import httpx
        import openai

        address = self.address
        body = {
            **address.body,
            "messages": [{"role": role, "content": content} for role, content in messages],
        }
        if attempt:
            body["seed"] = attempt
        late = Failure(f"no answer within {address.timeout_s:g} s", retry=True)
        try:
            async with asyncio.timeout(address.timeout_s):  # the client's own timeout limits single reads
                # The untyped call: the typed one spends most of its time on type checks.
                response = await self._client.post(
                    self._url, body=body, cast_to=httpx.Response, options=self._options
                )
        except TimeoutError:
            raise late from None
        except openai.APIConnectionError as error:  # timeouts among them
            if (lost := _lost_connection(error)) is None:
                raise late from None
            raise Failure(f"{address.base_url}: {lost}", retry=True, unreachable=True) from None
        except openai.APIStatusError as error:
            raise self._refused(error) from None
        return read_completion(response.content, num_chars(messages))

    async def close(self) -> None:
        await self._client.close()

    def _refused(self, error) -> Failure:
        status, address = error.status_code, self.address
        message = " ".join(str(error.message).split())[:300]
        hint = f" (key from {address.key_name})" if status in (401, 403) else ""
        model = address.body.get("model")
        after = error.response.headers.get("retry-after", "")
        stops = status in _STOPPING_STATUS or error.code == "insufficient_quota"  # sent with status 429
        return Failure(
            f"{address.base_url} refuses model {model} with status {status}{hint}: {message}",
            retry=not stops and (status in _RETRIED_STATUS or status >= 500),
            after_s=float(after) if after.replace(".", "", 1).isdigit() else None,
            stops=stops,
        )


def _http_client(address: Address):
    """On aiohttp's connection pool: httpx's takes time quadratic in its size (7 ms a request at 256)."""
    import httpx
    from openai import DefaultAioHttpClient

    class OneAddress(DefaultAioHttpClient):
        """Requests differ only in their content, so address and headers are built once."""

        first = None

        def build_request(self, method, url, *, content=None, **options):
            if self.first is None:
                self.first = super().build_request(method, url, content=content, **options)
                self.common = [
                    pair for pair in self.first.headers.raw if pair[0].lower() != b"content-length"
                ]
                return self.first
            kind, known = type(self.first), self.first
            return kind(
                method, known.url, headers=self.common, content=content, extensions=dict(known.extensions)
            )

        async def send(self, request, **options: Any):
            """Stop reading an answer after MAX_REPLY_BYTES."""
            response = await super().send(request, **cast(Any, options | {"stream": True}))
            content = bytearray()
            try:
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > MAX_REPLY_BYTES:
                        break
            finally:
                await response.aclose()
            headers = {name: response.headers[name] for name in _READ_HEADERS if name in response.headers}
            kind, status = type(response), response.status_code
            return kind(status, headers=headers, content=bytes(content), request=request)

    limits: Any = httpx.Limits(max_connections=address.num_connections)
    return OneAddress(limits=limits, trust_env=address.use_proxy)


def read_completion(content: bytes, num_prompt_chars: int = 0) -> Reply:
    """The reply in the body of a chat completion. Raises `Failure`, to be retried, for another body."""
    if len(content) > MAX_REPLY_BYTES:
        return Reply(
            problem=f"the answer has more than {MAX_REPLY_BYTES} bytes",
            num_prompt_tokens=num_prompt_chars // _CHARS_PER_TOKEN,
            num_answer_tokens=len(content) // _CHARS_PER_TOKEN,
        )
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        message, finish_reason = choice["message"], choice.get("finish_reason")
        text, usage = message["content"], body.get("usage") or {}
        thinking = message.get("reasoning_content") or message.get("reasoning") or ""
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise Failure(f"the body is not a completion: {content[:80]!r}", retry=True) from None
    if not isinstance(text, str | None) or not isinstance(thinking, str):
        raise Failure(f"the content is not text: {content[:80]!r}", retry=True)
    answer = text or ""
    if answer and thinking:  # the server's parser split them: join them as the model wrote them
        answer = f"{thinking}\n\n</think>\n\n{answer}"
    return Reply(
        text=answer.encode("utf-8", "replace").decode("utf-8"),  # no lone surrogates
        problem="" if (text or "").strip() else "the answer is empty",
        finish_reason=finish_reason if isinstance(finish_reason, str) else "",
        num_prompt_tokens=_count(usage, "prompt_tokens", num_prompt_chars),
        num_answer_tokens=_count(usage, "completion_tokens", len(thinking) + len(text or "")),
    )


def num_chars(messages: Messages) -> int:
    return sum(len(content) for _, content in messages)


def estimated_tokens(messages: Messages) -> float:
    """Tokens of a prompt, by its length."""
    return num_chars(messages) / _CHARS_PER_TOKEN


def _lost_connection(error: BaseException | None) -> BaseException | None:
    """The error that broke the connection, or None for a timeout: the client reports some of them as timeouts."""
    import aiohttp

    while error is not None:
        if isinstance(error, ConnectionError | aiohttp.ClientConnectionError | aiohttp.ClientPayloadError):
            return None if isinstance(error, TimeoutError) else error
        error = error.__cause__ or error.__context__
    return None


def _count(usage: Any, name: str, num_chars: int) -> int:
    """The server's token count, or an estimate by length."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and count >= 0 else -(-num_chars // _CHARS_PER_TOKEN)
