"""What a server's response means: a `Reply` with text, or a `Failure` that states whether a retry makes sense.

Nothing here trusts the server. A body may be any bytes, a token count any number, a header any text. Sentences of the
server are quoted on one line of printable characters, and without the API key.

Token counts follow one rule. A count of the server holds if it is a whole number from 1 to MAX_TOKENS. In place of any
other (none, zero, negative, absurd) one token is counted for every four characters, because the provider charges
whatever it reports. A response without usable text costs what it reports, and nothing without a report.
"""

import json
import math
import re
import time
import zlib
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from ralign.engine.judging.judge import Reply
from ralign.engine.runtime.text import printable

MAX_REPLY_BYTES = 1 << 20
# vLLM, SGLang, OpenAI, Anthropic and llama.cpp, in this order
_TOO_LONG = re.compile(
    r"maximum context length|context length|maximum allowed length|context_length_exceeded|prompt is too long"
    r"|exceeds? the available context|input is too long",
    re.IGNORECASE,
)
MAX_TOKENS = 10_000_000  # of one prompt or answer; no model's context is longer
CHARS_PER_TOKEN = 4  # for servers that report no token counts

_RETRIED_STATUS = frozenset({408, 409, 425, 429})
_STOPPING_STATUS = frozenset({401, 402, 403, 404})
# Names in place of a number, in the `code` or `type` of an error.
_STATUS_OF_NAME = {
    "invalid_api_key": 401,
    "authentication_error": 401,
    "insufficient_quota": 402,
    "billing_error": 402,
    "permission_error": 403,
    "permission_denied": 403,
    "model_not_found": 404,
}
_MAX_SHOWN_CHARS = 300
_ENCODED = frozenset({"gzip", "x-gzip", "deflate"})


@dataclass(eq=False)
class Failure(Exception):
    """One try without an answer.

    Attributes:
        problem: what happened, in one line without the API key.
        retry: another try may succeed.
        after_s: the server's Retry-After, seconds; at least 0, and finite.
        unreachable: there was no connection, or it broke.
        stops: all other requests would fail too.
        refused_status: the status with which the server refuses this request whenever it is sent, or None.
        num_prompt_tokens, num_answer_tokens: what the server charged for it.
        too_long: the model does not take a prompt of this length.
    """

    problem: str
    retry: bool
    after_s: float | None = None
    unreachable: bool = False
    stops: bool = False
    refused_status: int | None = None
    num_prompt_tokens: int = 0
    num_answer_tokens: int = 0
    too_long: bool = False


@dataclass(frozen=True, slots=True)
class ServerError:
    """The error in a body.

    Attributes:
        message: the server's sentence, "" without one.
        status: its code, if that is one of HTTP's for an error, else None.
    """

    message: str
    status: int | None


def shown(text: str | bytes, api_key: str = "", max_chars: int = _MAX_SHOWN_CHARS) -> str:
    """The server's words for our messages: one printable line, without the key, cut to `max_chars`."""
    if isinstance(text, bytes):
        text = text[:MAX_REPLY_BYTES].decode("utf-8", "replace")
    text = re.sub(r"(?i)\bbearer\s+[^\s\"'<>,]+", "Bearer ***", without_key(text, api_key))
    return printable(" ".join(text.split()))[:max_chars]


def without_key(text: str, api_key: str) -> str:
    """`text` with the key, should the server send it back, as ***."""
    return text.replace(api_key, "***") if api_key else text


def decoded(content: bytes, encoding: str) -> bytes:
    """A body without its content encoding, cut after MAX_REPLY_BYTES + 1 bytes. Raises `Failure` if that fails."""
    if encoding in ("", "identity"):
        return content
    if encoding not in _ENCODED:
        raise Failure(f"the body has the encoding {shown(encoding, max_chars=40)!r}", retry=True)
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(content, MAX_REPLY_BYTES + 1)
    except zlib.error:
        raise Failure(f"the body is not {encoding}", retry=True) from None


def retry_after_s(header: str) -> float | None:
    """The pause of a Retry-After header, which is a number of seconds or a date; None for any other text."""
    header = header.strip()
    if re.fullmatch(r"[0-9]{1,300}(\.[0-9]{0,300})?", header):
        return float(header)
    try:
        date = parsedate_to_datetime(header)
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        return max(0.0, date.timestamp() - time.time())
    except (ValueError, TypeError, LookupError, OverflowError):
        return None


def parse_json(content: bytes) -> Any:
    """The JSON value of a body. Raises ValueError, also for too deep nesting and for too long numbers."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def error_in(body: Any, api_key: str = "") -> ServerError | None:
    """The error that a body carries, or None: `{"error": ...}`, or vLLM's older `{"object": "error", ...}`."""
    if not isinstance(body, dict):
        return None
    error = body if body.get("object") == "error" else body.get("error")
    if not error:
        return None
    if not isinstance(error, dict):
        return ServerError(shown(error, api_key) if isinstance(error, str) else "", None)
    known = (_status(error.get(name)) for name in ("code", "status", "type"))
    message = error.get("message")
    sentence = shown(message, api_key) if isinstance(message, str) else ""
    return ServerError(sentence, next((status for status in known if status), None))


def _status(code: Any) -> int | None:
    if isinstance(code, str):
        code = int(code) if re.fullmatch(r"[1-5][0-9]{2}", code) else _STATUS_OF_NAME.get(code)
    return code if isinstance(code, int) and 400 <= code < 600 else None


def refusal(who: str, status: int, content: bytes, error: ServerError | None, api_key: str = "") -> Failure:
    """The failure for an error status (400 or more) and its body; `who` begins its sentence.

    An error for want of a key, credit or permission stops all requests, in the status as in the body.
    """
    stops = status in _STOPPING_STATUS or (error is not None and error.status in (401, 402, 403))
    retry = not stops and (status in _RETRIED_STATUS or status >= 500)
    message = (error.message if error else "") or shown(content, api_key) or "(nothing)"
    refused = not (retry or stops)
    return Failure(
        f"{who} with status {status}: {message}",
        retry=retry,
        stops=stops,
        refused_status=status if refused else None,
        too_long=refused and (status == 413 or (status in (400, 422) and bool(_TOO_LONG.search(message)))),
    )


def read_completion(
    content: bytes, num_prompt_chars: int = 0, api_key: str = "", who: str = "the server refuses the request"
) -> Reply:
    """The reply in the body of a chat completion.

    Args:
        content: the body, of any length.
        num_prompt_chars: for the estimate of prompt tokens.
        api_key: is taken out of all texts.
        who: begins the sentence of an error that comes in place of a completion.

    The reply has `failed` set if the answer was cut off before its text.

    Raises:
        Failure: another body.
    """
    if len(content) > MAX_REPLY_BYTES:
        return Reply(
            problem=f"the answer has more than {MAX_REPLY_BYTES} bytes",
            num_prompt_tokens=_by_length(num_prompt_chars),
            num_answer_tokens=_by_length(len(content)),
            tokens_estimated=True,
        )
    try:
        body = parse_json(content)
    except ValueError:
        raise Failure(f"the body is not JSON: {shown(content, api_key, 80)!r}", retry=True) from None
    usage = body.get("usage") if isinstance(body, dict) else None
    charged = _charged(usage, num_prompt_chars, 0) if isinstance(usage, dict) else (0, 0, False)
    choice = _first_choice(body)
    if error := error_in(body, api_key) or error_in(choice, api_key):
        raise _with_tokens(_error_in_200(who, content, error, api_key), charged)
    message = choice.get("message") if choice else None
    if not isinstance(message, dict):
        problem = f"the body is not a completion: {shown(content, api_key, 80)!r}"
        raise _with_tokens(Failure(problem, retry=True), charged)
    texts = _texts(message)
    if texts is None:
        problem = f"the content is not text: {shown(content, api_key, 80)!r}"
        raise _with_tokens(Failure(problem, retry=True), charged)
    assert choice is not None
    return _reply(*texts, choice.get("finish_reason"), usage, num_prompt_chars, api_key)


def _reply(
    answer: str, thinking: str, finish_reason: Any, usage: Any, num_prompt_chars: int, api_key: str
) -> Reply:
    num_prompt, num_answer, estimated = _charged(usage, num_prompt_chars, len(answer) + len(thinking))
    finish_reason = shown(finish_reason, api_key, 40) if isinstance(finish_reason, str) else ""
    problem, is_cut = "", False
    if not answer.strip():
        is_cut = finish_reason == "length"  # thinking took all tokens: the model did not come to answer
        problem = "the answer was cut off before its text" if is_cut else "the answer is empty"
    if answer and thinking:  # the server's parser split them: join them as the model wrote them
        answer = f"{thinking}\n\n</think>\n\n{answer}"
    return Reply(
        text=without_key(answer, api_key).encode("utf-8", "replace").decode("utf-8"),  # no lone surrogates
        failed=is_cut,
        problem=problem,
        finish_reason=finish_reason,
        num_prompt_tokens=num_prompt,
        num_answer_tokens=num_answer,
        tokens_estimated=estimated,
    )


def _first_choice(body: Any) -> dict | None:
    choices = body.get("choices") if isinstance(body, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else None


def _error_in_200(who: str, content: bytes, error: ServerError, api_key: str) -> Failure:
    if error.status is None:
        return Failure(f"{who}: {error.message or shown(content, api_key)}", retry=True)
    return refusal(who, error.status, content, error, api_key)


def _with_tokens(failure: Failure, charged: tuple[int, int, bool]) -> Failure:
    failure.num_prompt_tokens, failure.num_answer_tokens, _ = charged
    return failure


def _texts(message: dict) -> tuple[str, str] | None:
    """(answer, thinking) of a message, whose content is a string, null, or a list of chunks; None for another one."""
    content = message.get("content", 0)
    thinking = message.get("reasoning_content") or message.get("reasoning") or ""
    if not isinstance(thinking, str):
        return None
    if content is None or isinstance(content, str):
        return content or "", thinking
    if not isinstance(content, list) or not content:
        return None
    answer = ""
    for chunk in content:
        kind = chunk.get("type") if isinstance(chunk, dict) else None
        text = _chunk_text(chunk.get("thinking" if kind == "thinking" else "text")) if kind else None
        if text is None or kind not in ("text", "thinking"):
            return None
        if kind == "thinking":
            thinking += text
        else:
            answer += text
    return answer, thinking


def _chunk_text(content: Any) -> str | None:
    """The text of a chunk: a string, or for thinking also a list of text chunks."""
    if isinstance(content, list):
        parts = [chunk.get("text") if isinstance(chunk, dict) else None for chunk in content]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if len(texts) == len(parts) else None
    return content if isinstance(content, str) else None


def _charged(usage: Any, num_prompt_chars: int, num_answer_chars: int) -> tuple[int, int, bool]:
    """Prompt and answer tokens, and whether one of them is estimated."""
    num_prompt, prompt_estimated = _count(usage, "prompt_tokens", num_prompt_chars)
    num_answer, answer_estimated = _count(usage, "completion_tokens", num_answer_chars)
    return num_prompt, num_answer, prompt_estimated or answer_estimated


def _count(usage: Any, name: str, num_chars: int) -> tuple[int, bool]:
    """The server's count, or else an estimate by length."""
    count = usage.get(name) if isinstance(usage, dict) else None
    if type(count) is int and 1 <= count <= MAX_TOKENS:
        return count, False
    return _by_length(num_chars), num_chars > 0


def _by_length(num_chars: int) -> int:
    return math.ceil(num_chars / CHARS_PER_TOKEN)
