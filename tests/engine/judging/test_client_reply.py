"""What is read from a server's body and headers: token counts, pauses, sentences for messages."""

import gzip
import json
import zlib
from email.utils import formatdate

import pytest
from ralign.engine.judging import client_reply
from ralign.engine.judging.client_reply import (
    MAX_REPLY_BYTES,
    MAX_TOKENS,
    Failure,
    ServerError,
    decoded,
    read_completion,
    refusal,
    retry_after_s,
    shown,
)


def body(usage, content="x" * 40):
    return json.dumps({"choices": [{"message": {"content": content}}], "usage": usage}).encode()


@pytest.mark.parametrize(
    "count",
    [
        None,
        0,
        -1,
        -(10**30),
        10**30,
        10**400,
        MAX_TOKENS + 1,
        1.5,
        7.0,
        True,
        "7",
        [7],
        float("nan"),
        float("inf"),
    ],
    ids=lambda count: str(count)[:12],
)
def test_an_unusable_count_is_replaced_by_an_estimate(count):
    reply = read_completion(body({"prompt_tokens": count, "completion_tokens": count}), num_prompt_chars=101)
    assert (reply.num_prompt_tokens, reply.num_answer_tokens) == (26, 10) and reply.tokens_estimated


@pytest.mark.parametrize("count", [1, 70, MAX_TOKENS])
def test_a_usable_count_holds(count):
    reply = read_completion(body({"prompt_tokens": count, "completion_tokens": count}), num_prompt_chars=101)
    assert (reply.num_prompt_tokens, reply.num_answer_tokens) == (count, count)
    assert not reply.tokens_estimated


def test_an_unusable_body_costs_what_it_reports_and_nothing_else():
    for usage, tokens in (
        ({"prompt_tokens": 9}, (9, 0)),
        ({"prompt_tokens": 0}, (25, 0)),
        (None, (0, 0)),
        ("9", (0, 0)),
    ):
        with pytest.raises(Failure) as caught:
            read_completion(json.dumps({"choices": [], "usage": usage}).encode(), num_prompt_chars=100)
        assert (caught.value.num_prompt_tokens, caught.value.num_answer_tokens) == tokens


@pytest.mark.parametrize(
    ("header", "pause_s"),
    [
        ("0", 0.0), ("7", 7.0), (" 7 ", 7.0), ("1.5", 1.5), ("9" * 300, 1e300), ("9" * 301, None), ("", None),
        ("-5", None), ("inf", None), ("nan", None), ("1e9", None), ("\u00b2", None), ("\u0667", None), ("0x7", None),
        ("Fri, 99 Foo", None), ("Fri, 31 Dec 99999 23:59:59 GMT", None), ("Mon, 01 Jan 1990 00:00:00 GMT", 0.0),
        ("Mon, 01 Jan 1990 00:00:00", 0.0), ("1 1 1 1 1 1 1", None),
    ],
)  # fmt: skip
def test_retry_after_is_a_number_of_seconds_or_a_date(header, pause_s):
    assert retry_after_s(header) == (pause_s if pause_s is None else pytest.approx(pause_s))


def test_the_date_of_a_retry_after_is_a_pause_from_now(monkeypatch):
    monkeypatch.setattr(client_reply.time, "time", lambda: 1_000_000_000.0)
    assert retry_after_s(formatdate(1_000_000_090, usegmt=True)) == 90.0


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_body_is_unpacked_up_to_a_limit(encoding, pack):
    assert decoded(pack(b"hello"), encoding) == b"hello"
    assert len(decoded(pack(b"a" * 30 * MAX_REPLY_BYTES), encoding)) == MAX_REPLY_BYTES + 1
    for content, wrong in (
        (b"hello", encoding),
        (pack(b"hello"), "br"),
        (pack(b"hello"), f"{encoding}, {encoding}"),
    ):
        with pytest.raises(Failure):
            decoded(content, wrong)


def test_a_servers_words_are_one_printable_line_without_the_key():
    text = shown(b"no\x1b[31m key\r\nsk-1 'Bearer abc.def' \xff", "sk-1")
    assert text.isprintable() and "sk-1" not in text and "abc" not in text and "Bearer ***" in text
    assert len(shown("x" * 1000)) == 300
    assert "sk" not in shown("x" * 298 + "sk-1", "sk-1")  # the key is not cut before it is found


@pytest.mark.parametrize(
    ("status", "message", "too_long"),
    [
        (400, "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens", True),
        (413, "Payload Too Large", True),
        (400, "prompt is too long: 210000 tokens > 200000 maximum", True),
        (400, "the request exceeds the available context size", True),
        (400, "Unsupported parameter: max_tokens", False),
        (500, "maximum context length", False),  # it is retried
        (401, "maximum context length", False),
    ],
)
def test_a_prompt_that_is_too_long_is_told_from_other_refusals(status, message, too_long):
    failure = refusal("who", status, b"{}", ServerError(message=message, status=None))
    assert failure.too_long is too_long
