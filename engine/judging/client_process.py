"""A `ChatClient` in a process of its own, so that HTTP takes no time of the training process and its GIL.

    parent                                           child
    ClientProcess.ask ── number, request ── stdin ─► ChatClient.ask
                      ◄─ number, reply ──── stdout ─

A message is its length (8 bytes) and JSON. The child ends when its standard input closes, so it never outlives the
job, however the job ends.
"""

import asyncio
import json
import os
import signal
import struct
import sys
from dataclasses import asdict
from typing import Any

from ralign.engine.judging.client import Address, ChatClient, Failure, Messages
from ralign.engine.judging.judge import Reply

_LENGTH = struct.Struct("<q")


class ClientProcess:
    """Sends requests to one server through a child, started at the first request, and again after a crash."""

    def __init__(self, address: Address):
        self.address = address
        self._child: _Child | None = None

    async def ask(self, messages: Messages, attempt: int = 0) -> Reply:
        """One try. Raises `Failure` without an answer."""
        if self._child is None or self._child.is_gone:
            self._child = _Child(self.address)
        kind, fields = await self._child.ask([list(messages), attempt])
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
        self._answers: dict[int, asyncio.Future] = {}
        self._num_sent = 0
        loop = asyncio.get_running_loop()
        self._started = loop.create_task(self._start(address))
        self._reading = loop.create_task(self._read())

    async def ask(self, request: list) -> list:
        """The child's answer. Raises `Failure` if the child ends first."""
        number = self._num_sent = self._num_sent + 1
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        process = await asyncio.shield(self._started)
        assert process.stdin is not None
        process.stdin.write(_pack([number, *request]))
        return await answer

    async def end(self) -> None:
        process = await self._started
        assert process.stdin is not None
        process.stdin.close()
        await self._reading

    async def _start(self, address: Address) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-P", "-m", "ralign.engine.judging.client_process")
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        assert process.stdin is not None
        process.stdin.write(_pack(asdict(address)))
        return process

    async def _read(self) -> None:
        """Deliver answers until the child is gone; requests left without one may be retried."""
        process = await asyncio.shield(self._started)
        assert process.stdout is not None
        while (message := await _unpack(process.stdout)) is not None:
            number, *answer = message
            if not (waiting := self._answers.pop(number)).done():
                waiting.set_result(answer)
        self.is_gone = True
        lost = Failure(f"the client process ended with status {await process.wait()}", retry=True)
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(lost)


def _pack(message: object) -> bytes:
    data = json.dumps(message).encode()
    return _LENGTH.pack(len(data)) + data


async def _unpack(stream: asyncio.StreamReader) -> Any:
    """The next message; None at the end."""
    try:
        (length,) = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))
        return json.loads(await stream.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return None


async def _serve() -> None:
    """The child: answers requests in the order in which they finish."""
    loop = asyncio.get_running_loop()
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a stray print must not corrupt the answers
    requests = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    transport, _ = await loop.connect_write_pipe(asyncio.Protocol, answers)
    if (address := await _unpack(requests)) is None:
        return
    client = ChatClient(Address(**address))

    async def answer(number: int, messages: list, attempt: int) -> None:
        try:
            outcome = ["reply", asdict(await client.ask(messages, attempt))]
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
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(_serve())
