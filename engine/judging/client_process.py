"""A `ChatClient` in a process of its own, so that HTTP takes no time of the training process and its GIL.

    parent                                           child
                      ◄─ ready ──────────── stdout ─
    ClientProcess.ask ── number, request ── stdin ─► ChatClient.ask
                      ◄─ number, reply ──── stdout ─

A message is its length (8 bytes) and JSON. The child ends when its standard input closes, so it never outlives the
job, however the job ends. The parent has deadlines of its own: a child that dies, stops or never answers gives
failures in time, and the next request starts another one.
"""

import asyncio
import json
import os
import signal
import struct
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from ralign.engine.judging.client import Address, ChatClient, Failure, Messages, log_errors_by_class
from ralign.engine.judging.judge import Reply

START_TIMEOUT_S = 60.0  # a loaded machine takes seconds to import the client
GRACE_S = 2.0  # for a child that is busy when a request's time is over
_LENGTH = struct.Struct("<q")


class ClientProcess:
    """Sends requests to one server through a child, started at the first request, and again after a crash."""

    def __init__(self, address: Address):
        self.address = address
        self._child: _Child | None = None

    async def ask(self, messages: Messages, attempt: int = 0, greedy: bool = False) -> Reply:
        """One try. Raises `Failure` without an answer, and nothing else."""
        if self._child is None or self._child.is_gone:
            self._child = _Child(self.address)
        kind, fields = await self._child.ask([list(messages), attempt, greedy])
        if kind == "failure":
            raise Failure(**fields)
        return Reply(**fields)

    async def close(self) -> None:
        """End the child; requests under way get no answer."""
        if self._child is not None:
            await self._child.end()


class _Child:
    """One child process. It belongs to the running event loop."""

    def __init__(self, address: Address):
        self.is_gone = False
        self._timeout_s = address.timeout_s
        self._answers: dict[int, asyncio.Future] = {}
        self._num_sent = 0
        self._heard_s = 0.0  # time of the last message
        self._process: asyncio.subprocess.Process | None = None
        loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[asyncio.subprocess.Process] = loop.create_future()
        self._running = loop.create_task(self._run(address))

    async def ask(self, request: list) -> list:
        """The child's answer. Raises `Failure` if the child ends first, or has none in time."""
        process = await asyncio.shield(self._ready)
        if self.is_gone:
            raise Failure("the client process has ended", retry=True)
        sent_s, number = time.monotonic(), self._num_sent
        self._num_sent += 1
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        assert process.stdin is not None
        process.stdin.write(_pack([number, *request]))
        try:
            async with asyncio.timeout(self._timeout_s + GRACE_S):
                return await answer
        except TimeoutError:
            if self._heard_s < sent_s:  # it is not busy with other requests
                _kill(process)
            late = Failure(f"no answer of the client process within {self._timeout_s:g} s", retry=True)
            raise late from None
        finally:
            self._answers.pop(number, None)

    async def end(self) -> None:
        """Let the child end, or kill it."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            await asyncio.wait({self._running}, timeout=GRACE_S)
        self._running.cancel()
        await asyncio.wait({self._running})

    async def _run(self, address: Address) -> None:
        """The child's life: start, answers, end. Requests left without an answer may be retried."""
        reason = "was closed"
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                process = self._process = await _start(address)
                is_ready = await _unpack(process.stdout) is not None
            if is_ready:
                self._ready.set_result(process)
                await self._deliver(process)
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE_S):
                    await process.wait()
            reason = f"ended with status {process.returncode}"
        except TimeoutError:
            reason = f"did not start within {START_TIMEOUT_S:g} s"
        except OSError as error:
            reason = f"cannot start: {error.strerror}"
        finally:
            self.is_gone = True
            lost = Failure(f"the client process {reason}", retry=True)
            for waiting in (self._ready, *self._answers.values()):
                if not waiting.done():
                    waiting.set_exception(lost)
            self._ready.exception()  # retrieved, since no request may be waiting for it
            if self._process is not None:
                _kill(self._process)
                await self._process.wait()

    async def _deliver(self, process: asyncio.subprocess.Process) -> None:
        """Deliver answers until the child's end."""
        while (message := await _unpack(process.stdout)) is not None:
            self._heard_s = time.monotonic()
            number, *answer = message
            waiting = self._answers.get(number)  # None: its time was over
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)


async def _start(address: Address) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-P", "-m", "ralign.engine.judging.client_process")
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    process.stdin.write(_pack(asdict(address)))
    return process


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()


def _pack(message: object) -> bytes:
    data = json.dumps(message).encode()
    return _LENGTH.pack(len(data)) + data


async def _unpack(stream: asyncio.StreamReader | None) -> Any:
    """The next message; None at the end."""
    assert stream is not None
    try:
        (length,) = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))
        return json.loads(await stream.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return None


async def _serve() -> None:
    """The child: answers requests in the order in which they finish."""
    loop = asyncio.get_running_loop()
    log_errors_by_class(loop)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a stray print must not corrupt the answers
    requests = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    transport, _ = await loop.connect_write_pipe(asyncio.Protocol, answers)
    if (address := await _unpack(requests)) is None:
        return
    client = ChatClient(Address(**address))
    transport.write(_pack("ready"))

    async def answer(number: int, messages: list[list[str]], attempt: int, greedy: bool) -> None:
        try:
            asked = tuple((role, content) for role, content in messages)
            reply = await client.ask(asked, attempt, greedy)
            outcome = ["reply", asdict(reply)]
        except Failure as failure:
            outcome = ["failure", asdict(failure)]
        transport.write(_pack([number, *outcome]))

    under_way: set[asyncio.Task] = set()
    while (request := await _unpack(requests)) is not None:
        task = loop.create_task(answer(*request))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    for task in under_way:
        task.cancel()
    await client.close()


if __name__ == "__main__":
    # The job handles these signals, and may need more answers to finish its step.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(_serve())
