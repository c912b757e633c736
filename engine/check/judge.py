"""The judge: its address, its key, its model. A judge behind an endpoint is asked one short question.

The key is read from the environment and sent to the endpoint, and appears in no message: servers that refuse a key
often repeat it, so what they say is shown without it.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from ralign.engine.actors.validation import check_actor
from ralign.engine.check.folders import BadFolder, complete_folder
from ralign.engine.check.report import Finding, fail, ok, warn
from ralign.engine.config import judge as judging
from ralign.engine.config.actor import ActorRun
from ralign.engine.config.run import Run
from ralign.engine.runtime.errors import UserError

LIMIT_S = 5.0
_MAX_BODY_BYTES = 1 << 20
_MAX_TOKENS = 64  # of the answer to the question
_MAX_SAID = 200
_NO_LIST = (404, 405, 501)  # servers without a list of models


def check_judge(run: Run, env: Mapping[str, str], limit_s: float = LIMIT_S) -> Finding:
    """Whoever judges in this run: the MetaRM, or an actor's GenRM."""
    if isinstance(run, ActorRun):
        return _check_genrm(run, env, limit_s)
    metarm = run.judge.metarm
    if metarm == "rule" and run.data.train is not None:
        step = "judge.metarm=endpoint or managed, or none with algo.reward=label"
        return fail("judge", "judge.metarm=rule reads JudgeWorld's pairs only, not data.train's", step)
    if metarm in ("none", "rule"):
        return ok(
            "judge", "JudgeWorld's own rule" if metarm == "rule" else "none: rewards of the label alone"
        )
    try:
        judging.check_judge(run.judge)
    except UserError as error:
        return fail("judge", str(error), _settings_step(run))
    if metarm == "managed":
        return _check_served(run.judge.model)
    return ask(run.judge, env, limit_s)


def _check_genrm(run: ActorRun, env: Mapping[str, str], limit_s: float) -> Finding:
    genrm, place = run.actor.genrm, run.actor.judge
    if genrm is None and run.model.hf_path is None:
        return ok("judge", "JudgeWorld's oracle pays the actor (no actor.genrm)")
    if genrm is None:
        return fail(
            "judge", "actor.genrm is missing", "give actor.genrm=FOLDER, the GenRM that pays the actor"
        )
    try:
        check_actor(replace(run, judge=replace(run.judge)))  # it writes the model's name into the settings
    except UserError as error:
        return fail("judge", str(error), _settings_step(run))
    if place == "endpoint":
        return ask(replace(run.judge, model=genrm), env, limit_s)
    return _check_served(genrm)


def _settings_step(run: Run) -> str:
    in_job = "actor.judge=managed" if isinstance(run, ActorRun) else "judge.metarm=managed judge.model=FOLDER"
    return f"mend this setting (docs/judging.md); with an endpoint give judge.base_url=URL, or {in_job}"


def _check_served(model: str) -> Finding:
    """A model that the job serves: a folder, or a name that the server looks up on the hub."""
    if not Path(model).is_dir():
        step = f"hf download {model} --local-dir FOLDER, and name the folder: then it is checked, and fetched once"
        return warn("judge", f"{model} is no folder here: the job's server fetches it from the hub", step)
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


def ask(config: judging.EndpointConfig, env: Mapping[str, str], limit_s: float) -> Finding:
    """The endpoint is reachable within `limit_s`, takes the key, lists the model and answers a question."""
    key, name = env.get(config.api_key_env, ""), f"${config.api_key_env}"
    try:
        where = _shown(config.base_url)
    except ValueError as error:
        return fail("judge", f"judge.base_url is no address ({error})", "give one like http://host:8000/v1")
    if not (key.isascii() and key.isprintable() and key == key.strip()):
        found = f"the key in {name} has a space, line break or other character that no header can carry"
        return fail("judge", found, f"set {name} anew, without it")
    try:
        listed = _request(config, "models", key, limit_s)
        if finding := _refused(listed, config, key, where, limit_s):
            return finding
        models = _model_names(listed)
        if models is not None and config.model not in models:
            shown = ", ".join(models[:5]) + (", ..." if len(models) > 5 else "") or "none"
            found = f"{where} does not serve {config.model}; it lists {shown}"
            return fail("judge", found, "give the name as it is listed, or start that model's server", models)
        answer = _request(config, "chat/completions", key, limit_s, _question(config))
    except _Unreached as error:
        return error.finding(where, limit_s)
    if finding := _refused(answer, config, key, where, limit_s):
        return finding
    if answer.status != 200 or not _is_completion(answer.body):
        found = (
            f"{where} answers a question to {config.model} with status {answer.status}: {_said(answer, key)}"
        )
        step = "see what it wants: judge.extra, judge.temperature and judge.max_new_tokens go with every question"
        return fail("judge", found, step)
    list_note = "listed" if models is not None else "not listed, as this server has no list"
    key_note = f"takes the key in {name}" if key else f"asks for no key ({name} is not set)"
    return ok("judge", f"{where}: {config.model} is {list_note} and answers; it {key_note}")


def _refused(
    answer: _Answer, config: judging.EndpointConfig, key: str, where: str, limit_s: float
) -> Finding | None:
    """The finding of a status that tells of key, address or server, whatever was asked."""
    name = f"${config.api_key_env}"
    if answer.status in (401, 403) and not key:
        found = f"{where} asks for a key (status {answer.status}), and {name} is not set"
        return fail(
            "judge", found, f"export {config.api_key_env}=..., or name its variable with judge.api_key_env"
        )
    if answer.status in (401, 403):
        found = f"{where} refuses the key in {name} (status {answer.status})"
        return fail("judge", found, f"set {name} to a key that is valid there and may use {config.model}")
    if answer.status == 429:
        found = f"{where} answers with status 429: {_said(answer, key)}"
        return warn(
            "judge", found, "see the account's quota and rate limits; judge.concurrency sets the load"
        )
    if answer.status >= 500 and answer.status not in _NO_LIST:
        found = f"{where} answers with status {answer.status}: {_said(answer, key)}"
        return fail("judge", found, "see the server's log; it may still be loading its model")
    return None


class _Unreached(Exception):
    """No answer: `reason` is the client's, or empty where time was up."""

    def __init__(self, reason: str, *, asked: bool):
        super().__init__(reason)
        self.reason, self.asked = reason, asked

    def finding(self, where: str, limit_s: float) -> Finding:
        if self.asked and not self.reason:
            found = f"{where} takes the key, but did not answer a short question within {limit_s:g} s"
            return warn(
                "judge", found, "ask again: it may be loading or busy; judge.timeout_s is the run's own limit"
            )
        reason = self.reason or f"no answer within {limit_s:g} s"
        step = "see that the server runs and that this machine reaches it (host, port, /v1, proxy variables)"
        return fail("judge", f"{where} is not reachable: {reason}", step)


def _request(
    config: judging.EndpointConfig, path: str, key: str, limit_s: float, body: dict | None = None
) -> _Answer:
    """One request, whole within `limit_s`; of an answer at most 1 MiB. Raises `_Unreached`."""
    import httpx

    headers = {"Authorization": f"Bearer {key or 'none'}", "Accept-Encoding": "identity"}

    async def send() -> _Answer:
        url = f"{config.base_url.rstrip('/')}/{path}"
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


def _question(config: judging.EndpointConfig) -> dict:
    """A question with the run's own sampling, whose answer is short."""
    body = {
        "model": config.model,
        "messages": [{"role": "user", "content": "Answer with the word yes."}],
        "temperature": config.temperature,
        "max_completion_tokens": config.max_new_tokens,
    }
    body = {name: value for name, value in (body | judging.extra_fields(config)).items() if value is not None}
    for name in ("max_completion_tokens", "max_tokens"):
        if isinstance(body.get(name), int):
            body[name] = min(body[name], _MAX_TOKENS)
    return body


def _model_names(answer: _Answer) -> list[str] | None:
    """The names that a server lists; None if it has no list."""
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


def _said(answer: _Answer, key: str) -> str:
    """The server's message, without the key."""
    text = answer.body.decode("utf-8", "replace")
    try:
        text = str(json.loads(text)["error"]["message"])
    except (ValueError, RecursionError, LookupError, TypeError):
        pass
    return _without(text, key)[:_MAX_SAID] or "(nothing)"


def _without(text: str, key: str) -> str:
    return text.replace(key, "***") if key else text


def _shown(base_url: str) -> str:
    """The address without a password or a query, which may hold a key."""
    parts = urlsplit(base_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
