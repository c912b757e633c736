"""A server whose behaviour the prompts choose, in a process of its own."""

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

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
