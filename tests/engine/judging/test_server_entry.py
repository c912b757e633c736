"""A judge's server with real vLLM: what another process on the machine reaches without its key, and with it."""

import ast
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ralign.engine.config.judge import MetaRMConfig, ServerConfig
from ralign.engine.judging.server import Server
from ralign.engine.judging.server_guard import sleep_path, wake_path
from ralign.recipes.common.tiny_sft import train_tiny_model

pytestmark = pytest.mark.slow
# Statuses of requests [method, path, key, body] to argv[1], read as JSON from stdin.
_ASK = """
import json, sys, urllib.error, urllib.request
statuses = []
for method, path, key, body in json.load(sys.stdin):
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(sys.argv[1] + path, method=method, headers=headers, data=body.encode() or None)
    try:
        statuses.append(urllib.request.urlopen(request, timeout=60).status)
    except urllib.error.HTTPError as error:
        statuses.append(error.code)
print(statuses)
"""
DEVELOPMENT = [
    ("POST", "/collective_rpc"), ("POST", "/pause"), ("POST", "/resume"), ("GET", "/server_info"), ("POST", "/sleep"),
    ("POST", "/wake_up"), ("GET", "/is_sleeping"), ("POST", "/reset_prefix_cache"),
]  # fmt: skip
CLIENT = {("GET", "/health"), ("GET", "/v1/models"), ("POST", "/v1/chat/completions")}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    train_tiny_model(folder / "model", [("one", "two")], num_steps=1)
    options = ServerConfig(max_model_len=64, kv_cache_gib=0.1, max_num_seqs=4, sleep_level=1)
    server = Server(MetaRMConfig(kind="managed", model=str(folder / "model"), server=options), folder / "log")
    server.start()
    yield server
    server.close()


def ask(server: Server, requests: list[tuple[str, str]], key: str = "", body: str = "") -> list[int]:
    """The statuses that another process gets."""
    asked = json.dumps([[method, path, key, body] for method, path in requests])
    command = [sys.executable, "-c", _ASK, server.root]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


def routes(server: Server) -> list[tuple[str, str]]:
    """Every route of the application, from the list that vLLM logs when it starts."""
    found = re.findall(r"Route: (\S+), Methods: ([A-Z, ]+)", server.log.read_text())
    return [(method, path) for path, methods in found for method in methods.split(", ")]


def test_without_the_key_every_path_is_refused(server):
    requests = [
        *routes(server),
        *DEVELOPMENT,
        *CLIENT,
        ("POST", sleep_path(1)),
        ("GET", "/metrics"),
        ("GET", "/no"),
    ]
    assert len(requests) > 20 and CLIENT < set(routes(server))
    assert set(ask(server, requests)) == set(ask(server, requests, key="k" * 64)) == {401}
    assert set(ask(server, [(method, path) for method, path in requests if method == "POST"], body="{}")) == {
        401
    }


def test_with_the_key_a_judge_s_paths_alone_are_there(server):
    others = [
        request for request in {*routes(server), *DEVELOPMENT, ("GET", "/metrics")} if request not in CLIENT
    ]
    assert len(others) > 20 and set(ask(server, others, server.api_key)) == {404}
    body = json.dumps(
        {"model": server.config.model, "messages": [{"role": "user", "content": "one"}], "max_tokens": 2}
    )
    chat = [("POST", "/v1/chat/completions")]
    assert ask(server, [("GET", "/health"), ("GET", "/v1/models")], server.api_key) == [200, 200]
    assert ask(server, chat, server.api_key, body) == [200]
    server.sleep()
    server.wake()
    assert ask(server, [("POST", wake_path(1))], server.api_key) == [200]
    assert ask(server, chat, server.api_key, body) == [200]


def test_the_key_is_in_no_command_line_no_environment_and_no_log(server):
    processes = tree(server)
    assert len(processes) >= 3  # guard, server and engine
    for process in processes:
        assert server.api_key not in " ".join(process.cmdline())
        assert server.api_key not in "\n".join(process.environ().values())
    assert server.api_key not in server.log.read_text()


def test_the_server_listens_on_loopback_alone(server):
    listening = {
        (found.laddr.ip, found.laddr.port)
        for process in tree(server)
        for found in process.net_connections("inet")
        if found.status == psutil.CONN_LISTEN
    }
    assert ("127.0.0.1", server.port) in listening
    assert {ip for ip, _ in listening} == {"127.0.0.1"}, listening


def test_the_sockets_between_its_processes_are_for_their_owner_alone(server):
    sockets = {found.laddr for process in tree(server) for found in process.net_connections("unix")}
    files = [Path(str(name)) for name in sockets if str(name).startswith("/")]
    assert files
    for file in files:
        assert file.parent.name.startswith("ralign-judge-") and file.parent.stat().st_mode & 0o077 == 0, file


def tree(server: Server) -> list[psutil.Process]:
    """The server's processes, its guard included."""
    until_s = time.monotonic() + 10
    while time.monotonic() < until_s:
        for process in psutil.Process().children(recursive=True):
            if str(server.port) in process.cmdline():
                return [process, *process.children(recursive=True)]
    raise AssertionError("no guard")
