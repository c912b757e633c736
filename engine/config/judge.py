"""Settings of language models that judge: where they answer, how they are asked, and what they may cost.

`EndpointConfig` is one model behind an OpenAI-compatible server; it serves MetaRMs, writers of golden judgments
and judges alike. `JudgeConfig` adds what makes it the MetaRM of a training run. Nothing here imports a client.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ralign.engine.runtime.errors import UserError


@dataclass(kw_only=True, slots=True)
class EndpointConfig:
    """A model behind an OpenAI-compatible server, and how it is asked."""

    model: str | None = None
    """Name of the model at the endpoint; for a managed judge a Hugging Face folder."""
    base_url: str | None = None
    """Address of the endpoint, /v1 included (not for a managed judge)."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key of the endpoint; a server without keys needs none."""
    temperature: float = 0.4
    """Sampling temperature."""
    max_new_tokens: int = 16384
    """Longest answer, thinking included."""
    extra: str | None = None
    """JSON object added to every request; null takes a field out, e.g. {"max_completion_tokens": null}."""
    concurrency: int = 64
    """Most requests under way at once, from one rank."""
    num_processes: int | None = None
    """Processes that a rank asks through; 0: a thread of its own; None: one for each 128 of `concurrency`."""
    timeout_s: float = 600.0
    """Time limit of one request, seconds."""
    num_retries: int = 5
    """Tries after the first for what can be retried: timeouts, lost connections, 408, 409, 429, 5xx, broken JSON."""
    max_backoff_s: float = 30.0
    """Longest pause before a retry; pauses double from half a second, with jitter."""
    budget_tokens: int | None = None
    """Prompt and answer tokens to spend; then the run stops in order. None for no limit."""
    budget_cost: float | None = None
    """Money to spend, in the currency of the prices; then the run stops in order. None for no limit."""
    price_in: float = 0.0
    """Price of a million prompt tokens."""
    price_out: float = 0.0
    """Price of a million answer tokens."""
    cache: str | None = None
    """Folder of answers already paid for, keyed by model, prompt and sampling; None keeps no cache."""


@dataclass(kw_only=True, slots=True)
class ServerConfig:
    """The vLLM server that a managed judge runs on."""

    tensor: int = 1
    """Tensor-parallel size of the server."""
    data: int = 1
    """Data-parallel size of the server."""
    devices: str | None = None
    """CUDA_VISIBLE_DEVICES of the server; None shares the GPUs of the first rank's machine."""
    max_model_len: int | None = None
    """Longest prompt and answer together; None takes the model's."""
    max_num_seqs: int = 256
    """Most sequences decoded at once."""
    gpu_memory_utilization: float = 0.35
    """Share of a GPU's memory that the server may use."""
    kv_cache_gib: float = 1.0
    """KV cache on a machine without a GPU, GiB."""
    sleep_level: Literal[0, 1, 2] = 0
    """While the policy trains: 0 stays awake, 1 moves weights to host memory, 2 drops them and reads them anew."""
    start_timeout_s: float = 1800.0
    """Time to come up, seconds; also the patience of requests while the server is started again."""
    options: str | None = None
    """More options of vLLM's server, as on its command line."""


@dataclass(kw_only=True, slots=True)
class JudgeConfig(EndpointConfig):
    """The MetaRM: who finds out whether a rationale rests on the golden judgment's reasons."""

    metarm: Literal["none", "rule", "endpoint", "managed"] = "rule"
    """rule: JudgeWorld's own; endpoint: a server that runs already; managed: this job starts one; or none."""
    template: str = "binary"
    """MetaRM prompt: binary, graded, compact, or a file of your own."""
    graded: bool = False
    """Pay by the share of the golden judgment's points that are covered, not by the MetaRM's own verdict."""
    graded_threshold: float = 0.5
    """Least share of covered points that counts as Correct."""
    num_tries: int = 2
    """Questions per judgment: an answer that cannot be parsed is asked for again."""
    max_failed_share: float = 0.5
    """Stop when the MetaRM failed on more than this share of the samples that a step asked about."""
    server: ServerConfig = field(default_factory=ServerConfig)
    """The server of a managed judge."""


def check_endpoint(config: EndpointConfig, prefix: str, *, needs_url: bool = True) -> None:
    """Raises UserError, with settings named `prefix`.name, for what cannot be asked."""

    def require(condition: bool, name: str, what: str) -> None:
        if not condition:
            raise UserError(f"{prefix}.{name} {what}, got {getattr(config, name)}")

    if not config.model:
        raise UserError(f"{prefix}.model is missing: the name of the model to ask")
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
    extra_fields(config, prefix)


def extra_fields(config: EndpointConfig, prefix: str = "judge") -> dict:
    """`config.extra` as an object; UserError if it is none."""
    try:
        extra = json.loads(config.extra or "{}")
    except ValueError as error:
        raise UserError(f"{prefix}.extra={config.extra}: not JSON ({error})") from error
    if not isinstance(extra, dict):
        raise UserError(f"{prefix}.extra={config.extra}: a JSON object is expected")
    return extra


def check_judge(config: JudgeConfig) -> None:
    """Raises UserError for a MetaRM that cannot be asked; templates and folders are looked at too."""
    if not 0 <= config.graded_threshold <= 1:
        raise UserError(f"judge.graded_threshold is a share from 0 to 1, got {config.graded_threshold}")
    if not 0 <= config.max_failed_share <= 1:
        raise UserError(f"judge.max_failed_share is a share from 0 to 1, got {config.max_failed_share}")
    if config.num_tries < 1:
        raise UserError(f"judge.num_tries must be at least 1, got {config.num_tries}")
    if config.metarm in ("none", "rule"):
        return
    from ralign.engine.data.metarm_prompts import load_metarm_template

    load_metarm_template(config.template, graded=config.graded)
    check_endpoint(config, "judge", needs_url=config.metarm == "endpoint")
    if config.metarm == "managed":
        _check_server(config)


def _check_server(config: JudgeConfig) -> None:
    server = config.server
    if config.base_url:
        raise UserError(
            f"judge.base_url={config.base_url} with judge.metarm=managed: the job starts its own server"
            " (use judge.metarm=endpoint for one that runs already)"
        )
    if not (Path(config.model or "") / "config.json").is_file():
        raise UserError(f"judge.model={config.model}: no Hugging Face folder (config.json is missing)")
    for name in ("tensor", "data", "max_num_seqs"):
        if getattr(server, name) < 1:
            raise UserError(f"judge.server.{name} must be at least 1, got {getattr(server, name)}")
    if server.max_model_len is not None and server.max_model_len < 2:
        raise UserError(f"judge.server.max_model_len must be at least 2, got {server.max_model_len}")
    for name in ("kv_cache_gib", "start_timeout_s"):
        if getattr(server, name) <= 0:
            raise UserError(f"judge.server.{name} must be positive, got {getattr(server, name)}")
    hf = json.loads((Path(config.model) / "config.json").read_text(encoding="utf-8"))
    longest = server.max_model_len or hf.get("max_position_embeddings")
    if longest is not None and config.max_new_tokens >= longest:
        raise UserError(
            f"judge.max_new_tokens={config.max_new_tokens} leaves no room for a prompt: prompt and answer"
            f" together may have {longest} tokens"
        )
    if not 0 < server.gpu_memory_utilization <= 1:
        raise UserError(
            f"judge.server.gpu_memory_utilization is a share up to 1, got {server.gpu_memory_utilization}"
        )
