"""Settings of judges: what is refused, and in which words."""

import pytest
from ralign.engine.config.judge import EndpointConfig, JudgeConfig, check_judge, extra_fields
from ralign.engine.config.run import AlgoConfig, Run
from ralign.engine.config.validation import validate
from ralign.engine.runtime.errors import UserError


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"metarm": "managed"}, "judge.model"),
        ({"metarm": "managed", "model": "/none"}, "no Hugging Face folder"),
        ({"metarm": "endpoint", "model": "m"}, "judge.base_url"),
        ({"metarm": "endpoint", "model": "m", "base_url": "h:8000"}, "judge.base_url"),
        ({"metarm": "endpoint", "model": "m", "base_url": "http://h", "extra": "[]"}, "judge.extra"),
        ({"metarm": "endpoint", "model": "m", "base_url": "http://h", "template": "mine"}, "template 'mine'"),
        ({"metarm": "endpoint", "model": "m", "base_url": "http://h", "concurrency": 0}, "judge.concurrency"),
        ({"metarm": "endpoint", "model": "m", "base_url": "http://h", "budget_cost": 1.0}, "price"),
        ({"num_tries": 0}, "judge.num_tries"),
        ({"graded_threshold": 1.5}, "judge.graded_threshold"),
        ({"max_failed_share": -0.1}, "judge.max_failed_share"),
    ],
)
def test_a_metarm_that_cannot_be_asked_is_refused(config, said):
    with pytest.raises(UserError, match=said):
        check_judge(JudgeConfig(**config))


def test_an_answer_longer_than_the_judges_context_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    with pytest.raises(UserError, match=r"judge.max_new_tokens=64 .* 64"):
        check_judge(JudgeConfig(metarm="managed", model=str(tmp_path), max_new_tokens=64))


def test_r_align_needs_a_metarm_and_rlvr_does_not():
    with pytest.raises(UserError, match="r_align needs a MetaRM, got judge.metarm=none"):
        validate(Run(judge=JudgeConfig(metarm="none")), 1)
    validate(Run(judge=JudgeConfig(metarm="none"), algo=AlgoConfig(reward="label")), 1)


def test_both_orders_need_an_even_number_of_prompts():
    with pytest.raises(UserError, match="algo.num_prompts = 5"):
        validate(Run(algo=AlgoConfig(num_prompts=5, both_orders=True)), 1)


def test_extra_fields_are_an_object():
    assert extra_fields(EndpointConfig()) == {}
    assert extra_fields(EndpointConfig(extra='{"top_p": 0.9, "max_completion_tokens": null}')) == {
        "top_p": 0.9,
        "max_completion_tokens": None,
    }
    with pytest.raises(UserError, match="judge.extra=nonsense: not JSON"):
        extra_fields(EndpointConfig(extra="nonsense"))
