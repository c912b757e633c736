"""Settings of judges: the ones that are refused, and the messages."""

import pytest
from ralign.engine.config.judge import EndpointConfig, MetaRMConfig, extra_fields
from ralign.engine.config.registry import METARMS
from ralign.engine.config.run import AlgoConfig, GenRMRun
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
        ({"num_tries": 0}, "metarm.num_tries"),
        ({"graded_threshold": 1.5}, "metarm.graded_threshold"),
        ({"max_failed_share": -0.1}, "metarm.max_failed_share"),
        ({"kind": "none", "num_tries": 0}, "metarm.num_tries"),
    ],
)
def test_a_metarm_that_cannot_work_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        check(**settings)


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


def test_r_align_needs_a_metarm_and_rlvr_does_not():
    with pytest.raises(UserError, match="r_align needs a MetaRM, got metarm.kind=none"):
        validate(GenRMRun(metarm=MetaRMConfig(kind="none")), 1)
    validate(GenRMRun(metarm=MetaRMConfig(kind="none"), algo=AlgoConfig(reward="label")), 1)


def test_both_orders_need_an_even_number_of_prompts():
    with pytest.raises(UserError, match="algo.num_prompts = 5"):
        validate(GenRMRun(algo=AlgoConfig(num_prompts=5, both_orders=True)), 1)


def test_extra_fields_are_an_object():
    assert extra_fields(EndpointConfig()) == {}
    assert extra_fields(EndpointConfig(extra='{"top_p": 0.9, "max_completion_tokens": null}')) == {
        "top_p": 0.9,
        "max_completion_tokens": None,
    }
    with pytest.raises(UserError, match="endpoint.extra=nonsense: not JSON"):
        extra_fields(EndpointConfig(extra="nonsense"))
