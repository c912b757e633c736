"""The access control of a managed judge's server: every request needs the key, and few paths exist.

vLLM's key guards only some of its paths, and the routes that put an engine to sleep exist only in its development
mode, beside routes that run methods of the workers by name, without a key. `Guard` is an ASGI middleware that vLLM
applies outside all of its own (`--middleware`): a request without the key is answered with 401, any path that a judge's
client does not need with 404, and sleep and wake are two control paths of its own.
"""

import functools
import hmac
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ralign.engine.runtime.internals import Internal, InternalPath

READ_IN = "0.32.0"
ENGINE_CLIENT = InternalPath(
    steps=(("vllm.entrypoints.openai.api_server", "State", "engine_client"),),
    purpose="the engine that the server's control paths put to sleep",
    read_in=READ_IN,
)
ENGINE_METHODS = tuple(
    Internal(module="vllm.engine.protocol", name=f"EngineClient.{name}", purpose=purpose, read_in=READ_IN)
    for name, purpose in (
        ("sleep", "frees the GPU memory of a judge's server"),
        ("wake_up", "gives it back"),
        ("collective_rpc", "loads the weights again"),
    )
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_CLIENT_PATHS = frozenset({("GET", "/health"), ("GET", "/v1/models"), ("POST", "/v1/chat/completions")})


def sleep_path(level: int) -> str:
    """The path to post to, so that the engine frees its GPU memory at vLLM's sleep level 1 or 2."""
    return f"/control/sleep/{level}"


def wake_path(level: int) -> str:
    """The path to post to, so that an engine that sleeps at this level gets ready for requests."""
    return f"/control/wake/{level}"


@functools.cache
def key_from_stdin() -> str:
    """The server's key: the one line on standard input, which is read once.

    A pipe, because other users can read a command line, and children of a process its environment.
    """
    key = sys.stdin.readline().strip()
    if not key:
        raise RuntimeError("no key on standard input: the server does not start without one")
    return key


class Guard:
    """ASGI middleware; its `app` is reached with the key only, and on a judge's paths only."""

    def __init__(self, app: App, key: str | None = None):
        """vLLM constructs it with `app` alone; the key is then that of `key_from_stdin`."""
        self._app = app
        self._expected = f"Bearer {key or key_from_stdin()}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            ENGINE_CLIENT.get(scope["app"].state)  # at the start rather than at the first sleep
            await self._app(scope, receive, send)
        elif scope["type"] != "http":  # websockets: the server answers the handshake with 403
            await send({"type": "websocket.close", "code": 1008})
        elif not self._has_key(scope):
            await _answer(send, 401)
        elif (scope["method"], scope["path"]) in _CLIENT_PATHS:
            await self._app(scope, receive, send)
        elif (control := _CONTROLS.get(scope["path"])) is not None and scope["method"] == "POST":
            await control(ENGINE_CLIENT.get(scope["app"].state))
            await _answer(send, 200)
        else:
            await _answer(send, 404)

    def _has_key(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)


async def _answer(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def _sleep(engine: Any, level: int) -> None:
    await engine.sleep(level)


async def _wake(engine: Any, level: int) -> None:
    if level == 1:
        await engine.wake_up()
        return
    await engine.wake_up(["weights"])
    await engine.collective_rpc("reload_weights")  # level 2 dropped them
    await engine.wake_up(["kv_cache"])


_CONTROLS: dict[str, Callable[[Any], Awaitable[None]]] = {
    path(level): functools.partial(action, level=level)
    for path, action in ((sleep_path, _sleep), (wake_path, _wake))
    for level in (1, 2)
}
