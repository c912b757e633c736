"""Settings of judges: the ones that are refused, and the messages."""

import math

import pytest
from ralign.engine.config.algo import AlgoConfig
from ralign.engine.config.judge import EndpointConfig, MetaRMConfig, extra_fields
from ralign.engine.config.registry import METARMS
from ralign.engine.config.run import GenRMRun
from ralign.engine.config.validation import validate
from ralign.engine.runtime.errors import UserError

SERVED = {"kind": "endpoint", "model": "m", "base_url": "http://h"}


def check(**settings) -> None:
    config = MetaRMConfig(**settings)
    METARMS.load(config.kind).check(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "managed"}, "metarm.model"),
        ({"kind": "managed", "model": "/none"}, "no Hugging Face folder"),
        (
            {"kind": "managed", "model": "m", "base_url": "http://h"},
            "metarm.base_url=http://h with metarm.kind=managed",
        ),
        ({"kind": "endpoint", "model": "m"}, "metarm.base_url"),
        (SERVED | {"base_url": "h:8000"}, "metarm.base_url"),
        (SERVED | {"extra": "[]"}, "metarm.extra"),
        (SERVED | {"template": "mine"}, "template 'mine'"),
        (SERVED | {"concurrency": 0}, "metarm.concurrency"),
        (SERVED | {"budget_cost": 1.0}, "price"),
        (
            SERVED | {"base_url": "http://me:SECRET@h/v1"},
            r"belongs into \$OPENAI_API_KEY .* got http://h/v1$",
        ),
        (SERVED | {"base_url": "http://me:S/ECRET@h/v1"}, "base_url must be an address .* got http://h/v1$"),
        (
            SERVED | {"base_url": "http://h/v1?key=SECRET"},
            "without user, password, query .* got http://h/v1$",
        ),
        (SERVED | {"base_url": "http://h/v1#SECRET"}, "without user, password, query"),
        (SERVED | {"base_url": "http://[::1/v1"}, "its host is not one, got http"),
        (SERVED | {"base_url": "http://h:abc/v1"}, "its port is not a number, got http://h:abc/v1"),
        (SERVED | {"base_url": "http://h:99999/v1"}, "its port is not a number"),
        (SERVED | {"base_url": "http:///v1"}, "metarm.base_url must be"),
        (SERVED | {"base_url": "http://h\n/v1"}, "metarm.base_url must be"),
        (SERVED | {"base_url": "http://h h/v1"}, "metarm.base_url must be"),
        (SERVED | {"base_url": "file:///etc/passwd"}, "metarm.base_url must be"),
        (SERVED | {"api_key_env": "sk-SECRET"}, "must be the name of an environment variable, not a key"),
        (SERVED | {"timeout_s": math.inf}, "metarm.timeout_s must be a positive number of seconds, got inf"),
        (SERVED | {"timeout_s": math.nan}, "metarm.timeout_s"),
        (SERVED | {"max_backoff_s": math.inf}, "metarm.max_backoff_s"),
        (SERVED | {"temperature": math.inf}, "metarm.temperature"),
        (SERVED | {"price_in": math.inf}, "metarm.price_in must be a number of at least 0, got inf"),
        (SERVED | {"price_out": math.nan}, "metarm.price_out"),
        (SERVED | {"budget_cost": math.inf, "price_in": 1.0}, "metarm.budget_cost"),
        (SERVED | {"concurrency": 10**9}, "metarm.concurrency must be from 1 to"),
        (SERVED | {"num_processes": 10**6}, "metarm.num_processes"),
        (SERVED | {"extra": '{"a": NaN}'}, "metarm.extra=.*: not JSON"),
        (SERVED | {"extra": '{"a": 1e999}'}, "metarm.extra=.*: not JSON"),
        (SERVED | {"extra": "[" * 5000}, r"metarm.extra=\[{80}: not JSON"),
        (SERVED | {"extra": '{"a": 1%s}' % ("0" * 5000)}, "metarm.extra=.*: not JSON"),
        (
            SERVED | {"concurrency": 0, "max_new_tokens": 0},
            "2 mistakes: metarm.max_new_tokens .*; metarm.conc",
        ),
        ({"num_tries": 0}, "metarm.num_tries"),
        ({"graded_threshold": 1.5}, "metarm.graded_threshold"),
        ({"max_failed_share": -0.1}, "metarm.max_failed_share"),
        ({"kind": "none", "num_tries": 0}, "metarm.num_tries"),
    ],
)
def test_a_metarm_that_cannot_work_is_refused(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        check(**settings)
    assert "ECRET" not in str(caught.value)


def test_metarms_that_can_work_are_accepted():
    check()
    check(kind="keywords")
    check(kind="none")
    check(**SERVED)


def test_an_answer_longer_than_the_judges_context_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    check(kind="managed", model=str(tmp_path), max_new_tokens=63)
    with pytest.raises(UserError, match=r"metarm.max_new_tokens=64 .* 64"):
        check(kind="managed", model=str(tmp_path), max_new_tokens=64)


@pytest.mark.parametrize("text", ["{", "5", "[" * 5000, '{"max_position_embeddings": "long"}'])
def test_a_damaged_model_config_is_a_mistake(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=f"metarm.model={tmp_path}: config.json"):
        check(kind="managed", model=str(tmp_path), max_new_tokens=63)


@pytest.mark.parametrize(
    "key", ["sk-SECRET\n", "sk-SECRET\u00e4", " sk-SECRET", "sk-SE CRET", "sk-SECRET\x7f"]
)
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match=r"the key in \$OPENAI_API_KEY has a space") as caught:
        check(**SERVED)
    assert "SE" not in str(caught.value)


def test_r_align_needs_a_metarm_and_rlvr_does_not():
    with pytest.raises(UserError, match="r_align needs a MetaRM, got metarm.kind=none"):
        validate(GenRMRun(metarm=MetaRMConfig(kind="none")), 1)
    validate(GenRMRun(metarm=MetaRMConfig(kind="none"), algo=AlgoConfig(reward="label")), 1)


def test_a_pair_and_its_twin_need_an_even_number_of_prompts():
    with pytest.raises(UserError) as refused:
        validate(GenRMRun(algo=AlgoConfig(num_prompts=5, partner="order")), 1)
    assert str(refused.value) == (
        "algo.num_prompts = 5 is not divisible by a pair and its twin (algo.partner) = 2"
    )


@pytest.mark.parametrize("group", ["prompt", "pair"])
@pytest.mark.parametrize(("advantages", "reward"), [("grpo", "r_align"), ("gdpo", "label_rationale")])
def test_coupling_is_refused_where_a_groups_std_cancels_it(advantages, reward, group):
    def check_run(**settings):
        validate(
            GenRMRun(algo=AlgoConfig(partner="order", couple=True, reward=reward, group=group, **settings)), 1
        )

    with pytest.raises(UserError) as refused:
        check_run(advantages=advantages)
    assert str(refused.value) == (
        f"algo.couple=True with algo.advantages={advantages}: the group's std cancels the twin's mean, which the group"
        " has in common; take dr_grpo, rloo, reinforce_pp, reinforce_pp_baseline, gae"
    )
    check_run(advantages="rloo")
    validate(GenRMRun(algo=AlgoConfig(partner="order", group=group)), 1)  # grpo, without coupling


def test_extra_fields_are_an_object():
    assert extra_fields(EndpointConfig()) == {}
    assert extra_fields(EndpointConfig(extra='{"top_p": 0.9, "max_completion_tokens": null}')) == {
        "top_p": 0.9,
        "max_completion_tokens": None,
    }
    with pytest.raises(UserError, match="endpoint.extra=nonsense: not JSON"):
        extra_fields(EndpointConfig(extra="nonsense"))
