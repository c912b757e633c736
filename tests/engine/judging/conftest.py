"""Servers whose behaviour the prompts choose: one in a process of its own, and one that sends any bytes."""

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

PROGRAM = Path(__file__).parents[2] / "programs" / "fake_endpoint.py"


class FakeEndpoint:
    def __init__(self, folder: Path, latency_s: float):
        port_file = folder / f"port-{latency_s}"
        self.process = subprocess.Popen([sys.executable, str(PROGRAM), str(port_file), str(latency_s)])
        while not port_file.exists():
            assert self.process.poll() is None
            time.sleep(0.02)
        self.root = f"http://127.0.0.1:{port_file.read_text()}"
        self.url = f"{self.root}/v1"

    def stats(self, path: str = "stats") -> dict:
        with urllib.request.urlopen(f"{self.root}/{path}") as reply:
            return json.load(reply)

    def wait_until_under_way(self, num_requests: int, timeout_s: float = 60.0) -> None:
        until_s = time.monotonic() + timeout_s
        while (found := self.stats()["under_way"]) != num_requests:
            assert time.monotonic() < until_s, f"{found} requests under way"
            time.sleep(0.02)

    def release(self) -> None:
        """Answer the prompts with [held]."""
        self.stats("release")

    def tries(self, prompt: str) -> int:
        return self.stats()["tries"].get(prompt, 0)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def fake_endpoint(tmp_path):
    """A function that starts a server with a latency; all end with the test."""
    started = []

    def start(latency_s: float = 0.0) -> FakeEndpoint:
        started.append(FakeEndpoint(tmp_path, latency_s))
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.close()


@dataclass(frozen=True)
class Fault:
    """How a `FaultServer` responds.

    Attributes:
        data: the bytes that it sends.
        delay_s: pause before them.
        piece_bytes: size of the pieces in which they are sent, `pause_s` apart; 0: all at once.
        then: afterwards it closes the connection, keeps it for the next request, or keeps it open and silent.
    """

    data: bytes
    delay_s: float = 0.0
    piece_bytes: int = 0
    pause_s: float = 0.0
    then: Literal["close", "keep", "wait"] = "keep"


class FaultServer:
    """Responds with any bytes, in a thread of this process. `fault NAME` in a prompt chooses among `faults`."""

    def __init__(self):
        self.faults: dict[str, Fault | Callable[[bytes], Fault]] = {}  # name -> fault, or request -> fault
        self.num_asked: Counter[str] = Counter()
        is_open = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(is_open)), daemon=True)
        self._thread.start()
        is_open.wait()
        self.url = f"http://127.0.0.1:{self.port}/v1"

    async def _run(self, is_open: threading.Event) -> None:
        self.loop, self._closed = asyncio.get_running_loop(), asyncio.Event()
        self.loop.set_exception_handler(lambda *_: None)  # connections that the client breaks
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        is_open.set()
        await self._closed.wait()
        server.close()

    async def _serve(self, reader, writer):
        try:
            while request := await self._read(reader):
                name = re.search(rb"fault (\w+)", request)[1].decode()
                self.num_asked[name] += 1
                fault = self.faults[name]
                fault = fault if isinstance(fault, Fault) else fault(request)
                await asyncio.sleep(fault.delay_s)
                size = fault.piece_bytes or len(fault.data) or 1
                for start in range(0, len(fault.data), size):
                    writer.write(fault.data[start : start + size])
                    await writer.drain()
                    await asyncio.sleep(fault.pause_s)
                if fault.then == "wait":
                    await asyncio.sleep(600)
                if fault.then == "close":
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    @staticmethod
    async def _read(reader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        return head + await reader.readexactly(int(re.search(rb"content-length: (\d+)", head.lower())[1]))

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._closed.set)
        self._thread.join()


@pytest.fixture
def fault_server():
    server = FaultServer()
    yield server
    server.close()


def http(status: int | str, body: bytes | dict | str, *headers: str | bytes) -> bytes:
    """A response with this status line, body and additional header lines."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [line if isinstance(line, bytes) else line.encode() for line in headers]
    lines = [f"HTTP/1.1 {status} X".encode(), f"content-length: {len(data)}".encode(), *lines]
    return b"\r\n".join(lines) + b"\r\n\r\n" + data


def completion(content, *, usage=(70, 30), finish_reason="stop", **message) -> dict:
    """A chat completion with this content."""
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish_reason}
    body = {"choices": [choice]}
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return body


@pytest.fixture
def faults():
    """What tests describe faults with."""
    return SimpleNamespace(Fault=Fault, http=http, completion=completion)
