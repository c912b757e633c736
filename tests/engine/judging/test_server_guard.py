"""The access control of a judge's server, on an application that answers every path."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from ralign.engine.judging import server_guard
from ralign.engine.judging.server_guard import Guard, sleep_path, wake_path
from ralign.engine.runtime.internals import MissingInternal

KEY = "k" * 64
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "CONNECT", "post")
ALLOWED = {("GET", "/health"), ("GET", "/v1/models"), ("POST", "/v1/chat/completions")}
CONTROLS = {("POST", path(level)) for path in (sleep_path, wake_path) for level in (1, 2)}
PATHS = [
    "/", "/docs", "/openapi.json", "/redoc", "/metrics", "/ping", "/invocations", "/version", "/load", "/tokenize",
    "/collective_rpc", "/sleep", "/wake_up", "/is_sleeping", "/pause", "/resume", "/server_info", "/reset_prefix_cache",
    "/v1/completions", "/v1/responses", "/v1/load_lora_adapter", "/v1/embeddings", "/inference/v1/generate",
    "/health/", "//health", "/HEALTH", "/v1/models/", "/v1/../collective_rpc", "/control", "/control/sleep",
    "/control/sleep/0", "/control/sleep/3", "/control/sleep/1/", "/control/wake/", "", "*",
    *(path for _, path in ALLOWED | CONTROLS),
]  # fmt: skip
WRONG_KEYS = [
    [], [b"Bearer "], [b"Bearer"], [b""], [KEY.encode()], [b"Basic " + KEY.encode()], [b"bearer " + KEY.encode()],
    [b"Bearer " + KEY[:-1].encode()], [b"Bearer " + KEY.encode() + b"k"], [b"Bearer " + KEY.encode() + b"\xff"],
    [b"Bearer wrong", b"Bearer " + KEY.encode()],
]  # fmt: skip


class Engine:
    def __init__(self):
        self.calls = []

    async def sleep(self, level):
        self.calls.append(("sleep", level))

    async def wake_up(self, tags=None):
        self.calls.append(("wake_up", tags))

    async def collective_rpc(self, method):
        self.calls.append(("collective_rpc", method))


def finish(coroutine) -> None:
    """Run a coroutine that waits for nothing: thousands of requests need no event loop."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


def ask(method: str, path: str, keys: list[bytes], engine=None, kind: str = "http") -> tuple[object, bool]:
    """The status (or the type of the message) that is sent, and whether the application was reached."""
    sent, reached = [], []

    async def app(scope, receive, send):
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 299, "headers": []})

    async def send(message):
        sent.append(message)

    async def receive():
        raise AssertionError("the guard reads no body")

    scope = {
        "type": kind,
        "method": method,
        "path": path,
        "headers": [(b"host", b"judge"), *((b"authorization", key) for key in keys)],
        "app": SimpleNamespace(state=SimpleNamespace(engine_client=engine or Engine())),
    }
    finish(Guard(app, KEY)(scope, receive, send))
    return sent[0].get("status", sent[0]["type"]), bool(reached)


@pytest.mark.parametrize("keys", WRONG_KEYS)
def test_without_the_key_no_path_is_reached(keys):
    for method in METHODS:
        for path in PATHS:
            engine = Engine()
            assert ask(method, path, keys, engine) == (401, False), (method, path)
            assert engine.calls == []


def test_with_the_key_only_a_judge_s_paths_are_reached():
    keys = [f"Bearer {KEY}".encode()]
    for method in METHODS:
        for path in PATHS:
            expected = (404, False)
            if (method, path) in ALLOWED:
                expected = (299, True)
            elif (method, path) in CONTROLS:
                expected = (200, False)
            assert ask(method, path, keys) == expected, (method, path)


@pytest.mark.parametrize("keys", [[], [f"Bearer {KEY}".encode()]])
def test_websockets_are_refused(keys):
    for path in PATHS:
        assert ask("GET", path, keys, kind="websocket") == ("websocket.close", False)


def test_sleep_and_wake_call_the_engine():
    keys, engine = [f"Bearer {KEY}".encode()], Engine()
    for path in (sleep_path(1), wake_path(1), sleep_path(2), wake_path(2)):
        ask("POST", path, keys, engine)
    assert engine.calls == [
        ("sleep", 1),
        ("wake_up", None),
        ("sleep", 2),
        ("wake_up", ["weights"]),
        ("collective_rpc", "reload_weights"),
        ("wake_up", ["kv_cache"]),
    ]


def test_a_vllm_without_the_engine_does_not_start(monkeypatch):
    # In place of vLLM, whose import for its version takes long.
    missing = replace(server_guard.ENGINE_CLIENT, steps=(("psutil", "State", "engine_client"),))
    monkeypatch.setattr(server_guard, "ENGINE_CLIENT", missing)

    async def app(scope, receive, send):
        raise AssertionError("not reached")

    scope = {"type": "lifespan", "app": SimpleNamespace(state=SimpleNamespace())}
    with pytest.raises(MissingInternal, match="engine_client"):
        Guard(app, KEY)(scope, None, None).send(None)


def test_there_is_no_server_without_a_key(monkeypatch):
    monkeypatch.setattr(server_guard.sys, "stdin", open("/dev/null"))
    server_guard.key_from_stdin.cache_clear()
    with pytest.raises(RuntimeError, match="no key on standard input"):
        Guard(lambda *_: None)
