"""An OpenAI-compatible server whose prompts choose its behaviour, for tests and benchmarks.

    fake_endpoint.py PORT_FILE [LATENCY_S]

`[name]` in a prompt chooses a behaviour, and `[name*2]` does so for the first two tries, with the next brackets for
later ones. Any other prompt gets a good answer, at once or after LATENCY_S. `[held]` waits until GET /release. GET
/stats returns the number of requested completions, the number under way, the largest number under way, and the tries
of each prompt.
"""

import asyncio
import json
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass

GOOD = (
    "<golden_key_points>\n<point>one</point>\n</golden_key_points>\n<genrm_analysis>It names one.</genrm_analysis>"
    "\n<final_verdict>Correct</final_verdict>"
)
INCORRECT = GOOD.replace("Correct", "Incorrect")
TEXTS = {
    "empty": "",
    "none": None,
    "incorrect": INCORRECT,
    "two verdicts": GOOD + "\n<final_verdict>Incorrect</final_verdict>",
    "thinking": f"<think>{GOOD}</think> I cannot tell.",
    "unclosed": f"<think>{GOOD}",
    "huge": "x" * 10_000_000,
    "surrogate": "\ud800" + GOOD,
    "prose": "The verdict is Correct.",
    "box a": "A is right about it, B is not. \\boxed{A}",
    "box b": "B is right about it, A is not. \\boxed{B}",
}
STATUS = {
    "400": 400,
    "401": 401,
    "404": 404,
    "429": 429,
    "429 later": 429,
    "quota": 429,
    "500": 500,
    "503": 503,
}
KNOWN = {*TEXTS, *STATUS, "timeout", "reset", "broken", "nested", "cut", "drip", "endless", "held"}


@dataclass
class Stream:
    """A body that never ends."""

    part: bytes
    pause_s: float

    async def send(self, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: 9999999999\r\n\r\n"
        )
        while not writer.is_closing():
            writer.write(self.part)
            await writer.drain()
            await asyncio.sleep(self.pause_s)


class Server:
    def __init__(self, latency_s: float):
        self.latency_s = latency_s
        self.tries: Counter[str] = Counter()
        self.now = self.most = 0
        self.released = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                body = await reader.readexactly(int(length[1])) if length else b""
                self.now += bool(body)
                self.most = max(self.most, self.now)
                try:
                    answer = await self.answer(head, body)
                finally:
                    self.now -= bool(body)
                if answer is None:
                    break
                if isinstance(answer, Stream):
                    await answer.send(writer)
                    break
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def answer(self, head: bytes, body: bytes) -> bytes | Stream | None:
        if head.startswith(b"GET"):
            if b" /release " in head:
                self.released.set()
            stats = {
                "num_asked": self.tries.total(),
                "under_way": self.now,
                "most_at_once": self.most,
                "tries": self.tries,
            }
            return http(200, json.dumps(stats).encode())
        prompt = json.loads(body)["messages"][-1]["content"]
        self.tries[prompt] += 1
        asked = re.findall(r"\[([a-z0-9 ]+)(?:\*(\d+))?\]", prompt, re.IGNORECASE)
        tries = self.tries[prompt]
        known = (n.lower() for n, up_to in asked if n.lower() in KNOWN and tries <= int(up_to or 10**9))
        name = next(known, "good")
        if name == "held":
            await self.released.wait()
        if name == "timeout":
            await asyncio.sleep(30)
        if name == "reset":
            return None
        if name == "drip":
            return Stream(b" ", 0.05)
        if name == "endless":
            return Stream(b" " * 65536, 0.0)
        if name == "broken":
            return http(200, b'{"choices": [{"message"')
        if name == "nested":
            return http(200, b"[" * 100_000)
        if name in STATUS:
            later = b"retry-after: 1\r\n" if name == "429 later" else b""
            code = b"insufficient_quota" if name == "quota" else b"any"
            return http(STATUS[name], b'{"error": {"message": "as asked", "code": "%s"}}' % code, later)
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        return http(200, completion(TEXTS.get(name, GOOD), "length" if name == "cut" else "stop"))


def completion(text: str | None, finish_reason: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 70, "completion_tokens": 30, "total_tokens": 100}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def http(status: int, body: bytes, headers: bytes = b"") -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + headers + b"\r\n" + body


async def main(port_file: str, latency_s: float) -> None:
    server = Server(latency_s)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=1024)
    port = listening.sockets[0].getsockname()[1]
    with open(port_file + ".part", "w") as file:
        file.write(str(port))
    os.replace(port_file + ".part", port_file)
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 0.0))
