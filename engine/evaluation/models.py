"""The models and the MetaRM of an evaluation, from the options of the command line.

A model is a Hugging Face folder, an endpoint, or a file of answers; a MetaRM is one of the kinds in `METARMS`.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ralign.engine.config.judge import EndpointConfig, MetaRMConfig, ServerConfig, check_endpoint, public_url
from ralign.engine.config.registry import METARMS
from ralign.engine.data.pairs import BadLine, parse_object
from ralign.engine.evaluation.journal import Journal
from ralign.engine.evaluation.questions import answer_key
from ralign.engine.judging.endpoint import Endpoint
from ralign.engine.judging.judge import ClientContext, Judge
from ralign.engine.judging.local_model import LocalModel, LocalModelConfig
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import check_input, mistakes, read_json_object
from ralign.engine.runtime.problems import Problems

KINDS = "a Hugging Face folder, endpoint:URL#MODEL or judged:FILE"
METARM_KINDS = "rule, keywords, endpoint:URL#MODEL, managed:FOLDER or FILE.py:NAME"


class Model(Protocol):
    """The source of one model's answers."""

    def settings(self) -> dict[str, Any]:
        """Everything that an answer depends on, beside pair and template."""
        ...

    def fill(self, answers: Journal, keys: Sequence[str]) -> dict[str, str]:
        """Add the answers that exist under these keys to the journal.

        Returns:
            key -> reason, for calls that failed earlier and cannot be repeated.
        """
        ...

    def start(self, tokens_used: tuple[int, int]) -> Judge:
        """A judge for the missing answers. `tokens_used`: prompt and answer tokens of earlier runs."""
        ...


@dataclass(frozen=True, slots=True)
class FolderModel:
    """A Hugging Face folder, loaded by vLLM."""

    config: LocalModelConfig

    def settings(self) -> dict[str, Any]:
        """The weight files identify the model: a moved folder is the same model, a new export is another."""
        files = sorted(Path(self.config.folder).glob("*.safetensors"))
        weights = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        names = ("temperature", "max_new_tokens", "seed", "plain")
        return {"model": hash_of(weights), **{name: getattr(self.config, name) for name in names}}

    def fill(self, answers: Journal, keys: Sequence[str]) -> dict[str, str]:
        return {}

    def start(self, tokens_used: tuple[int, int]) -> Judge:
        return LocalModel(self.config)


@dataclass(kw_only=True, slots=True)
class ModelEndpointConfig(EndpointConfig):
    """The endpoint of a model."""

    SETTING: ClassVar[str] = "--model"


@dataclass(frozen=True, slots=True)
class EndpointModel:
    """A model behind an OpenAI-compatible server."""

    config: ModelEndpointConfig

    def settings(self) -> dict[str, Any]:
        """Without the address: a server that moved is the same model."""
        config = self.config
        return {
            "model": f"endpoint:{config.model}",
            "temperature": config.temperature,
            "max_new_tokens": config.max_new_tokens,
        }

    def fill(self, answers: Journal, keys: Sequence[str]) -> dict[str, str]:
        return {}

    def start(self, tokens_used: tuple[int, int]) -> Judge:
        return Endpoint(self.config, ClientContext(client_id="judge", tokens_used=tokens_used))


@dataclass(frozen=True, slots=True)
class AnsweredModel:
    """Answers from another program: ``model_judgment`` in the released fields, with or without a MetaRM's."""

    path: Path
    texts: Mapping[str, str]  # key in the journal of answers -> text
    failed: Mapping[str, str]  # key -> why there is no text, for calls that failed
    name: str  # the common meta.model_name of all lines, else the folder's name

    def settings(self) -> dict[str, Any]:
        return {"model": f"judged:{hash_of(sorted(self.texts.items()))}"}

    def fill(self, answers: Journal, keys: Sequence[str]) -> dict[str, str]:
        for key in keys:
            if key in self.texts and key not in answers:
                answers.add(key, {"text": self.texts[key], "finish_reason": ""})
        return {key: self.failed[key] for key in keys if key in self.failed}

    def start(self, tokens_used: tuple[int, int]) -> Judge:
        raise UserError(
            f"--model judged:{self.path}: the file does not have every pair (with --both-orders, in both orders)"
        )


def read_answers(path: str) -> AnsweredModel:
    """The answers in a file. A null ``model_judgment`` is a failed call, as the released evaluator writes it.

    Raises:
        UserError: a line is not a record with id and model_judgment, or has the id of an earlier line.
    """
    texts: dict[str, str] = {}
    failed: dict[str, str] = {}
    names: set[str] = set()
    with mistakes("read", path):
        lines = check_input(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse_object(line)
        except BadLine as bad:
            raise UserError(f"{path}:{number}: {bad}") from bad
        if not isinstance(record.get("id"), str | int) or not isinstance(
            record.get("model_judgment", 0), str | None
        ):
            raise UserError(f"{path}:{number}: no id, or no model_judgment")
        id = str(record["id"])
        if answer_key(id, False) in (texts | failed):
            raise UserError(f"{path}:{number}: id {id!r} was already used")
        meta = record["meta"] if isinstance(record.get("meta"), dict) else {}
        names.add(str(meta.get("model_name") or ""))
        for order, key in (("", answer_key(id, False)), ("_swapped", answer_key(id, True))):
            text = record.get(f"model_judgment{order}", 0)
            if isinstance(text, str):
                texts[key] = text
            elif text is None:
                failed[key] = str(meta.get(f"model_error{order}") or "no answer in the file")
    name = names.pop() if len(names) == 1 else ""
    return AnsweredModel(Path(path), texts, failed, name or Path(path).resolve().parent.name)


def parse_endpoint(spec: str, option: str) -> tuple[str, str]:
    """(URL, MODEL) of `endpoint:URL#MODEL`; `option` is for the UserError."""
    url, sharp, model = spec.removeprefix("endpoint:").rpartition("#")
    if not sharp or not model:
        raise UserError(
            f"{option} {public_url(spec)}: expected endpoint:URL#MODEL, such as endpoint:http://host:8000/v1#name"
        )
    return url, model


def parse_models(
    arguments: Sequence[str], local: Mapping[str, Any], endpoint: Mapping[str, Any]
) -> dict[str, Model]:
    """Models by name: NAME of `NAME=MODEL`, else the name of the folder, of the served model, or in the file.

    Args:
        arguments: of --model.
        local, endpoint: the other fields of `LocalModelConfig` and `ModelEndpointConfig`.

    Raises:
        UserError: a model does not exist, or two have the same name.
    """
    models: dict[str, Model] = {}
    problems = Problems()
    for argument in arguments:
        with problems.collect():
            name, model = _parse_model(argument, local, endpoint)
            if name in models:
                raise UserError(
                    f"--model {argument}: another model is named {name} too; rename it with NAME=MODEL"
                )
            models[name] = model
    problems.check()
    return models


def _parse_model(argument: str, local: Mapping[str, Any], endpoint: Mapping[str, Any]) -> tuple[str, Model]:
    name, equals, spec = argument.partition("=")
    if not equals or "/" in name or ":" in name:
        name, spec = "", argument
    model: Model
    if spec.startswith("endpoint:"):
        url, served = parse_endpoint(spec, "--model")
        config = ModelEndpointConfig(base_url=url, model=served, **endpoint)
        check_endpoint(config)
        name, model = name or served, EndpointModel(config)
    elif spec.startswith("judged:"):
        model = read_answers(spec.removeprefix("judged:"))
        name = name or model.name
    elif os.path.isfile(os.path.join(spec, "config.json")):
        read_json_object(Path(spec) / "config.json")
        name = name or Path(spec).resolve().name
        model = FolderModel(LocalModelConfig(folder=spec, **local))
    else:
        raise UserError(f"--model {spec}: expected {KINDS}; there is no config.json in {spec}")
    return name.replace("/", "_"), model


def endpoint_fields(args: argparse.Namespace, price: Sequence[float] | None) -> dict[str, Any]:
    """Fields of an endpoint's settings; `price`: of a million prompt and answer tokens, None for none."""
    price_in, price_out = price or (0.0, 0.0)
    return {
        "api_key_env": args.api_key_env,
        "concurrency": args.concurrency,
        "timeout_s": args.timeout_s,
        "num_retries": args.retries,
        "budget_tokens": args.budget_tokens,
        "budget_cost": args.budget_cost if price else None,
        "price_in": price_in,
        "price_out": price_out,
        "cache": args.cache,
    }


def metarm_config(args: argparse.Namespace) -> MetaRMConfig:
    """The settings of the MetaRM that the options choose, checked.

    Raises:
        UserError: an unknown name, a bad address, no model folder, or a cost limit without a price.
    """
    if args.budget_cost is not None and not (args.metarm_price or args.price):
        raise UserError(
            f"--budget-cost {args.budget_cost:g} needs a price: --metarm-price, or --price of models"
        )
    config = MetaRMConfig(
        **_metarm_kind(args.metarm),
        template=args.metarm_template,
        graded=args.metarm_template == "graded",
        graded_threshold=args.metarm_graded_threshold,
        temperature=args.metarm_temperature,
        max_new_tokens=args.metarm_max_new_tokens,
        num_tries=args.metarm_tries,
        server=ServerConfig(
            tensor=args.metarm_tensor,
            devices=args.metarm_devices,
            max_model_len=args.metarm_max_model_len,
            gpu_memory_utilization=args.metarm_gpu_memory_utilization,
        ),
        **endpoint_fields(args, args.metarm_price),
    )
    METARMS.load(config.kind).check(config)
    return config


def _metarm_kind(spec: str) -> dict[str, str]:
    """Fields of `MetaRMConfig` for the MetaRM that --metarm names."""
    if spec.startswith("endpoint:"):
        url, model = parse_endpoint(spec, "--metarm")
        return {"kind": "endpoint", "base_url": url, "model": model}
    if spec.startswith("managed:"):
        return {"kind": "managed", "model": spec.removeprefix("managed:")}
    if spec in ("none", "endpoint", "managed") or (":" not in spec and spec not in METARMS.names):
        raise UserError(f"--metarm {spec}: expected {METARM_KINDS}")
    return {"kind": spec}


def hash_of(content: Any) -> str:
    """Sixteen hex digits that change with the content, which must be JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
