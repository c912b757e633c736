"""How fast judges are asked: 256 requests at once to an endpoint that takes 200 ms, and none from the cache.

    .venv/bin/pytest benchmarks/test_judging.py

The ideal rate is concurrency / latency = 1,280 requests a second. The official client takes over half a millisecond
of a core for a request, so two processes ask; they, the asker and the fake endpoint share the cores of one machine.
"""

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from ralign.engine.config.judge import EndpointConfig
from ralign.engine.judging.endpoint import Endpoint
from ralign.engine.judging.judge import Request, ask

PROGRAM = Path(__file__).parents[1] / "tests" / "programs" / "fake_endpoint.py"
LATENCY_S = 0.2
CONCURRENCY = 256
NUM_WAVES = 30  # at either end of a series some slots wait for the others
NUM_REQUESTS = CONCURRENCY * NUM_WAVES


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    port_file = tmp_path_factory.mktemp("endpoint") / "port"
    server = subprocess.Popen([sys.executable, str(PROGRAM), str(port_file), str(LATENCY_S)])
    while not port_file.exists():
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port_file.read_text()}/v1"
    server.kill()
    server.wait()


def num_asked(url: str) -> int:
    with urllib.request.urlopen(url.replace("/v1", "/stats")) as reply:
        return json.load(reply)["num_asked"]


def open_endpoint(url: str, cache: Path | None = None) -> Endpoint:
    config = EndpointConfig(
        model="m", base_url=url, concurrency=CONCURRENCY, cache=str(cache) if cache else None
    )
    return Endpoint(config)


@pytest.mark.parametrize("cached", [False, True], ids=["no_cache", "filling_the_cache"])
def test_256_requests_at_once_keep_the_ideal_rate(benchmark, url, tmp_path, cached):
    endpoint = open_endpoint(url, tmp_path if cached else None)
    ask(endpoint, [Request.of(f"warm up {cached} {n}") for n in range(CONCURRENCY)])  # connections
    rounds = iter(range(100))

    def all_of_them():
        number = next(rounds)
        replies = ask(endpoint, [Request.of(f"{cached} {number} {n}") for n in range(NUM_REQUESTS)])
        assert not any(reply.failed for reply in replies)

    benchmark.pedantic(all_of_them, rounds=3, iterations=1)
    endpoint.close()
    share = NUM_WAVES * LATENCY_S / benchmark.stats["min"]
    benchmark.extra_info |= {"requests_per_s": NUM_REQUESTS / benchmark.stats["min"], "share_of_ideal": share}


def test_a_repeated_run_needs_no_call(benchmark, url, tmp_path):
    requests = [Request.of(f"repeated {n}") for n in range(NUM_REQUESTS)]
    endpoint = open_endpoint(url, tmp_path)
    ask(endpoint, requests)
    endpoint.close()
    before, again = num_asked(url), open_endpoint(url, tmp_path)
    benchmark.pedantic(lambda: ask(again, requests), rounds=3, iterations=1)
    assert num_asked(url) == before and again.usage.num_calls == 0
    again.close()
    benchmark.extra_info["requests_per_s"] = NUM_REQUESTS / benchmark.stats["min"]
