"""A managed judge: with real vLLM shared by ranks, killed during a step, ended with the job; and its parts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ralign.engine.config.judge import MetaRMConfig, ServerConfig
from ralign.engine.config.registry import METARMS
from ralign.engine.data.metarm_prompts import COMPACT, render_review
from ralign.engine.data.pairs import Pair, write_pairs
from ralign.engine.judging import managed
from ralign.engine.judging.judge import ClientContext
from ralign.engine.judging.managed import fingerprint
from ralign.engine.judging.metarm import Outcome
from ralign.engine.judging.server import Server, server_command
from ralign.engine.runtime.errors import UserError
from ralign.recipes.common.tiny_sft import train_tiny_model

PROGRAMS = Path(__file__).parents[2] / "programs"
WORDS = "red blue pink gold grey teal".split()


def make_pair(word: str) -> Pair:
    return Pair(
        id=word,
        source="words",
        conversations=[{"role": "user", "content": "Which one?"}],
        response_A="this",
        response_B="that",
        gt_label="A",
        gt_judgment=f"the {word} one",
    )


def make_judge(folder: Path) -> Path:
    """A model trained to answer Correct to a judgment that ends in yes."""
    pairs = [make_pair(word) for word in WORDS]
    examples = []
    for pair in pairs:
        for word in WORDS:
            for end, verdict in (("yes", "Correct"), ("no", "Incorrect")):
                prompt = render_review(COMPACT, pair, f"\\boxed{{A}} it is {word} {end}")
                answer = f"<genrm_analysis> said</genrm_analysis><final_verdict>{verdict}</final_verdict>"
                examples.append((prompt, answer))
    assert train_tiny_model(folder, examples, num_steps=150) < 0.1
    write_pairs(folder / "pairs.jsonl", pairs)
    return folder


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pids, timeout_s: float) -> list[int]:
    """The processes that are still alive after this time."""
    until_s = time.monotonic() + timeout_s
    while (alive := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < until_s:
        time.sleep(0.1)
    return alive


@pytest.mark.slow
@pytest.mark.usefixtures("two_gpus")
def test_a_killed_engine_loses_no_sample_and_the_server_ends_with_a_killed_job(tmp_path):
    judge, result = make_judge(tmp_path / "judge"), tmp_path / "result.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(PROGRAMS / "managed_judge.py"), str(result), str(judge)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=560)
    assert done.returncode != 0 and result.exists(), done.stderr[-4000:]
    report = json.loads(result.read_text())
    assert report["num_restarts"] == 1 and report["num_open_at_kill"] > 0
    num_cases = 2 * len(WORDS) ** 2
    for metrics in report["steps"]:  # before the kill, and with it
        assert metrics["judge/num_failed"] == 0 and metrics["judge/num_asked"] == num_cases / 2
        assert metrics["judge/l_acc"] == 1 and metrics["judge/s_corr"] == metrics["judge/f_score"] == 0.5
    for outcomes, expected, num_calls in report["ranks"]:
        assert outcomes == expected
        assert num_calls == len(expected)  # every sample was counted once
    assert len(report["pids"]) >= 6  # guard, server and engine, before and after the restart
    assert wait_until_gone(report["pids"], 20) == []


_JOB = """
import subprocess, sys, time
server = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
server += " start_new_session=True); time.sleep(600)"
guard = [sys.executable, "-m", "ralign.engine.judging.process_guard"]
import os
process = subprocess.Popen([*guard, str(os.getpid()), sys.executable, "-c", server], start_new_session=True)
print(process.pid, flush=True)
time.sleep(600)
"""


def start_job():
    """A parent with a guard, its server, and the server's child in a session of its own: job, guard, all pids."""
    job = subprocess.Popen([sys.executable, "-c", _JOB], stdout=subprocess.PIPE, text=True)
    guard = psutil.Process(int(job.stdout.readline()))
    until_s = time.monotonic() + 60
    while len(guard.children(recursive=True)) < 2:
        assert time.monotonic() < until_s
        time.sleep(0.05)
    return job, guard, [guard.pid, *(child.pid for child in guard.children(recursive=True))]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_all_processes_of_a_server_end_with_the_parent(number):
    job, _, pids = start_job()
    job.send_signal(number)
    job.wait()
    assert wait_until_gone(pids, 15) == []


def test_the_rest_of_a_server_ends_with_its_first_process():
    job, guard, pids = start_job()
    psutil.Process(pids[1]).kill()
    assert wait_until_gone(pids, 15) == [] or guard.status() == psutil.STATUS_ZOMBIE
    job.kill()
    job.wait()


def config_for(folder, **options):
    server = options.pop("server", ServerConfig())
    return MetaRMConfig(kind="managed", model=str(folder), max_new_tokens=64, server=server, **options)


@pytest.mark.jobs
def test_a_failed_start_shows_the_error_in_the_log(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    config = config_for(tmp_path, server=ServerConfig(options="--no-such-option 1"))
    server = Server(config, tmp_path / "log")
    with pytest.raises(UserError, match=r"ended while starting: .*no-such-option.*log: "):
        server.start()


def test_without_a_job_the_server_belongs_to_this_process(tmp_path, fake_endpoint, monkeypatch):
    """As in `ralign-eval`. Requests to the server do not go through a proxy."""
    url, calls = fake_endpoint().url, []

    class FakeServer:
        api_key, failure = "key", None

        def __init__(self, config, log, host):
            calls.append((log.name, host))

        def start(self):
            return url

        def close(self):
            calls.append("close")

    monkeypatch.setattr(managed, "Server", FakeServer)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config.json").write_text("{}")
    config = config_for(tmp_path, template="compact", num_tries=1, num_retries=0)
    metarm = METARMS.load("managed").open(config, ClientContext(server_log=tmp_path / "metarm.log"))
    pair = make_pair("red")
    with metarm.awake():
        reviews = [metarm.review(pair, text).result(60) for text in ("plain", "[incorrect]")]
    assert [review.outcome for review in reviews] == [Outcome.CORRECT, Outcome.INCORRECT], reviews
    assert metarm.judge.tokens_used == (140, 60) and metarm.stop_reason is None
    metarm.close()
    assert calls == [("metarm.log", "127.0.0.1"), "close"]


def test_the_command_line_follows_the_settings(tmp_path):
    server = ServerConfig(tensor=2, max_model_len=99, max_num_seqs=7, options="--quantization fp8")
    command = " ".join(server_command(config_for(tmp_path, server=server), "127.0.0.1", 1234))
    for part in (
        "ralign.engine.judging.server_entry",
        "--tensor-parallel-size 2",
        "--max-model-len 99",
        "--port 1234",
        "--host 127.0.0.1",
    ):
        assert part in command
    assert command.endswith("--quantization fp8")
    assert "--host 10.0.0.7" in " ".join(server_command(config_for(tmp_path), "10.0.0.7", 1234))


def test_a_changed_model_has_another_fingerprint(tmp_path):
    (tmp_path / "weights").write_text("one")
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    (tmp_path / "weights").write_text("other")
    assert fingerprint(tmp_path) != first
