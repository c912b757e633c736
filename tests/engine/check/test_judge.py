"""The judge's address, key and model, against a server in this process; the key is in no message."""

import socket

import pytest
from ralign.engine.check.judge import check_judge
from ralign.engine.check.report import as_json, as_text
from ralign.engine.config.actor import ActorRun
from ralign.engine.config.judge import GenRMConfig, MetaRMConfig
from ralign.engine.config.run import DataConfig, GenRMRun, ModelConfig

MODEL = "openai/gpt-oss-120b"
RIGHT, WRONG = "sk-right-0123456789", "sk-wrong-9876543210"


def run_of(url: str | None, **metarm) -> GenRMRun:
    options = {"kind": "endpoint", "model": MODEL, "base_url": url} | metarm
    return GenRMRun(metarm=MetaRMConfig(**options))


def check(url, key: str | None = RIGHT, limit_s: float = 60.0, **metarm):
    env = {} if key is None else {"OPENAI_API_KEY": key}
    finding = check_judge(run_of(url, **metarm), env, limit_s)
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


def test_a_key_that_is_refused_only_with_the_question_is_found(judge_server):
    judge = judge_server(key=None, fault={"completions": (403, f'{{"detail": "{WRONG}"}}'.encode())})
    finding = check(judge.url, WRONG)
    assert finding.level == "FAIL" and "status 403" in finding.found


def test_a_missing_key_names_its_variable_and_a_server_without_keys_needs_none(judge_server):
    finding = check(judge_server().url, None, api_key_env="JUDGE_KEY")
    assert (
        finding.level == "FAIL"
        and "needs a key" in finding.found
        and "$JUDGE_KEY is not set" in finding.found
    )
    assert check(judge_server(key=None).url, None).level == "OK"


@pytest.mark.parametrize("key", [f"{WRONG}\n", f" {WRONG}", f"{WRONG}\r", f"{WRONG}é", "sk\x00"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(judge_server, key):
    judge = judge_server()
    finding = check(judge.url, key)
    assert finding.level == "FAIL" and "no header can carry" in finding.found and not judge.asked


def test_a_model_that_is_not_served_is_reported_with_the_served_ones(judge_server):
    finding = check(judge_server(models=("a", "b", "c", "d", "e", "f")).url)
    assert finding.level == "FAIL" and f"does not serve {MODEL}; it lists a, b, c, d, e, ..." in finding.found
    assert finding.details == ("a", "b", "c", "d", "e", "f")


def test_a_server_without_a_list_of_models_still_gets_the_question(judge_server):
    judge = judge_server(models=None)
    assert check(judge.url).level == "OK" and len(judge.asked) == 1
    gone = judge_server(models=None, fault={"completions": (404, b'{"error": {"message": "no such model"}}')})
    assert check(gone.url).level == "FAIL" and "status 404: no such model" in check(gone.url).found


@pytest.mark.parametrize(
    ("status", "level"),
    [(400, "FAIL"), (422, "FAIL"), (429, "WARN"), (500, "FAIL"), (503, "FAIL"), (307, "FAIL")],
)
def test_a_server_s_message_is_shown_without_the_key(judge_server, status, level):
    body = f'{{"error": {{"message": "you sent Bearer {RIGHT} and temperature"}}}}'.encode()
    finding = check(judge_server(fault={"completions": (status, body)}).url)
    assert finding.level == level and f"status {status}: you sent Bearer *** and temperature" in finding.found


def test_an_answer_that_is_not_a_completion_fails(judge_server):
    assert check(judge_server(fault={"completions": (200, b"<html>hello</html>")}).url).level == "FAIL"


def test_an_unreachable_address_and_a_hanging_server_fail_within_the_limit(judge_server):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
        finding = check(url)
    assert finding.level == "FAIL" and f"{url} is not reachable" in finding.found
    silent = check(judge_server(hangs=("models",)).url, limit_s=0.3)
    assert silent.level == "FAIL" and "no answer within 0.3 s" in silent.found
    busy = check(judge_server(hangs=("completions",)).url, limit_s=3.0)
    assert busy.level == "WARN" and "did not answer a short question within 3 s" in busy.found


def test_an_address_is_shown_without_password_and_query(judge_server):
    url = judge_server(models=()).url.replace("http://", f"http://me:{WRONG}@")
    assert "//127.0.0.1:" in check(url).found
    for bad in (None, "judge:8000", "http://[::bad/v1", "http://host:port/v1"):
        assert check(bad).level == "FAIL"


def test_metarms_without_an_endpoint(tmp_path, qwen3_folder):
    assert "JudgeWorld's own rule" in check_judge(GenRMRun(), {}).found
    none = GenRMRun(metarm=MetaRMConfig(kind="none"))
    assert check_judge(none, {}).level == "OK" and "label only" in check_judge(none, {}).found
    rule = GenRMRun(data=DataConfig(train="pairs.jsonl"))
    finding = check_judge(rule, {})
    assert finding.level == "FAIL" and "metarm.kind=rule reads JudgeWorld's pairs only" in finding.found
    run = run_of(None, kind="managed", model=str(qwen3_folder(tmp_path)))
    assert check_judge(run, {}).level == "OK" and "complete" in check_judge(run, {}).found
    (tmp_path / "models" / "Qwen3-8B" / "model-00001-of-00002.safetensors").unlink()
    assert check_judge(run, {}).level == "FAIL"
    assert check_judge(run_of(None, kind="managed", model="missing"), {}).level == "FAIL"


def test_a_metarm_of_the_user_s_own_is_loaded_and_checked(tmp_path):
    (tmp_path / "judge_of_mine.py").write_text(
        "from ralign.engine.judging.metarm import RuleMetaRM\n"
        "from ralign.engine.judging.metarms import MetaRMKind\n"
        "MINE = MetaRMKind(open=lambda config, context: RuleMetaRM())\n"
    )
    kind = f"{tmp_path}/judge_of_mine.py:MINE"
    finding = check_judge(GenRMRun(metarm=MetaRMConfig(kind=kind)), {})
    assert finding.level == "OK" and f"metarm.kind={kind}" in finding.found
    for kind, message in (
        (f"{tmp_path}/judge_of_mine.py:OTHER", "has no OTHER"),
        ("rules", "expected one of"),
    ):
        finding = check_judge(GenRMRun(metarm=MetaRMConfig(kind=kind)), {})
        assert finding.level == "FAIL" and message in finding.found


def genrm_run(**settings) -> ActorRun:
    run = ActorRun(genrm=GenRMConfig(**settings))
    run.algo.num_samples = 8
    return run


def test_an_actor_s_genrm_is_checked_at_its_endpoint(judge_server):
    judge = judge_server()
    run = genrm_run(kind="endpoint", model=MODEL, base_url=judge.url)
    assert check_judge(run, {"OPENAI_API_KEY": RIGHT}).level == "OK" and judge.asked[0]["model"] == MODEL
    assert check_judge(run, {"OPENAI_API_KEY": WRONG}).level == "FAIL"
    other = genrm_run(kind="endpoint", model="another", base_url=judge.url)
    assert "does not serve another" in check_judge(other, {"OPENAI_API_KEY": RIGHT}).found
    finding = check_judge(genrm_run(kind="endpoint", model=MODEL), {})
    assert finding.level == "FAIL" and "genrm.base_url must be" in finding.found
    assert "give genrm.base_url=URL, or genrm.kind=managed" in finding.next_step


def test_an_actor_without_a_genrm_fails_unless_there_is_an_oracle(tmp_path):
    assert check_judge(ActorRun(), {}).level == "OK"
    run = ActorRun(model=ModelConfig(hf_path=str(tmp_path)))
    assert check_judge(run, {}).level == "FAIL" and "genrm.model is missing" in check_judge(run, {}).found
    run = genrm_run(kind="managed", model="org/genrm-14b")
    assert check_judge(run, {}).level == "WARN" and "from the hub" in check_judge(run, {}).found
