"""The server of a managed judge: sleep and wake around a crash, one restart, and its end for all ranks."""

import socket
import sys
import time

import psutil
import pytest
from ralign.engine.config.judge import EndpointConfig, MetaRMConfig, ServerConfig
from ralign.engine.judging import server as server_module
from ralign.engine.judging.endpoint import Endpoint
from ralign.engine.judging.judge import JudgeStopped, Request, ask
from ralign.engine.judging.server import Server, failure_file
from ralign.engine.runtime.errors import UserError

# A server that is healthy at once, and records the paths of its requests. Without its key it is not healthy.
_PROGRAM = """
import http.server, os, sys, time
key = sys.stdin.read().strip()
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        assert self.headers["authorization"] == f"Bearer {key}"
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
        self.send_response(200 if len(key) == 64 and self.headers["authorization"] == f"Bearer {key}" else 401)
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
    paths = log.read_text().split()
    assert paths[0] == "/control/sleep/1" and paths[-1] == "/control/wake/1"


def test_a_server_that_hangs_is_restarted(start, monkeypatch):
    monkeypatch.setattr(server_module, "_SLEEP_TIMEOUT_S", 1.0)
    server, log = start("hangs")
    server.sleep()
    assert server.num_restarts == 1 and log.read_text().split()[-1] == "/control/sleep/1"


def test_the_level_of_the_settings_is_that_of_the_requests(start):
    server, log = start()
    server.config.server.sleep_level = 2
    server.sleep()
    server.wake()
    assert log.read_text().split() == ["/control/sleep/2", "/control/wake/2"]


def test_the_key_is_in_no_command_line_and_no_environment(start):
    server, _ = start()
    processes = [p for p in psutil.Process().children(recursive=True) if str(server.port) in p.cmdline()]
    assert len(processes) == 2  # the guard and the server
    for process in processes:
        assert server.api_key not in " ".join(process.cmdline())
        assert server.api_key not in process.environ().values()
    assert server.api_key not in server.log.read_text()


def test_another_process_at_the_port_is_not_sent_the_key(tmp_path, monkeypatch):
    """As of another user, who has taken the port between its choice and the server's start."""
    config = MetaRMConfig(kind="managed", model="m", server=ServerConfig(start_timeout_s=1.5))
    server = Server(config, tmp_path / "log")
    with socket.create_server(("127.0.0.1", server.port)) as other:
        waits = [sys.executable, "-c", "import time; time.sleep(60)"]
        monkeypatch.setattr(server_module, "server_command", lambda config, host, port: waits)
        with pytest.raises(UserError, match="did not start within"):
            server.start()
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()


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
    with pytest.raises(JudgeStopped, match="/control/sleep/1 with status 500"):
        server.sleep()
