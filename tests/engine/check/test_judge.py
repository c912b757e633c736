"""The judge's address, key and model, against a server in this process; the key appears nowhere."""

import socket
from dataclasses import replace

import pytest
from ralign.engine.check.judge import check_judge
from ralign.engine.check.report import as_json, as_text
from ralign.engine.config.actor import ActorConfig, ActorRun
from ralign.engine.config.judge import JudgeConfig
from ralign.engine.config.run import DataConfig, ModelConfig, Run

MODEL = "openai/gpt-oss-120b"
RIGHT, WRONG = "sk-right-0123456789", "sk-wrong-9876543210"


def run_of(url: str | None, **judge) -> Run:
    options = {"metarm": "endpoint", "model": MODEL, "base_url": url} | judge
    return Run(judge=JudgeConfig(**options))


def check(url, key: str | None = RIGHT, limit_s: float = 5.0, **judge):
    env = {} if key is None else {"OPENAI_API_KEY": key}
    finding = check_judge(run_of(url, **judge), env, limit_s)
    for secret in (RIGHT, WRONG):
        assert secret not in as_text([finding]) and secret not in as_json([finding], None)
    return finding


def test_a_judge_that_answers_is_ok_after_one_short_question(judge_server):
    judge = judge_server()
    finding = check(judge.url, extra='{"reasoning_effort": "low"}')
    assert (
        finding.level == "OK"
        and MODEL in finding.found
        and "takes the key in $OPENAI_API_KEY" in finding.found
    )
    [asked] = judge.asked
    assert asked["model"] == MODEL and asked["max_completion_tokens"] == 64 and asked["temperature"] == 0.4
    assert asked["reasoning_effort"] == "low"


def test_a_wrong_key_fails_and_is_not_printed(judge_server):
    finding = check(judge_server().url, WRONG)
    assert finding.level == "FAIL" and "refuses the key in $OPENAI_API_KEY (status 401)" in finding.found


def test_a_server_that_asks_for_a_key_only_with_the_question_is_found_out(judge_server):
    judge = judge_server(key=None, fault={"completions": (403, f'{{"detail": "{WRONG}"}}'.encode())})
    finding = check(judge.url, WRONG)
    assert finding.level == "FAIL" and "status 403" in finding.found


def test_a_missing_key_names_its_variable_and_a_server_without_keys_needs_none(judge_server):
    finding = check(judge_server().url, None, api_key_env="JUDGE_KEY")
    assert (
        finding.level == "FAIL"
        and "asks for a key" in finding.found
        and "$JUDGE_KEY is not set" in finding.found
    )
    assert check(judge_server(key=None).url, None).level == "OK"


@pytest.mark.parametrize("key", [f"{WRONG}\n", f" {WRONG}", f"{WRONG}\r", f"{WRONG}é", "sk\x00"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(judge_server, key):
    judge = judge_server()
    finding = check(judge.url, key)
    assert finding.level == "FAIL" and "no header can carry" in finding.found and not judge.asked


def test_a_model_that_is_not_served_comes_with_those_that_are(judge_server):
    finding = check(judge_server(models=("a", "b", "c", "d", "e", "f")).url)
    assert finding.level == "FAIL" and f"does not serve {MODEL}; it lists a, b, c, d, e, ..." in finding.found
    assert finding.details == ("a", "b", "c", "d", "e", "f")


def test_a_server_without_a_list_of_models_is_asked_all_the_same(judge_server):
    judge = judge_server(models=None)
    assert check(judge.url).level == "OK" and len(judge.asked) == 1
    gone = judge_server(models=None, fault={"completions": (404, b'{"error": {"message": "no such model"}}')})
    assert check(gone.url).level == "FAIL" and "status 404: no such model" in check(gone.url).found


@pytest.mark.parametrize(
    ("status", "level"),
    [(400, "FAIL"), (422, "FAIL"), (429, "WARN"), (500, "FAIL"), (503, "FAIL"), (307, "FAIL")],
)
def test_what_a_server_says_is_shown_without_the_key(judge_server, status, level):
    body = f'{{"error": {{"message": "you sent Bearer {RIGHT} and temperature"}}}}'.encode()
    finding = check(judge_server(fault={"completions": (status, body)}).url)
    assert finding.level == level and f"status {status}: you sent Bearer *** and temperature" in finding.found


def test_an_answer_that_is_no_completion_fails(judge_server):
    assert check(judge_server(fault={"completions": (200, b"<html>hello</html>")}).url).level == "FAIL"


def test_nobody_at_the_address_fails_and_a_hanging_server_is_not_waited_for(judge_server):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
        finding = check(url)
    assert finding.level == "FAIL" and f"{url} is not reachable" in finding.found
    silent = check(judge_server(hangs=("models",)).url, limit_s=0.3)
    assert silent.level == "FAIL" and "no answer within 0.3 s" in silent.found
    busy = check(judge_server(hangs=("completions",)).url, limit_s=0.5)
    assert busy.level == "WARN" and "did not answer a short question within 0.5 s" in busy.found


def test_an_address_is_shown_without_password_and_query(judge_server):
    url = judge_server(models=()).url.replace("http://", f"http://me:{WRONG}@")
    assert "//127.0.0.1:" in check(url).found
    for bad in (None, "judge:8000", "http://[::bad/v1", "http://host:port/v1"):
        assert check(bad).level == "FAIL"


def test_judges_without_an_endpoint(tmp_path, qwen3_folder):
    assert check_judge(Run(), {}).level == "OK"
    rule = Run(data=DataConfig(train="pairs.jsonl"))
    assert (
        check_judge(rule, {}).level == "FAIL"
        and "reads JudgeWorld's pairs only" in check_judge(rule, {}).found
    )
    run = run_of(None, metarm="managed", model=str(qwen3_folder(tmp_path)))
    assert check_judge(run, {}).level == "OK" and "complete" in check_judge(run, {}).found
    (tmp_path / "models" / "Qwen3-8B" / "model-00001-of-00002.safetensors").unlink()
    assert check_judge(run, {}).level == "FAIL"
    assert check_judge(run_of(None, metarm="managed", model="missing"), {}).level == "FAIL"


def test_an_actors_genrm_is_asked_at_its_endpoint(judge_server):
    judge = judge_server()
    run = ActorRun(
        judge=JudgeConfig(metarm="none", base_url=judge.url),
        actor=ActorConfig(genrm=MODEL, judge="endpoint"),
    )
    assert check_judge(run, {"OPENAI_API_KEY": RIGHT}).level == "OK" and judge.asked[0]["model"] == MODEL
    assert run.judge.model is None  # the run's settings stay as they are
    assert check_judge(run, {"OPENAI_API_KEY": WRONG}).level == "FAIL"
    other = replace(run, actor=ActorConfig(genrm="another", judge="endpoint"))
    assert "does not serve another" in check_judge(other, {"OPENAI_API_KEY": RIGHT}).found


def test_an_actor_without_a_genrm_fails_but_for_the_miniature_which_has_an_oracle(tmp_path):
    assert check_judge(ActorRun(judge=JudgeConfig(metarm="none")), {}).level == "OK"
    run = ActorRun(judge=JudgeConfig(metarm="none"), model=ModelConfig(hf_path=str(tmp_path)))
    assert check_judge(run, {}).level == "FAIL" and "actor.genrm is missing" in check_judge(run, {}).found
    run.actor.genrm, run.actor.judge = "org/genrm-14b", "managed"
    assert check_judge(run, {}).level == "WARN" and "from the hub" in check_judge(run, {}).found
