"""The server of a managed judge: sleep and wake around a crash, one restart, and its end for all ranks."""

import sys
import time

import psutil
import pytest
from ralign.engine.config.judge import EndpointConfig, MetaRMConfig, ServerConfig
from ralign.engine.judging import server as server_module
from ralign.engine.judging.endpoint import Endpoint
from ralign.engine.judging.judge import JudgeStopped, Request, ask
from ralign.engine.judging.server import Server, failure_file

# A server that is healthy at once, and records the paths of its requests.
_PROGRAM = """
import http.server, os, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        if "hangs" in sys.argv[2] and not os.path.exists(sys.argv[2]):  # until it restarts
            open(sys.argv[2], "w").close()
            time.sleep(600)
        with open(sys.argv[2], "a") as file:
            file.write(self.path + "\\n")
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(500 if "spoiled" in sys.argv[2] and self.command == "POST" else 200)
        self.end_headers()
    do_POST = answer
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A function that starts a server without vLLM; returns it and the file of its requests."""
    started = []

    def begin(log="requests", **options) -> tuple[Server, list]:
        path = tmp_path / log
        monkeypatch.setattr(
            server_module,
            "server_command",
            lambda config, host, port: [sys.executable, "-c", _PROGRAM, str(port), str(path)],
        )
        config = MetaRMConfig(kind="managed", model="m", server=ServerConfig(sleep_level=1, **options))
        server = Server(config, tmp_path / "judge_server.log")
        started.append(server)
        server.start()
        return server, path

    yield begin
    for server in started:
        server.close()


def kill(server: Server) -> None:
    """Kill the server's process; its guard, a child of this process, ends soon after."""
    (guard,) = (
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and str(server.port) in child.cmdline()
    )
    guard.children()[0].kill()


def test_a_request_to_a_dead_server_reaches_its_next_process(start):
    server, log = start()
    server.sleep()
    kill(server)
    server.wake()
    assert server.num_restarts == 1 and server.failure is None
    assert log.read_text().split()[0].startswith("/sleep") and log.read_text().split()[-1] == "/wake_up"


def test_a_server_that_hangs_is_restarted(start, monkeypatch):
    monkeypatch.setattr(server_module, "_SLEEP_TIMEOUT_S", 1.0)
    server, log = start("hangs")
    server.sleep()
    assert server.num_restarts == 1 and log.read_text().split()[-1] == "/sleep?level=1"


def test_level_2_loads_the_weights_again(start):
    server, log = start()
    server.config.server.sleep_level = 2
    server.sleep()
    server.wake()
    assert log.read_text().split()[-3:] == [
        "/wake_up?tags=weights",
        "/collective_rpc",
        "/wake_up?tags=kv_cache",
    ]


def test_a_second_crash_is_final_for_every_rank(start, tmp_path):
    server, _ = start()
    kill(server)
    server.sleep()  # returns when the second process has taken it
    assert server.num_restarts == 1
    kill(server)
    while server.failure is None:
        time.sleep(0.05)
    with pytest.raises(JudgeStopped, match="crashed twice"):
        server.sleep()
    note = failure_file(tmp_path / "judge_server.log")
    assert note.read_text() == server.failure
    # The requests of another rank.
    config = EndpointConfig(model="m", base_url=f"{server.root}/v1", num_retries=0)
    endpoint = Endpoint(config, patience_s=3600, failure=lambda: note.read_text() if note.exists() else None)
    start_s = time.monotonic()
    assert all(reply.failed for reply in ask(endpoint, [Request.of(f"{n}") for n in range(200)]))
    assert time.monotonic() - start_s < 10 and "crashed twice" in endpoint.stop_reason
    endpoint.close()


def test_a_new_server_removes_an_earlier_job_s_failure(start, tmp_path):
    failure_file(tmp_path / "judge_server.log").write_text("an earlier job's")
    start()
    assert not failure_file(tmp_path / "judge_server.log").exists()


def test_a_server_that_refuses_to_sleep_stops_the_judge(start):
    server, _ = start("spoiled")
    with pytest.raises(JudgeStopped, match=r"/sleep\?level=1 with status 500"):
        server.sleep()
