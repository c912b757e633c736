"""The judge of a run: its address, key and model. A judge behind an endpoint gets one short question.

The key comes from the environment, goes to the endpoint, and is in no message: servers often repeat a refused key, so
it is removed from their messages.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ralign.engine.actors.validation import check_actor
from ralign.engine.check.folders import BadFolder, complete_folder
from ralign.engine.check.report import Finding, fail, ok, warn
from ralign.engine.config.actor import ActorRun
from ralign.engine.config.judge import EndpointConfig, JudgeConfig, extra_fields
from ralign.engine.config.registry import METARMS
from ralign.engine.config.run import GenRMRun, Run
from ralign.engine.runtime.errors import UserError

LIMIT_S = 5.0
_MAX_BODY_BYTES = 1 << 20
_MAX_TOKENS = 64  # of the answer to the question
_MAX_MESSAGE_CHARS = 200
_NO_LIST = (404, 405, 501)  # servers without a list of models


def check_judge(run: Run, env: Mapping[str, str], limit_s: float = LIMIT_S) -> Finding:
    """The MetaRM of a GenRM's run, or the GenRM of an actor's run."""
    if isinstance(run, ActorRun):
        return _check_genrm(run, env, limit_s)
    assert isinstance(run, GenRMRun), run
    return _check_metarm(run, env, limit_s)


def _check_metarm(run: GenRMRun, env: Mapping[str, str], limit_s: float) -> Finding:
    config = run.metarm
    if config.kind == "rule" and run.data.train is not None:
        step = "metarm.kind=endpoint or managed, or none with algo.reward=label"
        return fail("judge", "metarm.kind=rule reads JudgeWorld's pairs only, not data.train's", step)
    try:
        kind = METARMS.load(config.kind)
        kind.check(config)
    except UserError as error:
        return fail("judge", str(error), _settings_step(config, "metarm.kind=managed metarm.model=FOLDER"))
    if kind.location == "endpoint":
        return ask(config, env, limit_s)
    if kind.location == "server":
        return _check_served(config.model)
    names = {"none": "none: rewards from the label only", "rule": "JudgeWorld's own rule"}
    return ok("judge", names.get(config.kind, f"metarm.kind={config.kind}, in the training processes"))


def _check_genrm(run: ActorRun, env: Mapping[str, str], limit_s: float) -> Finding:
    genrm = run.genrm
    if genrm.model is None and run.model.hf_path is None:
        return ok("judge", "JudgeWorld's oracle rewards the actor (no genrm.model)")
    if genrm.model is None:
        step = "give genrm.model=FOLDER, the GenRM that rewards the actor"
        return fail("judge", "genrm.model is missing", step)
    try:
        check_actor(run)
    except UserError as error:
        return fail("judge", str(error), _settings_step(genrm, "genrm.kind=managed"))
    return ask(genrm, env, limit_s) if genrm.kind == "endpoint" else _check_served(genrm.model)


def _settings_step(config: JudgeConfig, in_job: str) -> str:
    return f"fix this setting (docs/judging.md); with an endpoint give {config.SETTING}.base_url=URL, or {in_job}"


def _check_served(model: str | None) -> Finding:
    """A model that the job serves: a folder, or a name on the hub."""
    assert model is not None, "checked with the settings"
    if not Path(model).is_dir():
        step = f"hf download {model} --local-dir FOLDER, and give that folder, which can be checked"
        return warn(
            "judge", f"{model} is not a folder here: the job's server downloads it from the hub", step
        )
    try:
        num_files, num_bytes = complete_folder(Path(model))
    except BadFolder as bad:
        return fail("judge", f"{model}: {bad.found}", bad.next_step)
    return ok(
        "judge",
        f"served by the job from {model}: {num_files} file(s) with {num_bytes / 1e9:.1f} GB, complete",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    status: int
    body: bytes


def ask(config: EndpointConfig, env: Mapping[str, str], limit_s: float) -> Finding:
    """The endpoint responds within `limit_s`, accepts the key, lists the model and answers a question."""
    assert config.base_url is not None, "check_endpoint refuses it"
    group = config.SETTING
    key, name = env.get(config.api_key_env, ""), f"${config.api_key_env}"
    try:
        where = _shown(config.base_url)
    except ValueError as error:
        return fail(
            "judge", f"{group}.base_url is not an address ({error})", "give one like http://host:8000/v1"
        )
    if not (key.isascii() and key.isprintable() and key == key.strip()):
        found = f"the key in {name} has a space, line break or other character that no header can carry"
        return fail("judge", found, f"set {name} again, without it")
    try:
        listed = _request(config, "models", key, limit_s)
        if finding := _refused(listed, config, key, where, limit_s):
            return finding
        models = _model_names(listed)
        if models is not None and config.model not in models:
            shown = ", ".join(models[:5]) + (", ..." if len(models) > 5 else "") or "none"
            found = f"{where} does not serve {config.model}; it lists {shown}"
            return fail("judge", found, "give a listed name, or start a server of that model", models)
        answer = _request(config, "chat/completions", key, limit_s, _question(config))
    except _Unreached as error:
        return error.finding(group, where, limit_s)
    if finding := _refused(answer, config, key, where, limit_s):
        return finding
    if answer.status != 200 or not _is_completion(answer.body):
        found = f"{where} answers a question to {config.model} with status {answer.status}: {_message(answer, key)}"
        step = (
            f"every request has the fields of {group}.extra, {group}.temperature and {group}.max_new_tokens"
        )
        return fail("judge", found, step)
    list_note = "listed" if models is not None else "not listed (the server has no list)"
    key_note = f"takes the key in {name}" if key else f"needs no key ({name} is not set)"
    return ok("judge", f"{where}: {config.model} is {list_note} and answers; it {key_note}")


def _refused(answer: _Answer, config: EndpointConfig, key: str, where: str, limit_s: float) -> Finding | None:
    """The finding for a status that depends on key, address or server, not on the request; None for another."""
    name, group = f"${config.api_key_env}", config.SETTING
    if answer.status in (401, 403) and not key:
        found = f"{where} needs a key (status {answer.status}), and {name} is not set"
        return fail(
            "judge", found, f"export {config.api_key_env}=..., or name its variable with {group}.api_key_env"
        )
    if answer.status in (401, 403):
        found = f"{where} refuses the key in {name} (status {answer.status})"
        return fail("judge", found, f"set {name} to a key that is valid there and may use {config.model}")
    if answer.status == 429:
        found = f"{where} answers with status 429: {_message(answer, key)}"
        return warn(
            "judge", found, f"see the account's quota and rate limits; {group}.concurrency limits the load"
        )
    if answer.status >= 500 and answer.status not in _NO_LIST:
        found = f"{where} answers with status {answer.status}: {_message(answer, key)}"
        return fail("judge", found, "see the server's log; it may still be loading the model")
    return None


class _Unreached(Exception):
    """No answer. `reason` is the client's error, or empty after a timeout."""

    def __init__(self, reason: str, *, asked: bool):
        super().__init__(reason)
        self.reason, self.asked = reason, asked

    def finding(self, group: str, where: str, limit_s: float) -> Finding:
        if self.asked and not self.reason:
            found = f"{where} takes the key, but did not answer a short question within {limit_s:g} s"
            return warn(
                "judge", found, f"try again: it may be loading or busy; the run waits {group}.timeout_s"
            )
        reason = self.reason or f"no answer within {limit_s:g} s"
        step = (
            "check that the server runs and that this machine can reach it (host, port, /v1, proxy variables)"
        )
        return fail("judge", f"{where} is not reachable: {reason}", step)


def _request(
    config: EndpointConfig, path: str, key: str, limit_s: float, body: dict | None = None
) -> _Answer:
    """One request; at most 1 MiB of the answer. Raises `_Unreached` if it is not complete within `limit_s`."""
    import httpx

    headers = {"Authorization": f"Bearer {key or 'none'}", "Accept-Encoding": "identity"}

    assert config.base_url is not None
    url = f"{config.base_url.rstrip('/')}/{path}"

    async def send() -> _Answer:
        async with asyncio.timeout(limit_s), httpx.AsyncClient(timeout=limit_s) as client:
            method = "GET" if body is None else "POST"
            async with client.stream(method, url, headers=headers, json=body) as response:
                content = bytearray()
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > _MAX_BODY_BYTES:
                        break
                return _Answer(status=response.status_code, body=bytes(content))

    try:
        return asyncio.run(send())
    except (TimeoutError, httpx.TimeoutException):
        raise _Unreached("", asked=body is not None) from None
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        reason = _without(f"{type(error).__name__}: {error}", key)
        raise _Unreached(reason, asked=body is not None) from None


def _question(config: EndpointConfig) -> dict:
    """A question with the run's sampling and a short answer."""
    body = {
        "model": config.model,
        "messages": [{"role": "user", "content": "Answer with the word yes."}],
        "temperature": config.temperature,
        "max_completion_tokens": config.max_new_tokens,
    }
    body = {name: value for name, value in (body | extra_fields(config)).items() if value is not None}
    for name in ("max_completion_tokens", "max_tokens"):
        if isinstance(body.get(name), int):
            body[name] = min(body[name], _MAX_TOKENS)
    return body


def _model_names(answer: _Answer) -> list[str] | None:
    """The model names of a server's list; None without a list."""
    try:
        return (
            [str(model["id"]) for model in json.loads(answer.body)["data"]] if answer.status == 200 else None
        )
    except (ValueError, RecursionError, LookupError, TypeError):
        return None


def _is_completion(body: bytes) -> bool:
    from ralign.engine.judging.client import Failure, read_completion

    try:
        read_completion(body)
    except Failure:
        return False
    return True


def _message(answer: _Answer, key: str) -> str:
    """The server's message, without the key."""
    text = answer.body.decode("utf-8", "replace")
    try:
        text = str(json.loads(text)["error"]["message"])
    except (ValueError, RecursionError, LookupError, TypeError):
        pass
    return _without(text, key)[:_MAX_MESSAGE_CHARS] or "(nothing)"


def _without(text: str, key: str) -> str:
    return text.replace(key, "***") if key else text


def _shown(base_url: str) -> str:
    """The address without password and query, which may contain a key."""
    parts = urlsplit(base_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
