"""The endpoint against servers that send anything: every request ends, in time, as a reply or a failure.

Nothing is thrown, no text is accepted that the server did not send as an answer, and the key is in no message. The
last test draws faults at random, 60 by default; RALIGN_FUZZ_INPUTS=1000 draws that many new ones.
"""

import gzip
import itertools
import json
import os
import random
import re
import signal
import socket
import sqlite3
import sys
import zlib
from concurrent.futures import wait
from contextlib import suppress

import psutil
import pytest
from ralign.engine.config.judge import EndpointConfig
from ralign.engine.judging import client_process, endpoint
from ralign.engine.judging.client_reply import MAX_REPLY_BYTES
from ralign.engine.judging.endpoint import NUM_REFUSED, Endpoint
from ralign.engine.judging.judge import Request

KEY = "sk-canary-5f1d0c"
GOOD = "A is right about it. \\boxed{A}"
TIMEOUT_S = 3.0
SLACK_S = (
    60.0  # a loaded machine starts a client process in seconds; what is looked for is a wait without end
)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(endpoint, "MAX_RETRY_AFTER_S", 0.2)


@pytest.fixture(params=["thread", "thread+cache", pytest.param("process+cache", marks=pytest.mark.jobs)])
def settings(request, tmp_path):
    """Settings of the three ways to run."""
    where, _, cache = request.param.partition("+")
    chosen = {"num_processes": int(where == "process")}
    return chosen | ({"cache": str(tmp_path / "cache")} if cache else {})


@pytest.fixture
def make(fault_server):
    """An endpoint of the fault server."""
    opened = []

    def start(**settings):
        defaults = {"timeout_s": TIMEOUT_S, "num_retries": 1, "max_backoff_s": 0.02, "concurrency": 256}
        defaults |= {"num_processes": 0}
        config = EndpointConfig(model="m", base_url=fault_server.url, **(defaults | settings))
        opened.append(Endpoint(config))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def ask_all(judge, names, num_tries=2):
    """The replies by name, in time."""
    futures = {name: judge.submit(Request.of(f"fault {name}")) for name in names}
    done, late = wait(futures.values(), timeout=num_tries * TIMEOUT_S + SLACK_S)
    assert not late, [name for name, future in futures.items() if future in late]
    return {
        name: future.result() for name, future in futures.items()
    }  # raises what an endpoint must not raise


def body_faults(f):
    """name -> (body of status 200, text of the reply; None for a failed call, "" for an answer without text)."""
    text, chunk = f.completion(GOOD), {"type": "text", "text": GOOD}
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm \\boxed{B}"}]}
    usage = {"prompt_tokens": 10**30, "completion_tokens": 10**400}
    deep = b'{"choices": [{"message": {"content": "x"}}], "usage": ' + b"[" * 100_000
    return {
        "good": (text, GOOD),
        "reasoning_alone": (f.completion(None, reasoning_content=GOOD), ""),
        "cut_off_in_thought": (f.completion(None, finish_reason="length", reasoning_content=GOOD), None),
        "cut_off": (f.completion(GOOD, finish_reason="length"), GOOD),
        "chunks": (f.completion([thinking, chunk]), f"hm \\boxed{{B}}\n\n</think>\n\n{GOOD}"),
        "unknown_chunk": (f.completion([chunk, {"type": "image"}]), None),
        "no_chunks": (f.completion([]), None),
        "no_choices": ({"choices": [], "usage": text["usage"]}, None),
        "null_choices": ({"choices": None}, None),
        "choices_by_name": ({"choices": {"0": text["choices"][0]}}, None),
        "null_body": (None, None),
        "list_body": ([1, 2, 3], None),
        "overloaded": ({"error": {"message": "overloaded", "code": 503}}, None),
        "error_and_text": (text | {"error": {"message": "the upstream broke"}}, None),
        "error_without_words": ({"error": [[]]}, None),
        "huge_usage": (text | {"usage": usage}, GOOD),
        "negative_usage": (f.completion(GOOD, usage=(-(10**6), -5)), GOOD),
        "usage_of_kinds": (f.completion(GOOD, usage=(1.5, True)), GOOD),
        "usage_not_finite": (f.completion(GOOD, usage=(float("nan"), float("inf"))), GOOD),
        "usage_text": (text | {"usage": "many"}, GOOD),
        "long_number": (b'{"choices": [], "usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}", None),
        "surrogate": (f.completion("\ud800" + GOOD), "?" + GOOD),
        "control_characters": (f.completion("\x00\x1b[2J\u2028" + GOOD), "\x00\x1b[2J\u2028" + GOOD),
        "finish_object": (f.completion(GOOD, finish_reason={"a": 1}), GOOD),
        "not_utf8": (b'{"choices": [{"message": {"content": "\xff\xfe"}}]}', None),
        "utf16": (json.dumps(text).encode("utf-16"), GOOD),
        "not_json": (b"hello", None),
        "half": (json.dumps(text).encode()[:-20], None),
        "nested": (b"[" * 200_000, None),
        "nested_usage": (deep, None),
        "huge": (f.completion("a" * 3_000_000), ""),
        "echoed_key": (f.completion(f"your key is {KEY}"), "your key is ***"),
    }


def wire_faults(f):
    """name -> (fault, text of the reply; None for a failed call, "" for an answer without text)."""
    good = json.dumps(f.completion(GOOD)).encode()
    bomb = gzip.compress(b'{"choices": [{"message": {"content": "' + b"a" * 50_000_000)
    raw = {
        "garbage": b"\x00\x01garbage\r\n\r\n",
        "negative_length": b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n{}",
        "two_lengths": f.http(200, good, "content-length: 5"),
        "long_header": f.http(200, good, "x: " + "a" * 200_000),
        "bad_header": f.http(200, good, b"\xff\xfe\x00: \x00"),
        "reason_not_utf8": f.http(200, good).replace(b"200 X", b"500 \xff\xed\xa0\x80", 1),
        "bad_version": b"HTTP/9.x 200 OK\r\n\r\n",
        "bad_chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\nxx\r\n",
        "empty": b"",
        "half_a_header": b"HTTP/1.1 200",
        "short": f.http(200, good)[:-30],
        "status_204": f.http(204, b""),
        "status_418": f.http(418, {"error": {"message": "teapot"}}),
        "status_500": f.http(500, {"error": {"message": "boom"}}),
        "status_999": f.http(999, b"?"),
        "html": f.http(502, b"<html>\x1b[31mbad\x1b[0m gateway</html>", "content-type: text/html"),
        "bad_charset": f.http(500, b"\xff", "content-type: text/html; charset=none"),
        "not_gzip": f.http(200, good, "content-encoding: gzip"),
        "unknown_encoding": f.http(200, good, "content-encoding: zstd"),
        "early_hints": b"HTTP/1.1 103 Early\r\n\r\n" * 1000,
    }
    expected = {
        "gzip": (f.http(200, gzip.compress(good), "content-encoding: gzip"), GOOD),
        "deflate": (f.http(200, zlib.compress(good), "content-encoding: deflate"), GOOD),
        "gzip_bomb": (f.http(200, bomb, "content-encoding: gzip"), ""),
        "cookies": (f.http(200, good, *[f"set-cookie: a{n}=\xff" for n in range(50)]), GOOD),
    }
    for header in ("1", "1e9", "inf", "-5", "\u00b2", "9" * 250, "Fri, 31 Dec 2099 23:59:59 GMT", "Fri, 99"):
        answer = f.http(429, {"error": {"message": "slow down"}}, f"retry-after: {header}")
        expected[f"retry_after_{len(expected)}"] = (answer, None)
    for location in ("/good", "file:///etc/passwd", "http://[::bad/", "//u:p@h:x", "\xff", ""):
        expected[f"redirect_{len(expected)}"] = (f.http(302, b"", f"location: {location}"), None)
    known = {name: (f.Fault(data, then="close"), None) for name, data in raw.items()}
    known |= {name: (f.Fault(data), text) for name, (data, text) in expected.items()}
    known["silent"] = (f.Fault(b"", then="wait"), None)
    known["slow"] = (f.Fault(f.http(200, good), piece_bytes=1, pause_s=0.5), None)
    known["never_ending"] = (f.Fault(f.http(200, b" " * 10**6), piece_bytes=10, pause_s=0.01), None)
    known["more_than_asked"] = (f.Fault(f.http(200, good) * 3, then="close"), GOOD)
    return known


def all_faults(f):
    of_bodies = {name: (f.Fault(f.http(200, body)), text) for name, (body, text) in body_faults(f).items()}
    return of_bodies | wire_faults(f)


def test_every_fault_ends_in_time_as_a_reply_or_a_failure(make, fault_server, faults, settings):
    table = all_faults(faults)
    fault_server.faults = {name: fault for name, (fault, _) in table.items()}
    judge = make(**settings)
    ask_all(judge, ["good"])  # the first refusals would stop an endpoint without any answer
    replies = ask_all(judge, [name for name in table if name != "good"])
    for name, reply in replies.items():
        text = table[name][1]
        assert reply.failed == (text is None), (name, reply)
        assert reply.text == (text or "") and bool(reply.problem) == (not text), (name, reply)
        assert KEY not in str(reply) and reply.problem.isprintable(), (name, reply)
        assert 0 <= reply.num_answer_tokens <= 2_000_000 and 0 <= reply.num_prompt_tokens < 1000, (
            name,
            reply,
        )
    assert judge.stop_reason is None
    assert "base_url" in next(reply.problem for name, reply in replies.items() if "redirect" in name)
    assert judge.tokens_used == (judge.usage.num_prompt_tokens, judge.usage.num_answer_tokens)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (200, {"code": 401, "message": "invalid api key"}),
        (200, {"code": "402", "message": "no credit"}),
        (200, {"type": "permission_error", "message": "not yours"}),
        (402, {"message": "no credit"}),
        (429, {"code": "insufficient_quota", "message": "no credit"}),
        (500, {"code": 401, "message": f"Incorrect API key: Bearer {KEY}"}),
    ],
)
def test_an_error_of_key_or_credit_stops_the_endpoint_with_its_sentence(
    make, fault_server, faults, status, error
):
    fault_server.faults = {"stop": faults.Fault(faults.http(status, {"error": error}))}
    judge = make()
    assert ask_all(judge, ["stop"])["stop"].failed
    sentence = error["message"].replace(KEY, "***")
    assert sentence in judge.stop_reason and KEY not in judge.stop_reason
    assert fault_server.num_asked["stop"] == 1
    assert ask_all(judge, ["other"])["other"].problem == judge.stop_reason


def refuses(message, status=400):
    return lambda f: f.Fault(f.http(status, {"error": {"message": message}}))


@pytest.mark.parametrize(
    ("refuse", "words"),
    [
        (
            refuses("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
            'endpoint.extra=\'{"top_p": 1, "max_completion_tokens": 16384, "max_tokens": null}\'',
        ),
        (
            refuses("Unknown field max_completion_tokens", 422),
            '"max_tokens": 16384, "max_completion_tokens": null',
        ),
        (refuses("top_p is not supported"), '{"top_p": null}'),
        (refuses("no"), "endpoint.extra (null leaves a field out), or change endpoint.max_new_tokens"),
        (
            lambda f: f.Fault(f.http(301, b"", "location: https://u:p@other/v1?key=K")),
            "redirects to other (status",
        ),
    ],
)
def test_a_refusal_of_every_request_stops_early_and_names_the_setting(
    make, fault_server, faults, refuse, words
):
    fault_server.faults = {f"n{n}": refuse(faults) for n in range(40)}
    judge = make(concurrency=4, extra='{"top_p": 1}')
    assert all(reply.failed for reply in ask_all(judge, fault_server.faults).values())
    assert NUM_REFUSED <= fault_server.num_asked.total() <= NUM_REFUSED + 4
    assert words in judge.stop_reason, judge.stop_reason


def test_refusals_after_an_answer_or_of_some_requests_do_not_stop(make, fault_server, faults):
    good = faults.http(200, faults.completion(GOOD))
    too_long = {f"n{n}": refuses(f"the prompt has {9000 + n} tokens")(faults) for n in range(2 * NUM_REFUSED)}
    fault_server.faults = too_long | {"good": faults.Fault(good, delay_s=0.5)}
    first = make(concurrency=32)
    assert not ask_all(first, ["good", *too_long])["good"].failed and first.stop_reason is None
    fault_server.faults = dict.fromkeys(too_long, refuses("no")(faults)) | {"good": faults.Fault(good)}
    second = make(concurrency=1)
    ask_all(second, ["good", *too_long])
    assert second.stop_reason is None


def test_what_cannot_be_used_counts_if_the_server_charged_for_it(make, fault_server, faults, settings):
    f = faults
    charged = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 0}}
    fault_server.faults = {
        "charged": f.Fault(f.http(200, charged)),
        "list": f.Fault(f.http(200, f.completion([{}], usage=(5, 6)))),
        "free": f.Fault(f.http(200, {"choices": None})),
        "zero": f.Fault(f.http(200, f.completion("x" * 40, usage=(0, 0)))),
    }
    judge = make(**settings)
    replies = ask_all(judge, ["charged", "list", "free", "zero"])
    tokens = {name: (reply.num_prompt_tokens, reply.num_answer_tokens) for name, reply in replies.items()}
    assert tokens == {"charged": (18, 0), "list": (10, 12), "free": (0, 0), "zero": (3, 10)}
    assert judge.tokens_used == (31, 22) and judge.usage.num_estimated == 1
    if "cache" in settings:
        assert make(**settings).tokens_used == (31, 22)


def test_a_spent_budget_ends_the_retries(make, fault_server, faults):
    charged = {"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 0}}
    fault_server.faults = {"charged": faults.Fault(faults.http(200, charged))}
    judge = make(num_retries=100_000, budget_tokens=350)
    assert "budget" in ask_all(judge, ["charged"])["charged"].problem
    assert fault_server.num_asked["charged"] == 4 and "budget" in judge.stop_reason


def test_a_redirect_sends_nothing_to_another_host(make, fault_server, faults, fake_endpoint):
    other = fake_endpoint()
    locations = [f"{other.root}/v1/chat/completions", f"http://localhost:{other.root.rpartition(':')[2]}/v1"]
    redirects = [
        faults.http(status, b"", f"location: {to}") for status in (301, 302, 307, 308) for to in locations
    ]
    fault_server.faults = {f"n{n}": faults.Fault(redirect) for n, redirect in enumerate(redirects)}
    judge = make()
    assert all(
        "which is not followed" in reply.problem for reply in ask_all(judge, fault_server.faults).values()
    )
    assert other.stats()["num_asked"] == 0


def test_cut_cache_rows_are_asked_for_again_and_replaced(make, fault_server, faults, tmp_path):
    names = [f"n{n}" for n in range(4)]
    fault_server.faults = dict.fromkeys(names, faults.Fault(faults.http(200, faults.completion(GOOD))))
    cache = {"cache": str(tmp_path)}
    ask_all(make(**cache), names)
    with sqlite3.connect(next(tmp_path.glob("*.sqlite"))) as db:
        keys = [row[0] for row in db.execute("SELECT key FROM replies")]
        rows = ['{"text": "A', "[" * 100_000, b"\xff\xfe", '{"text": "x", "num_prompt_tokens": "no"}']
        db.executemany("UPDATE replies SET reply = ? WHERE key = ?", zip(rows, keys, strict=True))
    assert all(reply.text == GOOD and not reply.cached for reply in ask_all(make(**cache), names).values())
    assert all(reply.text == GOOD and reply.cached for reply in ask_all(make(**cache), names).values())
    assert set(fault_server.num_asked.values()) == {2}


@pytest.mark.parametrize("sends", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n\r\n{"])
def test_a_server_that_never_reads_the_request_is_given_up(sends):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        judge = Endpoint(EndpointConfig(model="m", base_url=url, timeout_s=1.0, num_retries=0))
        future = judge.submit(Request.of("x" * 10_000_000))  # more than the sockets hold
        connection, _ = server.accept()
        with connection:
            connection.sendall(sends)
            assert future.result(SLACK_S).problem == "no answer within 1 s"
            judge.close()


def test_pauses_are_bounded(make):
    judge = make()
    assert all(0 <= judge._pause_s(10**6, after_s) <= 0.2 for after_s in (None, 0.0, 1e300))


@pytest.fixture
def in_process(make, fault_server, faults, monkeypatch):
    """An endpoint with one client process, with short deadlines of its own."""
    monkeypatch.setattr(client_process, "START_TIMEOUT_S", 20.0)
    monkeypatch.setattr(client_process, "GRACE_S", 0.5)
    fault_server.faults = {"good": faults.Fault(faults.http(200, faults.completion(GOOD)))}
    return lambda **settings: make(**{"num_processes": 1, "timeout_s": 1.0} | settings)


def children():
    return [p for p in psutil.Process().children() if "ralign.engine.judging.client_process" in p.cmdline()]


def test_a_client_process_that_stops_is_replaced(in_process):
    judge = in_process(num_retries=5)
    ask_all(judge, ["good"])
    (stopped,) = children()
    stopped.send_signal(signal.SIGSTOP)
    reply = judge.submit(Request.of("fault good", 1)).result(SLACK_S)
    assert reply.text == GOOD and judge.usage.num_retries >= 1
    assert stopped not in children()


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("/none", "cannot start: No such file or directory"),
        ("/bin/true", "ended with status 0"),
        ("sleeps", "did not start within 0.5 s"),
    ],
)
def test_a_client_process_that_cannot_start_is_a_failure(in_process, monkeypatch, tmp_path, program, problem):
    if program == "sleeps":
        monkeypatch.setattr(client_process, "START_TIMEOUT_S", 0.5)
        program = tmp_path / "sleeps"
        program.write_text("#!/bin/sh\nexec sleep 600\n")
        program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    judge = in_process()
    reply = judge.submit(Request.of("fault good")).result(SLACK_S)
    assert reply.failed and f"the client process {problem}" in reply.problem


def test_nothing_is_sent_after_closing(make, fault_server):
    judge = Endpoint(EndpointConfig(model="m", base_url=fault_server.url))
    judge.close()
    assert judge.submit(Request.of("fault good")).result(5).problem == "the judge was closed"


# ---- faults at random

NUM_DRAWN = int(os.environ.get("RALIGN_FUZZ_INPUTS", "60"))
BATCH = 250


def draw(rng, f, pool):
    """A fault from the pool with changes of its status, headers, body bytes and timing."""
    usable = [name for name, (_, text) in pool.items() if text]
    fault, _ = pool[rng.choice(usable if rng.random() < 0.5 else list(pool))]
    data = bytearray(fault.data[: MAX_REPLY_BYTES * 2])
    if rng.random() < 0.3 and data.startswith(b"HTTP/1.1 "):
        data[9:12] = rng.choice([b"200", b"200", b"206", b"304", b"307", b"400", b"413", b"429", b"503"])
    if rng.random() < 0.3:
        lines = [
            "retry-after: ",
            "content-encoding: ",
            "transfer-encoding: chunked",
            "connection: close",
            "x\xff:",
        ]
        value = bytes(rng.randrange(256) for _ in range(rng.randrange(6)))
        at = data.find(b"\r\n") + 2
        data[at:at] = rng.choice(lines).encode() + value + b"\r\n"
    for _ in range(rng.choice([0, 0, 1, 3, 20])):
        at = rng.randrange(min(len(data), 2000) or 1)
        data[at : at + rng.randrange(3)] = bytes(rng.randrange(256) for _ in range(rng.randrange(3)))
    slow = rng.random() < 0.15
    return f.Fault(
        bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.15 else data),
        delay_s=rng.choice([0.0, 0.0, 0.2, TIMEOUT_S * 2]) if slow else 0.0,
        piece_bytes=rng.choice([1, 7, 1000]) if slow else 0,
        pause_s=0.02 if slow else 0.0,
        then=rng.choice(["close", "close", "keep", "wait"]),
    )


def texts_in(data):
    """The texts of all completions after any empty line of a response, read without a client."""
    bodies = [data[found.end() :] for found in re.finditer(rb"\n\r?\n", data)]
    for body in list(bodies):
        with suppress(zlib.error):
            bodies.append(zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body))
    for body, encoding in itertools.product(
        bodies, ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")
    ):
        with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
            sent = body.decode(encoding, "surrogatepass").lstrip(" \r\n\t")
            message = json.JSONDecoder().raw_decode(sent)[0]["choices"][0]["message"]
            thinking, answer = (
                message.get("reasoning_content") or message.get("reasoning") or "",
                message["content"],
            )
            if isinstance(answer, list):
                thinking += "".join(part["text"] for chunk in answer for part in chunk.get("thinking", []))
                answer = "".join(chunk.get("text", "") for chunk in answer)
            text = f"{thinking}\n\n</think>\n\n{answer}" if thinking and answer else answer
            yield text.replace(KEY, "***").encode("utf-8", "replace").decode()


@pytest.mark.parametrize("num_processes", [0, 1], ids=["thread", "process"])
def test_faults_drawn_at_random_neither_hang_nor_throw(make, fault_server, faults, tmp_path, num_processes):
    seed = random.randrange(2**32) if "RALIGN_FUZZ_INPUTS" in os.environ else 7
    rng, good = random.Random(seed), faults.Fault(faults.http(200, faults.completion(GOOD)))
    pool, num_replies, num_failed = all_faults(faults), 0, 0
    for start in range(0, NUM_DRAWN, BATCH):
        left = [f"f{n}" for n in range(start, min(NUM_DRAWN, start + BATCH))]
        drawn = {name: draw(rng, faults, pool) for name in left}
        while left:  # a drawn status such as 401 stops an endpoint; the next one asks for the rest
            fault_server.faults = drawn | {"good": good}
            fault_server.num_asked.clear()
            judge = make(num_processes=num_processes, cache=str(tmp_path / f"cache{start}"))
            assert ask_all(judge, ["good"])["good"].text == GOOD
            replies = ask_all(judge, left)
            for name, reply in replies.items():
                assert KEY not in str(reply) and reply.problem.isprintable(), (seed, name, reply)
                assert not (reply.failed and reply.text), (seed, name, reply)
                if reply.text:
                    assert reply.text in texts_in(drawn[name].data), (
                        seed,
                        name,
                        reply,
                        drawn[name].data[:3000],
                    )
                asked = fault_server.num_asked[name] > 0
                num_failed += asked and reply.failed
                num_replies += asked and not reply.failed
            left = [name for name in left if not fault_server.num_asked[name]]
    print(f"seed {seed}: {num_replies} replies and {num_failed} failures")
    assert num_replies > NUM_DRAWN / 20 and num_failed > NUM_DRAWN / 20
