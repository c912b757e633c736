"""Settings of language models that judge: endpoint or server, sampling, and budget.

`EndpointConfig` is one model behind an OpenAI-compatible server; it also serves writers of golden judgments. A
`JudgeConfig` judges texts in a training run: as MetaRM (`MetaRMConfig`) or as the GenRM that rewards an actor
(`GenRMConfig`). Nothing here imports a client.
"""

import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.problems import Problems

MAX_CONCURRENCY = 65_536  # more than the ports of a machine
MAX_PROCESSES = 512
MAX_URL_CHARS = 2000


@dataclass(kw_only=True, slots=True)
class EndpointConfig:
    """A model behind an OpenAI-compatible server."""

    SETTING: ClassVar[str] = "endpoint"  # name of the group of settings, for messages

    model: str | None = None
    """Name of the model at the endpoint; for a managed judge a Hugging Face folder."""
    base_url: str | None = None
    """Address of the endpoint, /v1 included (not for a managed judge)."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the endpoint's key; a server without keys needs none."""
    temperature: float = 0.4
    """Sampling temperature."""
    max_new_tokens: int = 16384
    """Longest answer, thinking included."""
    extra: str | None = None
    """JSON object added to every request; null takes a field out, e.g. {"max_completion_tokens": null}."""
    concurrency: int = 64
    """Most requests under way at once, from one rank."""
    num_processes: int | None = None
    """Client processes of a rank; 0: a thread instead; None: one for each 128 of `concurrency`."""
    timeout_s: float = 600.0
    """Time limit of one request, seconds."""
    num_retries: int = 5
    """Retries of a request after a timeout, a lost connection, status 408, 409, 425, 429 or 5xx, or broken JSON."""
    max_backoff_s: float = 30.0
    """Longest pause before a retry; pauses double from half a second, with jitter."""
    budget_tokens: int | None = None
    """Limit on prompt and answer tokens, at which the run saves a checkpoint and stops. None: no limit."""
    budget_cost: float | None = None
    """Limit on the cost in the prices' currency, at which the run saves a checkpoint and stops. None: no limit."""
    price_in: float = 0.0
    """Price of a million prompt tokens."""
    price_out: float = 0.0
    """Price of a million answer tokens."""
    cache: str | None = None
    """Folder of a cache of answers, keyed by model, prompt and sampling; None: no cache."""


@dataclass(kw_only=True, slots=True)
class ServerConfig:
    """The vLLM server of a managed judge."""

    tensor: int = 1
    """Tensor-parallel size of the server."""
    data: int = 1
    """Data-parallel size of the server."""
    devices: str | None = None
    """CUDA_VISIBLE_DEVICES of the server; None shares the GPUs of the first rank's machine."""
    max_model_len: int | None = None
    """Longest prompt and answer together; None: the model's limit."""
    max_num_seqs: int = 256
    """Most sequences decoded at once."""
    gpu_memory_utilization: float = 0.35
    """Share of a GPU's memory that the server may use."""
    kv_cache_gib: float = 1.0
    """KV cache on a machine without a GPU, GiB."""
    sleep_level: Literal[0, 1, 2] = 0
    """While the policy trains: 0 stays awake, 1 moves weights to host memory, 2 drops them and loads them again."""
    start_timeout_s: float = 1800.0
    """Time limit of a start, seconds; requests wait as long for a restart."""
    options: str | None = None
    """More options for vLLM's server, as on its command line."""


@dataclass(kw_only=True, slots=True)
class JudgeConfig(EndpointConfig):
    """A judge of texts, at an endpoint or on a server of the job: a MetaRM or a GenRM."""

    template: str
    """Prompt template: a name or a file."""
    num_tries: int
    """Requests for one judgment: an answer that cannot be parsed is requested again."""
    max_failed_share: float = 0.5
    """Largest share of a step's requests that may fail; a larger one ends the run."""
    server: ServerConfig = field(default_factory=ServerConfig)
    """The server of a managed judge."""


@dataclass(kw_only=True, slots=True)
class MetaRMConfig(JudgeConfig):
    """The MetaRM, which decides whether a rationale rests on the golden judgment's reasons."""

    SETTING: ClassVar[str] = "metarm"

    kind: str = "rule"
    """rule: JudgeWorld's own; endpoint: a running server; managed: one that the job starts; none; or FILE.py:NAME."""
    template: str = "binary"
    """Prompt template of the MetaRM: binary, graded, compact, or a file."""
    graded: bool = False
    """Decide by the share of the golden judgment's points that are covered, not by the MetaRM's own verdict."""
    on_failure: Literal["mask", "impute"] = "mask"
    """A failed review: leave the sample out, or count it as the mean reward of its group's reviewed samples."""
    graded_threshold: float = 0.5
    """Smallest share of covered points that counts as Correct."""
    num_tries: int = 2
    """Requests for one judgment: an answer that cannot be parsed is requested again."""


@dataclass(kw_only=True, slots=True)
class EvalMetaRMConfig(MetaRMConfig):
    """The MetaRM that evaluations report by; one that pays, too, cannot show how a policy exploits it."""

    SETTING: ClassVar[str] = "eval.metarm"

    kind: str = "same"
    """same: the MetaRM of the training; endpoint, rule, keywords, none; or FILE.py:NAME."""


@dataclass(kw_only=True, slots=True)
class GenRMConfig(JudgeConfig):
    """The GenRM whose verdicts reward an actor; model=None rewards it by the oracle instead."""

    SETTING: ClassVar[str] = "genrm"

    kind: Literal["process", "managed", "endpoint"] = "process"
    """process: an engine in the training processes; managed: a server that this job starts; endpoint: a running one."""
    model: str | None = None
    """Hugging Face folder of the GenRM; with kind=managed also ORG/NAME; with kind=endpoint its name there."""
    template: str = "compact"
    """Prompt template that the GenRM was trained with: compact, full, or a file."""
    verdict: str = "boxed"
    """Form of its verdicts, as of data.verdict."""
    num_tries: int = 1
    """Requests for one comparison: an answer without a verdict is requested again."""
    kv_cache_gib: float = 0.25
    """KV cache of an engine in the training processes, GiB, on a machine without a GPU."""
    gpu_memory_utilization: float = 0.3
    """Share of a GPU's memory for an engine in the training processes."""


def check_endpoint(config: EndpointConfig, *, needs_url: bool = True) -> None:
    """Raises UserError, with all mistakes in one line, for settings with which no request can succeed."""
    prefix, problems = config.SETTING, Problems()

    def require(condition: bool, name: str, what: str) -> None:
        problems.require(condition, f"{prefix}.{name} {what}, got {getattr(config, name)}")

    problems.require(bool(config.model), f"{prefix}.model is missing: the name of the model at the endpoint")
    if needs_url:
        with problems.collect():
            _check_url(config)
        with problems.collect():
            api_key_of(config)
    require(0 <= config.temperature < math.inf, "temperature", "must be a number of at least 0")
    require(config.max_new_tokens >= 1, "max_new_tokens", "must be at least 1")
    require(1 <= config.concurrency <= MAX_CONCURRENCY, "concurrency", f"must be from 1 to {MAX_CONCURRENCY}")
    require(config.num_retries >= 0, "num_retries", "must not be negative")
    most = MAX_PROCESSES
    require(0 <= (config.num_processes or 0) <= most, "num_processes", f"must be from 0 to {most}")
    for name in ("price_in", "price_out"):
        require(0 <= getattr(config, name) < math.inf, name, "must be a number of at least 0")
    for name in ("timeout_s", "max_backoff_s"):
        require(0 < getattr(config, name) < math.inf, name, "must be a positive number of seconds")
    for name in ("budget_tokens", "budget_cost"):
        value = getattr(config, name)
        require(value is None or 0 < value < math.inf, name, "must be a positive number (or None)")
    problems.require(
        config.budget_cost is None or bool(config.price_in + config.price_out),
        f"{prefix}.budget_cost={config.budget_cost} needs {prefix}.price_in or {prefix}.price_out",
    )
    with problems.collect():
        extra_fields(config)
    problems.check()


def _check_url(config: EndpointConfig) -> None:
    """Raises UserError for an address that no request can be sent to, or that has a place for a secret."""
    name, url = f"{config.SETTING}.base_url", config.base_url or ""
    example = "an address like http://host:8000/v1"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        reason = "its port is not a number" if "port" in str(error).lower() else "its host is not one"
        raise UserError(f"{name} must be {example}: {reason}, got {public_url(url)}") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError(
            f"{name} must be {example}, without user, password, query and fragment: the key belongs into"
            f" ${config.api_key_env} ({config.SETTING}.api_key_env names another variable), got {public_url(url)}"
        )
    is_written = url.isascii() and url.isprintable() and " " not in url and len(url) <= MAX_URL_CHARS
    if parts.scheme not in ("http", "https") or not host or not is_written:
        raise UserError(f"{name} must be {example}, got {public_url(url)!r}")


def public_url(url: str) -> str:
    """An address for messages: without user, password, query and fragment, which may hold a key."""
    scheme, separator, rest = url.partition("#")[0].partition("?")[0].rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"[:MAX_URL_CHARS]


def api_key_of(config: EndpointConfig) -> str:
    """The endpoint's key, from the environment; "" without one.

    Raises:
        UserError: no HTTP header can carry it, or `api_key_env` is not a variable's name and may be the key itself.
    """
    if not re.fullmatch(r"[A-Za-z0-9_]*", config.api_key_env):
        raise UserError(
            f"{config.SETTING}.api_key_env must be the name of an environment variable, not a key"
        )
    api_key = os.environ.get(config.api_key_env, "")
    if not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise UserError(
            f"the key in ${config.api_key_env} has a space, a line break or another character that no header can carry"
        )
    return api_key


def extra_fields(config: EndpointConfig) -> dict:
    """`config.extra` as a dict; UserError if it is not a JSON object."""
    setting = f"{config.SETTING}.extra={(config.extra or '')[:80]}"
    try:
        extra = json.loads(config.extra or "{}")
        json.dumps(extra, allow_nan=False)
    except RecursionError:
        raise UserError(f"{setting}: not JSON (nested too deeply)") from None
    except ValueError as error:  # NaN and infinity among them
        raise UserError(f"{setting}: not JSON ({error})") from error
    if not isinstance(extra, dict):
        raise UserError(f"{setting}: expected a JSON object")
    return extra


def check_judge(config: JudgeConfig) -> None:
    """Raises UserError for limits out of range."""
    prefix, problems = config.SETTING, Problems()
    problems.require(
        0 <= config.max_failed_share <= 1,
        f"{prefix}.max_failed_share must be from 0 to 1, got {config.max_failed_share}",
    )
    problems.require(config.num_tries >= 1, f"{prefix}.num_tries must be at least 1, got {config.num_tries}")
    problems.check()


def check_server(config: JudgeConfig) -> None:
    """Raises UserError for a managed judge whose server could not start; reads the model folder."""
    group, server, problems = config.SETTING, config.server, Problems()
    problems.require(
        not config.base_url,
        f"{group}.base_url={public_url(config.base_url or '')} with {group}.kind=managed: the job starts its own"
        f" server (use {group}.kind=endpoint for a running one)",
    )
    for name, least in (("tensor", 1), ("data", 1), ("max_num_seqs", 1), ("max_model_len", 2)):
        value = getattr(server, name)
        at_least = value is None or value >= least
        problems.require(at_least, f"{group}.server.{name} must be at least {least}, got {value}")
    for name in ("kv_cache_gib", "start_timeout_s"):
        value = getattr(server, name)
        positive = 0 < value < math.inf
        problems.require(positive, f"{group}.server.{name} must be a positive number, got {value}")
    problems.require(
        0 < server.gpu_memory_utilization <= 1,
        f"{group}.server.gpu_memory_utilization must be more than 0 and at most 1,"
        f" got {server.gpu_memory_utilization}",
    )
    with problems.collect():
        of_model = _longest_context(config)
        longest = server.max_model_len or of_model
        problems.require(
            longest is None or config.max_new_tokens < longest,
            f"{group}.max_new_tokens={config.max_new_tokens} leaves no room for a prompt: prompt and answer"
            f" together have at most {longest} tokens",
        )
    problems.check()


def _longest_context(config: JudgeConfig) -> int | None:
    """The longest prompt and answer, by the model's folder; None if it states none. UserError without a folder."""
    setting, path = f"{config.SETTING}.model={config.model}", Path(config.model or "") / "config.json"
    if not path.is_file():
        raise UserError(f"{setting}: no Hugging Face folder (config.json is missing)")
    try:
        hf = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{setting}: config.json cannot be read ({error})") from error
    longest = hf.get("max_position_embeddings") if isinstance(hf, dict) else None
    if not isinstance(hf, dict) or not isinstance(longest, int | None):
        raise UserError(f"{setting}: config.json is not a model's")
    return longest
