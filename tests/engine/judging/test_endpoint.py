"""The endpoint against a faulty server: the reply to each request, the budget, and the cache."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from ralign.engine.config.judge import EndpointConfig
from ralign.engine.data.verdicts import visible
from ralign.engine.judging.cache import ReplyCache
from ralign.engine.judging.client import MAX_REPLY_BYTES, Failure, read_completion
from ralign.engine.judging.endpoint import Endpoint
from ralign.engine.judging.judge import ClientContext, Request, ask
from ralign.engine.judging.lm_metarm import parse_review
from ralign.engine.judging.metarm import Outcome


@pytest.fixture(params=[0, pytest.param(1, marks=pytest.mark.jobs)], ids=["thread", "process"])
def num_processes(request):
    return request.param


@pytest.fixture
def make(fake_endpoint, num_processes):
    """An endpoint of a fake server, and that server."""
    opened = []

    def start(server=None, *, latency_s=0.0, patience_s=0.0, **config):
        server = server or fake_endpoint(latency_s)
        config = {"model": "m", "timeout_s": 60.0, "num_retries": 2, "max_backoff_s": 0.02} | config
        config = {"num_processes": num_processes} | config
        endpoint = Endpoint(EndpointConfig(base_url=server.url, **config), patience_s=patience_s)
        opened.append(endpoint)
        return endpoint, server

    start.opened = opened
    yield start
    for endpoint in opened:
        endpoint.close()


def ask_one(endpoint, prompt, attempt=0):
    return ask(endpoint, [Request.of(prompt, attempt)])[0]


def test_a_good_answer_comes_with_its_tokens(make):
    endpoint, _ = make()
    reply = ask_one(endpoint, "hello")
    assert "<final_verdict>Correct" in reply.text and not reply.failed and not reply.problem
    assert (reply.num_prompt_tokens, reply.num_answer_tokens, reply.finish_reason) == (70, 30, "stop")
    assert (endpoint.usage.num_calls, endpoint.usage.num_prompt_tokens) == (1, 70)


@pytest.mark.parametrize("behaviour", ["429", "500", "503", "broken", "nested", "reset", "timeout", "drip"])
def test_temporary_failures_are_retried_and_then_fail(make, behaviour):
    endpoint, server = make(timeout_s=1.5 if behaviour in ("timeout", "drip") else 5.0)
    assert not ask_one(endpoint, f"[{behaviour}*2]").failed
    assert server.tries(f"[{behaviour}*2]") == 3 and endpoint.usage.num_retries == 2
    reply = ask_one(endpoint, f"[{behaviour}]")
    assert reply.failed and reply.text == "" and "after 2 retries" in reply.problem
    assert server.tries(f"[{behaviour}]") == 3
    assert endpoint.stop_reason is None and not ask_one(endpoint, "still fine").failed


def test_a_refused_request_fails_at_once_and_alone(make):
    endpoint, server = make()
    reply = ask_one(endpoint, "[400]")
    assert reply.failed and "400" in reply.problem and server.tries("[400]") == 1
    assert endpoint.stop_reason is None


@pytest.mark.parametrize("status", ["401", "404", "quota"])
def test_a_refused_key_or_model_stops_the_endpoint(make, status):
    endpoint, server = make(concurrency=1)
    assert ask_one(endpoint, f"[{status}]").failed
    assert status.replace("quota", "429") in endpoint.stop_reason and "model m" in endpoint.stop_reason
    assert server.tries(f"[{status}]") == 1
    assert ask_one(endpoint, "next").failed and server.tries("next") == 0


def test_retry_after_is_a_lower_bound_of_the_pause(make):
    endpoint, _ = make()
    start_s = time.monotonic()
    assert not ask_one(endpoint, "[429 later*1]").failed
    assert time.monotonic() - start_s >= 1.0


@pytest.mark.parametrize(
    ("behaviour", "problem"), [("empty", "empty"), ("none", "empty"), ("huge", "bytes"), ("endless", "bytes")]
)
def test_an_answer_without_usable_text_is_not_a_failed_call(make, behaviour, problem):
    endpoint, server = make(timeout_s=20.0)
    reply = ask_one(endpoint, f"[{behaviour}]")
    assert not reply.failed and reply.text == "" and problem in reply.problem
    assert server.tries(f"[{behaviour}]") == 1


def test_a_lone_surrogate_becomes_text_that_can_be_written(make, tmp_path):
    endpoint, _ = make(cache=str(tmp_path / "cache"))
    assert ask_one(endpoint, "[surrogate]").text.startswith("?<golden_key_points>")


def test_concurrency_limits_the_requests_under_way(make):
    endpoint, server = make(latency_s=0.05, concurrency=7)
    replies = ask(endpoint, [Request.of(f"prompt {n}") for n in range(50)])
    assert not any(reply.failed for reply in replies)
    assert server.stats()["most_at_once"] == 7


def test_equal_requests_under_way_are_sent_once_and_attempts_apart(make):
    endpoint, server = make(latency_s=0.2)
    ask(endpoint, [Request.of("same")] * 5 + [Request.of("same", attempt=1)])
    assert server.tries("same") == 2


def test_a_greedy_request_is_one_at_temperature_0(make, tmp_path):
    requests = [Request.of("same"), replace(Request.of("same"), greedy=True)]
    endpoint, server = make(temperature=0.4, cache=str(tmp_path))
    ask(endpoint, requests)
    assert server.tries("same") == 2
    always_greedy, _ = make(server, temperature=0.0, cache=str(tmp_path))
    assert all(reply.cached for reply in ask(always_greedy, requests)) and server.tries("same") == 2


def test_the_cache_answers_a_second_run_without_a_call(make, tmp_path):
    requests = [Request.of(f"prompt {n}") for n in range(40)]
    first, server = make(cache=str(tmp_path))
    replies = ask(first, requests)
    second, _ = make(server, cache=str(tmp_path))
    again = ask(second, requests)
    assert server.stats()["num_asked"] == 40
    assert [reply.text for reply in again] == [reply.text for reply in replies]
    assert all(reply.cached for reply in again) and second.usage.num_cached == 40
    assert second.usage.num_prompt_tokens == 0


@pytest.mark.parametrize(
    "change",
    [{"model": "other"}, {"temperature": 0.5}, {"max_new_tokens": 9}, {"extra": '{"top_p": 0.9}'}],
)
def test_another_model_or_sampling_has_another_cache_key(make, tmp_path, change):
    first, server = make(cache=str(tmp_path))
    ask_one(first, "p")
    second, _ = make(server, cache=str(tmp_path), **change)
    assert not ask_one(second, "p").cached


def test_failures_and_unusable_answers_are_not_cached(make, tmp_path):
    endpoint, server = make(cache=str(tmp_path), num_retries=0)
    for prompt in ("[500*1]", "[empty*1]"):
        ask_one(endpoint, prompt)
        assert "Correct" in ask_one(endpoint, prompt).text
        assert server.tries(prompt) == 2


@pytest.mark.parametrize(
    "budget", [{"budget_tokens": 1000}, {"budget_cost": 1e-3, "price_in": 1.0, "price_out": 1.0}]
)
def test_a_spent_budget_stops_the_endpoint_in_order(make, budget):
    endpoint, server = make(concurrency=4, **budget)
    replies = ask(endpoint, [Request.of(f"prompt {n}") for n in range(100)])
    num_answered = sum(not reply.failed for reply in replies)
    assert 5 <= num_answered <= 10  # 100 tokens a call
    assert server.stats()["num_asked"] == num_answered
    assert "budget" in endpoint.stop_reason and "budget" in replies[-1].problem


def test_the_budget_counts_the_tokens_of_a_checkpoint(make):
    first, server = make(budget_tokens=1000, concurrency=1)
    ask(first, [Request.of(f"hello {n}") for n in range(100)])
    num_asked = server.stats()["num_asked"]
    assert 0 < num_asked < 100 and sum(first.tokens_used) <= 1000
    second, _ = make(server, budget_tokens=1000, concurrency=1)
    second.restore_tokens_used(first.tokens_used)
    assert all(reply.failed for reply in ask(second, [Request.of("another one")]))
    assert server.stats()["num_asked"] == num_asked
    second.restore_tokens_used((0, 0))  # the larger count holds
    assert second.tokens_used == first.tokens_used


def test_the_budget_counts_the_tokens_of_the_context(fake_endpoint):
    """Each of two clients has half of the budget, of which this one has used all."""
    config = EndpointConfig(model="m", base_url=fake_endpoint().url, budget_tokens=1000)
    endpoint = Endpoint(config, ClientContext(num_clients=2, tokens_used=(400, 100)))
    assert "the budget of 1000 tokens is spent" in ask_one(endpoint, "hello").problem
    endpoint.close()


def test_the_budget_counts_the_tokens_of_an_earlier_process(make, tmp_path):
    first, server = make(cache=str(tmp_path), budget_tokens=1000, concurrency=1)
    ask(first, [Request.of(f"prompt {n}") for n in range(8)])
    second, _ = make(server, cache=str(tmp_path), budget_tokens=1000, concurrency=1)
    replies = ask(second, [Request.of(f"other {n}") for n in range(8)])
    assert 1 <= sum(not reply.failed for reply in replies) <= 2


def test_a_cache_that_fails_stops_the_endpoint_and_loses_no_answer(make, tmp_path, monkeypatch):
    endpoint, server = make(cache=str(tmp_path))

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(ReplyCache, "put", full)
    replies = ask(endpoint, [Request.of(f"prompt {n}") for n in range(20)])
    assert all("Correct" in reply.text for reply in replies if not reply.failed)
    assert sum(not reply.failed for reply in replies) == server.stats()["num_asked"] > 0
    assert "disk is full" in endpoint.stop_reason
    assert ask_one(endpoint, "next").problem == endpoint.stop_reason and server.tries("next") == 0


def test_an_unreadable_cache_is_a_failed_call(make, tmp_path, monkeypatch):
    endpoint, _ = make(cache=str(tmp_path))

    def broken(self, key):
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(ReplyCache, "get", broken)
    assert ask_one(endpoint, "hello").failed and "cannot be read" in endpoint.stop_reason


def test_closing_ends_every_request(make):
    endpoint, server = make(timeout_s=60.0, concurrency=3)
    futures = [endpoint.submit(Request.of(f"[held] {n}")) for n in range(10)]
    server.wait_until_under_way(3)
    endpoint.close()
    assert all(future.result(1).problem == "the judge was closed" for future in futures)
    make.opened.remove(endpoint)


@pytest.mark.parametrize("wait_s", [0.0, 0.003, 0.02, 0.2])
def test_closing_while_a_client_process_starts_leaves_none_behind(fake_endpoint, wait_s):
    endpoint = Endpoint(EndpointConfig(model="m", base_url=fake_endpoint(5.0).url, num_processes=2))
    futures = [endpoint.submit(Request.of(f"prompt {n}")) for n in range(8)]
    time.sleep(wait_s)
    endpoint.close()
    assert all(future.result(1).problem == "the judge was closed" for future in futures)
    assert children() == []


def test_a_cancelled_future_leaves_the_others(make):
    endpoint, _ = make(latency_s=0.2, concurrency=1)
    futures = [endpoint.submit(Request.of(f"prompt {n}")) for n in range(3)]
    assert futures[2].cancel()
    assert not futures[1].result(10).failed and not ask_one(endpoint, "prompt 2").failed


def test_a_server_that_is_gone_for_good_ends_the_wait(fake_endpoint):
    server, config = fake_endpoint(), EndpointConfig(model="m", num_retries=0, concurrency=1)
    reasons = iter([None, None])
    failure = lambda: next(reasons, "it died twice")  # noqa: E731
    endpoint = Endpoint(config, base_url=server.url, patience_s=600, failure=failure)
    server.close()
    replies = ask(endpoint, [Request.of("one"), Request.of("two")])
    assert [reply.problem for reply in replies] == ["it died twice"] * 2
    assert endpoint.stop_reason == "it died twice"
    endpoint.close()


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "ralign.engine.judging.client_process" in p.cmdline()]


def test_a_killed_client_process_loses_no_request(fake_endpoint):
    server = fake_endpoint()
    endpoint = Endpoint(EndpointConfig(model="m", base_url=server.url, concurrency=16, num_processes=2))
    futures = [endpoint.submit(Request.of(f"[held*1] {n}")) for n in range(48)]
    server.wait_until_under_way(16)  # 8 from each process
    assert len(children()) == 2
    children()[0].kill()
    server.release()
    assert not any(future.result(60).failed for future in futures)
    assert endpoint.usage.num_calls == 48 and endpoint.usage.num_retries >= 8
    endpoint.close()
    assert children() == []


def test_client_processes_end_with_a_killed_parent(fake_endpoint, tmp_path):
    server = fake_endpoint(0.02)
    program = start_program(server, tmp_path / "cache", 0, 400, num_processes=1)
    assert program.stdout.readline() == "done\n"
    (child,) = psutil.Process(program.pid).children()
    child.send_signal(signal.SIGTERM)  # the job handles it, and may need more answers to finish its step
    assert program.stdout.readline() == "done\n" and child.is_running()
    program.kill()
    program.wait()
    child.wait(10)


_PROGRAM = """
import sys
from ralign.engine.config.judge import EndpointConfig
from ralign.engine.judging.endpoint import Endpoint
from ralign.engine.judging.judge import Request
url, cache, start, num, num_processes = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
config = EndpointConfig(model="m", base_url=url, cache=cache, concurrency=8, num_processes=num_processes)
endpoint = Endpoint(config)
for future in [endpoint.submit(Request.of(f"prompt {n}")) for n in range(start, start + num)]:
    assert future.result().text
    print("done", flush=True)
endpoint.close()
"""


def start_program(server, cache, start, num, num_processes=0):
    command = [sys.executable, "-c", _PROGRAM, server.url, str(cache)]
    command += [str(number) for number in (start, num, num_processes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_share_a_cache(make, tmp_path):
    _, server = make()
    programs = [start_program(server, tmp_path / "cache", start, 60) for start in (0, 30)]
    assert [program.wait(60) for program in programs] == [0, 0]
    endpoint, _ = make(server, cache=str(tmp_path / "cache"))
    num_asked = server.stats()["num_asked"]
    assert 90 <= num_asked <= 120
    assert all(reply.cached for reply in ask(endpoint, [Request.of(f"prompt {n}") for n in range(90)]))
    assert server.stats()["num_asked"] == num_asked


def test_a_killed_process_leaves_a_cache_with_all_its_replies(make, fake_endpoint, tmp_path):
    server = fake_endpoint(0.02)
    program = start_program(server, tmp_path / "cache", 0, 400)
    for _ in range(50):
        assert program.stdout.readline() == "done\n"
    program.kill()
    program.wait()
    endpoint, _ = make(server, cache=str(tmp_path / "cache"))
    replies = ask(endpoint, [Request.of(f"prompt {n}") for n in range(50)])
    assert all(reply.cached and "Correct" in reply.text for reply in replies)


def test_a_request_waits_for_an_unreachable_server(make, fake_endpoint, tmp_path):
    server = fake_endpoint()
    endpoint, _ = make(server, patience_s=60, num_retries=0)
    port_file = tmp_path / "port-0.0"
    server.close()
    future = endpoint.submit(Request.of("hello"))
    time.sleep(0.5)
    assert not future.done()
    # The same port again: asyncio's servers reuse addresses.
    code = (
        "import asyncio, sys; sys.path.insert(0, sys.argv[2]); import fake_endpoint as f\n"
        "async def main():\n"
        "    s = await asyncio.start_server(f.Server(0).serve, '127.0.0.1', int(sys.argv[1]))\n"
        "    await s.serve_forever()\n"
        "asyncio.run(main())"
    )
    programs = str(Path(__file__).parents[2] / "programs")
    again = subprocess.Popen([sys.executable, "-c", code, port_file.read_text(), programs])
    try:
        assert "Correct" in future.result(timeout=30).text
    finally:
        again.kill()
        again.wait()


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 5}}]}', b"\xff"],
)
def test_bodies_that_are_not_completions_are_retried(content):
    with pytest.raises(Failure) as caught:
        read_completion(content)
    assert caught.value.retry


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thinking_that_the_server_split_off_is_put_before_the_answer(field):
    def body(content):
        return json.dumps({"choices": [{"message": {"content": content, field: "A? \\boxed{A}"}}]}).encode()

    reply = read_completion(body("B it is. \\boxed{B}"))
    assert visible(reply.text) == "B it is. \\boxed{B}" and reply.text.startswith("A? \\boxed{A}\n\n</think>")
    assert read_completion(body("")).problem == read_completion(body(None)).problem == "the answer is empty"


def test_an_answer_whose_thinking_took_all_tokens_is_a_failed_call():
    message = {"role": "assistant", "content": None, "reasoning_content": "Correct, I think"}
    choice = {"message": message, "finish_reason": "length"}
    usage = {"prompt_tokens": 5, "completion_tokens": 96}
    for content in (None, "", " \n"):
        message["content"] = content
        reply = read_completion(json.dumps({"choices": [choice], "usage": usage}).encode())
        assert reply.failed and reply.problem == "the answer was cut off before its text"
        assert (reply.num_prompt_tokens, reply.num_answer_tokens) == (5, 96)
        assert parse_review(reply).outcome is Outcome.CALL_FAIL
    message["content"] = "<final_verdict>Corr"  # cut off in its text: an answer, though not a usable one
    reply = read_completion(json.dumps({"choices": [choice], "usage": usage}).encode())
    assert not reply.failed and parse_review(reply).outcome is Outcome.PARSE_FAIL
    choice["finish_reason"], message["content"] = "stop", None
    assert not read_completion(json.dumps({"choices": [choice]}).encode()).failed


def test_tokens_are_estimated_if_the_server_reports_none():
    content = json.dumps({"choices": [{"message": {"content": "x" * 40}}]}).encode()
    reply = read_completion(content, num_prompt_chars=100)
    assert (reply.num_prompt_tokens, reply.num_answer_tokens) == (25, 10)
    assert read_completion(b"x" * (MAX_REPLY_BYTES + 1)).problem
