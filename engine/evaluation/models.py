"""Models to be judged, by the names of the command line: a folder, an endpoint, or a file of answers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ralign.engine.config.judge import EndpointConfig, check_endpoint
from ralign.engine.data.pairs import BadLine, parse_object
from ralign.engine.evaluation.journal import Journal
from ralign.engine.judging.judge import Judge
from ralign.engine.judging.local_model import LocalModel, LocalModelConfig
from ralign.engine.runtime.errors import UserError

KINDS = "a Hugging Face folder, endpoint:URL#MODEL or judged:FILE"


class Model(Protocol):
    """Where the answers of one model come from."""

    def settings(self) -> dict[str, Any]:
        """What an answer depends on, beside pair and template."""
        ...

    def fill(self, answers: Journal, keys: Sequence[str]) -> dict[str, str]:
        """Adds the answers under these keys that there are already.

        Returns, by key, why there will be none for calls that failed before and cannot be asked again.
        """
        ...

    def start(self, spent: tuple[int, int]) -> Judge:
        """`spent`: prompt and answer tokens that earlier runs used."""
        ...


@dataclass(frozen=True, slots=True)
class FolderModel:
    """A Hugging Face folder, loaded by vLLM."""

    config: LocalModelConfig

    def settings(self) -> dict[str, Any]:
        """The weights' files stand for the model: a folder that was moved is the same, a new export is not."""
        files = sorted(Path(self.config.folder).glob("*.safetensors"))
        weights = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        names = ("temperature", "max_new_tokens", "seed", "plain")
        return {"model": hash_of(weights), **{name: getattr(self.config, name) for name in names}}

    def fill(self, answers: Journal, keys: Sequence[str]) -> dict[str, str]:
        return {}

    def start(self, spent: tuple[int, int]) -> Judge:
        return LocalModel(self.config)


@dataclass(frozen=True, slots=True)
class EndpointModel:
    """A model behind an OpenAI-compatible server."""

    config: EndpointConfig

    def settings(self) -> dict[str, Any]:
        """Without the address: a server that was moved gives the same answers."""
        config = self.config
        return {
            "model": f"endpoint:{config.model}",
            "temperature": config.temperature,
            "max_new_tokens": config.max_new_tokens,
        }

    def fill(self, answers: Journal, keys: Sequence[str]) -> dict[str, str]:
        return {}

    def start(self, spent: tuple[int, int]) -> Judge:
        from ralign.engine.judging.endpoint import Endpoint

        return Endpoint(self.config, asker="judge", spent=spent)


@dataclass(frozen=True, slots=True)
class AnsweredModel:
    """Answers that another program wrote: ``model_judgment`` in the released fields, MetaRM or not."""

    path: Path
    texts: Mapping[str, str]  # by the keys of the journal of answers
    failed: Mapping[str, str]  # why there is no text, for calls that failed
    name: str  # what all lines have as meta.model_name, else the folder

    def settings(self) -> dict[str, Any]:
        return {"model": f"judged:{hash_of(sorted(self.texts.items()))}"}

    def fill(self, answers: Journal, keys: Sequence[str]) -> dict[str, str]:
        for key in keys:
            if key in self.texts and key not in answers:
                answers.add(key, {"text": self.texts[key], "finish_reason": ""})
        return {key: self.failed[key] for key in keys if key in self.failed}

    def start(self, spent: tuple[int, int]) -> Judge:
        raise UserError(
            f"--model judged:{self.path}: the file does not have every pair (in both orders, if asked)"
        )


def read_answers(path: str) -> AnsweredModel:
    """The answers in a file; a null ``model_judgment`` is a call that failed, as the released evaluator writes it.

    UserError where a line is no record with id and model_judgment.
    """
    texts: dict[str, str] = {}
    failed: dict[str, str] = {}
    names: set[str] = set()
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"--model judged:{path}: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse_object(line)
        except BadLine as bad:
            raise UserError(f"{path}:{number}: {bad}") from bad
        if "id" not in record or not isinstance(record.get("model_judgment", 0), str | None):
            raise UserError(f"{path}:{number}: no id, or no model_judgment")
        meta = record["meta"] if isinstance(record.get("meta"), dict) else {}
        names.add(str(meta.get("model_name") or ""))
        for key, order in ((str(record["id"]), ""), (f"{record['id']}\tswapped", "_swapped")):
            text = record.get(f"model_judgment{order}", 0)
            if isinstance(text, str):
                texts[key] = text
            elif text is None:
                failed[key] = str(meta.get(f"model_error{order}") or "no answer in the file")
    name = names.pop() if len(names) == 1 else ""
    return AnsweredModel(Path(path), texts, failed, name or Path(path).resolve().parent.name)


def parse_endpoint(spec: str, what: str) -> tuple[str, str]:
    """(URL, MODEL) of `endpoint:URL#MODEL`; `what` names the option in a UserError."""
    url, sharp, model = spec.removeprefix("endpoint:").rpartition("#")
    if not sharp or not model:
        raise UserError(
            f"{what} {spec}: expected endpoint:URL#MODEL, such as endpoint:http://host:8000/v1#name"
        )
    return url, model


def parse_models(
    arguments: Sequence[str], local: Mapping[str, Any], endpoint: Mapping[str, Any]
) -> dict[str, Model]:
    """Models by name: that of `NAME=MODEL`, else the folder's, the served model's or that in the file of answers.

    local, endpoint: the other fields of `LocalModelConfig` and `EndpointConfig`. Raises UserError for what is
    not there, and for a name that is given twice.
    """
    models: dict[str, Model] = {}
    for argument in arguments:
        name, equals, spec = argument.partition("=")
        if not equals or "/" in name or ":" in name:
            name, spec = "", argument
        model: Model
        if spec.startswith("endpoint:"):
            url, served = parse_endpoint(spec, "--model")
            config = EndpointConfig(base_url=url, model=served, **endpoint)
            check_endpoint(config, "--model")
            name, model = name or served, EndpointModel(config)
        elif spec.startswith("judged:"):
            model = read_answers(spec.removeprefix("judged:"))
            name = name or model.name
        elif (Path(spec) / "config.json").is_file():
            name = name or Path(spec).resolve().name
            model = FolderModel(LocalModelConfig(folder=spec, **local))
        else:
            raise UserError(f"--model {spec}: expected {KINDS}; there is no config.json in {spec}")
        name = name.replace("/", "_")
        if name in models:
            raise UserError(f"--model {argument}: another model is named {name} too; name it with NAME=MODEL")
        models[name] = model
    return models


def hash_of(content: Any) -> str:
    """Sixteen hex digits that change with the content, which must be JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
