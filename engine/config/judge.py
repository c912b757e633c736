"""Settings of language models that judge: endpoint or server, sampling, and budget.

`EndpointConfig` is one model behind an OpenAI-compatible server; it also serves writers of golden judgments. A
`JudgeConfig` judges texts in a training run: as MetaRM (`MetaRMConfig`) or as the GenRM that rewards an actor
(`GenRMConfig`). Nothing here imports a client.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from ralign.engine.runtime.errors import UserError


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
    graded_threshold: float = 0.5
    """Smallest share of covered points that counts as Correct."""
    num_tries: int = 2
    """Requests for one judgment: an answer that cannot be parsed is requested again."""


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
    num_tries: int = 1
    """Requests for one comparison: an answer without a verdict is requested again."""
    kv_cache_gib: float = 0.25
    """KV cache of an engine in the training processes, GiB, on a machine without a GPU."""
    gpu_memory_utilization: float = 0.3
    """Share of a GPU's memory for an engine in the training processes."""


def check_endpoint(config: EndpointConfig, *, needs_url: bool = True) -> None:
    """Raises UserError for settings with which no request can succeed."""
    prefix = config.SETTING

    def require(condition: bool, name: str, what: str) -> None:
        if not condition:
            raise UserError(f"{prefix}.{name} {what}, got {getattr(config, name)}")

    if not config.model:
        raise UserError(f"{prefix}.model is missing: the name of the model at the endpoint")
    if needs_url and not (config.base_url or "").startswith(("http://", "https://")):
        raise UserError(
            f"{prefix}.base_url must be an address like http://host:8000/v1, got {config.base_url!r}"
        )
    require(config.temperature >= 0, "temperature", "must be at least 0")
    for name in ("max_new_tokens", "concurrency"):
        require(getattr(config, name) >= 1, name, "must be at least 1")
    for name in ("num_retries", "num_processes", "price_in", "price_out"):
        require((getattr(config, name) or 0) >= 0, name, "must not be negative")
    for name in ("timeout_s", "max_backoff_s"):
        require(getattr(config, name) > 0, name, "must be positive")
    for name in ("budget_tokens", "budget_cost"):
        require(
            getattr(config, name) is None or getattr(config, name) > 0, name, "must be positive (or None)"
        )
    if config.budget_cost is not None and not config.price_in + config.price_out:
        raise UserError(
            f"{prefix}.budget_cost={config.budget_cost} needs {prefix}.price_in or {prefix}.price_out"
        )
    extra_fields(config)


def extra_fields(config: EndpointConfig) -> dict:
    """`config.extra` as a dict; UserError if it is not a JSON object."""
    prefix = config.SETTING
    try:
        extra = json.loads(config.extra or "{}")
    except ValueError as error:
        raise UserError(f"{prefix}.extra={config.extra}: not JSON ({error})") from error
    if not isinstance(extra, dict):
        raise UserError(f"{prefix}.extra={config.extra}: expected a JSON object")
    return extra


def check_judge(config: JudgeConfig) -> None:
    """Raises UserError for limits out of range."""
    if not 0 <= config.max_failed_share <= 1:
        raise UserError(
            f"{config.SETTING}.max_failed_share must be from 0 to 1, got {config.max_failed_share}"
        )
    if config.num_tries < 1:
        raise UserError(f"{config.SETTING}.num_tries must be at least 1, got {config.num_tries}")


def check_server(config: JudgeConfig) -> None:
    """Raises UserError for a managed judge whose server could not start; reads the model folder."""
    group = config.SETTING
    server = config.server
    if config.base_url:
        raise UserError(
            f"{group}.base_url={config.base_url} with {group}.kind=managed: the job starts its own server"
            f" (use {group}.kind=endpoint for a running one)"
        )
    hf_config = Path(config.model or "") / "config.json"
    if not hf_config.is_file():
        raise UserError(f"{group}.model={config.model}: no Hugging Face folder (config.json is missing)")
    for name in ("tensor", "data", "max_num_seqs"):
        if getattr(server, name) < 1:
            raise UserError(f"{group}.server.{name} must be at least 1, got {getattr(server, name)}")
    if server.max_model_len is not None and server.max_model_len < 2:
        raise UserError(f"{group}.server.max_model_len must be at least 2, got {server.max_model_len}")
    for name in ("kv_cache_gib", "start_timeout_s"):
        if getattr(server, name) <= 0:
            raise UserError(f"{group}.server.{name} must be positive, got {getattr(server, name)}")
    hf = json.loads(hf_config.read_text(encoding="utf-8"))
    longest = server.max_model_len or hf.get("max_position_embeddings")
    if longest is not None and config.max_new_tokens >= longest:
        raise UserError(
            f"{group}.max_new_tokens={config.max_new_tokens} leaves no room for a prompt: prompt and answer"
            f" together have at most {longest} tokens"
        )
    if not 0 < server.gpu_memory_utilization <= 1:
        raise UserError(
            f"{group}.server.gpu_memory_utilization must be more than 0 and at most 1,"
            f" got {server.gpu_memory_utilization}"
        )
