"""One try of one request to an OpenAI-compatible server, through the official asynchronous client.

A try gives a `Reply` (text, or the reason why there is no usable text) or raises a `Failure` (which states whether a
retry makes sense), within `timeout_s`, whatever the server sends. Clients are made and used in one event loop.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

from ralign.engine.data.chat import Messages, without_control
from ralign.engine.judging.client_reply import (
    CHARS_PER_TOKEN,
    MAX_REPLY_BYTES,
    Failure,
    decoded,
    error_in,
    parse_json,
    read_completion,
    refusal,
    retry_after_s,
    shown,
)
from ralign.engine.judging.judge import Reply

logger = logging.getLogger(__name__)

GREEDY = 0.0  # temperature


@dataclass(kw_only=True, slots=True, frozen=True)
class Address:
    """A server, and the settings that all requests to it share."""

    base_url: str
    api_key: str = field(default="", repr=False)  # "": the server needs none
    key_name: str  # environment variable of the key, for messages
    setting: str = "endpoint"  # group of the settings, for messages
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
        headers = {f"X-Stainless-{name}": omit for name in telemetry_headers} | {
            "Accept-Encoding": "identity"  # an answer is small, and a compressed one may unpack to any size
        }
        self._client = AsyncOpenAI(
            base_url=address.base_url,
            api_key=address.api_key or "none",
            timeout=address.timeout_s,
            max_retries=0,
            http_client=_http_client(address),
            default_headers=cast(Any, headers),
        )
        self._url = str(self._client.base_url.join("chat/completions"))
        per_call = ("X-Stainless-Retry-Count", "X-Stainless-Read-Timeout")
        self._options: Any = {"headers": dict.fromkeys(per_call, omit)}

    async def ask(self, messages: Messages, attempt: int = 0, greedy: bool = False) -> Reply:
        """One try. Raises `Failure` without an answer, and nothing else."""
        import openai

        address = self.address
        try:
            async with asyncio.timeout(address.timeout_s):  # the client's own timeout limits single reads
                content = await self._post(messages, attempt, greedy)
            return read_completion(content, num_chars(messages), address.api_key, self._who())
        except Failure:
            raise
        except TimeoutError:
            raise self._late() from None
        except openai.APIConnectionError as error:  # timeouts among them
            raise self._broken(error) from None
        except openai.APIStatusError as error:
            raise self._refused(error) from None
        except Exception as error:
            # The server's bytes pass through the parsers of aiohttp, httpx, openai and json, which may raise anything.
            # Only the class is reported: messages of aiohttp's errors contain the request's headers, with the key.
            raise self._unreadable(error) from None

    async def close(self) -> None:
        await self._client.close()

    async def _post(self, messages: Messages, attempt: int, greedy: bool) -> bytes:
        import httpx

        body = {
            **self.address.body,
            "messages": [{"role": role, "content": content} for role, content in without_control(messages)],
        }
        if attempt:
            body["seed"] = attempt
        if greedy:
            body["temperature"] = GREEDY
        # The untyped call: the typed one spends most of its time on type checks.
        response = await self._client.post(
            self._url, body=body, cast_to=httpx.Response, options=self._options
        )
        return response.content

    def _who(self, hint: str = "") -> str:
        return f"{self.address.base_url} refuses model {self.address.body.get('model')}{hint}"

    def _late(self) -> Failure:
        return Failure(f"no answer within {self.address.timeout_s:g} s", retry=True)

    def _unreadable(self, error: BaseException) -> Failure:
        kind = type(error).__name__
        return Failure(f"{self.address.base_url}: the response cannot be read ({kind})", retry=True)

    def _broken(self, error) -> Failure:
        """A lost connection, a timeout, or a response that is not HTTP."""
        import openai

        if (lost := _lost_connection(error)) is not None:
            sentence = shown(str(lost), self.address.api_key)
            return Failure(f"{self.address.base_url}: {sentence}", retry=True, unreachable=True)
        if isinstance(error, openai.APITimeoutError):
            return self._late()
        return self._unreadable(error.__cause__ or error)

    def _refused(self, error) -> Failure:
        status, content, headers = error.status_code, error.response.content, error.response.extensions
        address = self.address
        if 300 <= status < 400:
            return Failure(
                f"{address.base_url} redirects to {_host(headers['location'], address.api_key)} (status {status}),"
                f" which is not followed: give {address.setting}.base_url the address of the server itself",
                retry=False,
                refused_status=status,
            )
        hint = f" (key from {address.key_name})" if status in (401, 403) else ""
        try:
            in_body = error_in(parse_json(content), address.api_key)
        except ValueError:
            in_body = None
        failure = refusal(self._who(hint), status, content, in_body, address.api_key)
        failure.after_s = retry_after_s(headers["retry-after"])
        return failure


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
                async for part in response.aiter_raw():
                    content += part
                    if len(content) > MAX_REPLY_BYTES:
                        break
            finally:
                await response.aclose()
            encoding = response.headers.get("content-encoding", "").strip().lower()
            response.extensions["retry-after"] = response.headers.get("retry-after", "")
            return type(response)(
                response.status_code,
                content=decoded(bytes(content), encoding),
                request=request,
                extensions=response.extensions,
            )

    async def take_location(response) -> None:
        """A redirect, which could send the prompts anywhere, is neither followed nor prepared."""
        response.extensions["location"] = response.headers.pop("location", "")

    limits: Any = httpx.Limits(max_connections=address.num_connections)
    return OneAddress(
        limits=limits,
        trust_env=address.use_proxy,
        follow_redirects=False,
        event_hooks={"response": [take_location]},
    )


def log_errors_by_class(loop: asyncio.AbstractEventLoop) -> None:
    """Make `loop` log the class of an error that nobody handles: asyncio would print the request's headers."""

    def log(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        logger.error("error in the client's event loop: %s", type(context.get("exception")).__name__)

    loop.set_exception_handler(log)


def num_chars(messages: Messages) -> int:
    return sum(len(content) for _, content in messages)


def estimated_tokens(messages: Messages) -> float:
    """Tokens of a prompt, by its length."""
    return num_chars(messages) / CHARS_PER_TOKEN


def _host(location: str, api_key: str) -> str:
    """The host of a redirect, for a message."""
    try:
        host = urlsplit(location).netloc.rpartition("@")[2]
    except ValueError:
        host = ""
    return shown(host, api_key, 80) or "another path"


def _lost_connection(error: BaseException | None) -> BaseException | None:
    """The error that broke the connection, or None for a timeout: the client reports some of them as timeouts."""
    import aiohttp

    while error is not None:
        if isinstance(error, ConnectionError | aiohttp.ClientConnectionError | aiohttp.ClientPayloadError):
            return None if isinstance(error, TimeoutError) else error
        error = error.__cause__ or error.__context__
    return None
