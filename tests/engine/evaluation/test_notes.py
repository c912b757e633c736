import pytest
from ralign.engine.config.judge import EvalMetaRMConfig, MetaRMConfig
from ralign.engine.evaluation.notes import metarm_notes

_PAID = {"kind": "endpoint", "model": "gpt-oss-120b", "base_url": "http://host:8000/v1"}


@pytest.mark.parametrize(
    "reports",
    [
        {},
        _PAID,
        {**_PAID, "base_url": "http://host:8000/v1/"},
        {**_PAID, "template": "graded", "temperature": 0.0},
    ],
)
def test_the_metarm_that_paid_is_named_where_it_reports(reports):
    (note,) = metarm_notes(MetaRMConfig(**_PAID), EvalMetaRMConfig(**reports), pays=True)
    assert "gpt-oss-120b http://host:8000/v1" in note
    assert ("eval.metarm is not set" in note) == (not reports)


@pytest.mark.parametrize(
    "other", [{"model": "gemini"}, {"base_url": "http://other/v1"}, {"kind": "managed"}, {"kind": "none"}]
)
def test_another_metarm_needs_no_note(other):
    assert not metarm_notes(MetaRMConfig(**_PAID), EvalMetaRMConfig(**(_PAID | other)), pays=True)


def test_the_rule_of_judgeworld_is_named_without_advice_for_another():
    (note,) = metarm_notes(MetaRMConfig(), EvalMetaRMConfig(), pays=True)
    assert "(rule)" in note and "L-Acc does not depend on it." in note and "Give" not in note


def test_a_metarm_that_paid_nothing_needs_no_note():
    assert not metarm_notes(MetaRMConfig(**_PAID), EvalMetaRMConfig(), pays=False)
    assert not metarm_notes(MetaRMConfig(kind="none"), EvalMetaRMConfig(), pays=True)


def test_an_address_is_named_without_a_secret_in_it():
    paid = MetaRMConfig(kind="endpoint", model="m", base_url="http://user:secret@host/v1?key=hidden")
    (note,) = metarm_notes(paid, EvalMetaRMConfig(), pays=True)
    assert "http://host/v1" in note and "secret" not in note and "hidden" not in note
