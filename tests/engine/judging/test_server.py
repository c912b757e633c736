"""The server's lives: told to sleep or wake just when it dies, started once more, given up, and said so to all."""

import sys
import time

import psutil
import pytest
from ralign.engine.config.judge import EndpointConfig, JudgeConfig, ServerConfig
from ralign.engine.judging import server as server_module
from ralign.engine.judging.endpoint import Endpoint
from ralign.engine.judging.judge import JudgeStopped, Request, ask
from ralign.engine.judging.server import Server, death_note

# Healthy after a moment; writes down what it is told; tells nobody anything.
_PROGRAM = """
import http.server, os, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        if "hangs" in sys.argv[2] and not os.path.exists(sys.argv[2]):  # in its first life
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
    """A server that is no vLLM, and the file of what it was told."""
    started = []

    def begin(told="told", **options) -> tuple[Server, list]:
        path = tmp_path / told
        monkeypatch.setattr(
            server_module,
            "server_command",
            lambda config, host, port: [sys.executable, "-c", _PROGRAM, str(port), str(path)],
        )
        config = JudgeConfig(metarm="managed", model="m", server=ServerConfig(sleep_level=1, **options))
        server = Server(config, tmp_path / "judge_server.log")
        started.append(server)
        server.start()
        return server, path

    yield begin
    for server in started:
        server.close()


def kill(server: Server) -> None:
    """Its first process; the warden then needs a moment to see that."""
    psutil.Process(server._process.pid).children()[0].kill()


def test_a_server_that_dies_before_it_is_told_is_told_in_its_next_life(start):
    server, told = start()
    server.sleep()
    kill(server)
    server.wake()
    assert server.num_restarts == 1 and server.dead is None
    assert told.read_text().split()[0].startswith("/sleep") and told.read_text().split()[-1] == "/wake_up"


def test_a_server_that_hangs_is_ended_and_told_in_its_next_life(start, monkeypatch):
    monkeypatch.setattr(server_module, "_SLEEP_TIMEOUT_S", 1.0)
    server, told = start("hangs")
    server.sleep()
    assert server.num_restarts == 1 and told.read_text().split()[-1] == "/sleep?level=1"


def test_level_2_reads_the_weights_anew(start):
    server, told = start()
    server.config.server.sleep_level = 2
    server.sleep()
    server.wake()
    assert told.read_text().split()[-3:] == [
        "/wake_up?tags=weights",
        "/collective_rpc",
        "/wake_up?tags=kv_cache",
    ]


def test_a_second_death_is_final_and_said_to_every_rank(start, tmp_path):
    server, _ = start()
    kill(server)
    while server.num_restarts == 0:
        time.sleep(0.05)
    with server._changing:  # held until the second one is up
        kill(server)
    while server.dead is None:
        time.sleep(0.05)
    with pytest.raises(JudgeStopped, match="died twice"):
        server.sleep()
    note = death_note(tmp_path / "judge_server.log")
    assert note.read_text() == server.dead
    # Another rank asks, with all the patience in the world.
    config = EndpointConfig(model="m", base_url=f"{server.root}/v1", num_retries=0)
    endpoint = Endpoint(config, patience_s=3600, lost=lambda: note.read_text() if note.exists() else None)
    start_s = time.monotonic()
    assert all(reply.failed for reply in ask(endpoint, [Request.of(f"{n}") for n in range(200)]))
    assert time.monotonic() - start_s < 10 and "died twice" in endpoint.stop_reason
    endpoint.close()


def test_a_new_server_has_no_death_behind_it(start, tmp_path):
    death_note(tmp_path / "judge_server.log").write_text("an earlier job's")
    start()
    assert not death_note(tmp_path / "judge_server.log").exists()


def test_a_server_that_refuses_to_sleep_stops_the_judge(start):
    server, _ = start("spoiled")
    with pytest.raises(JudgeStopped, match=r"/sleep\?level=1 with status 500"):
        server.sleep()
