import pytest
from ralign.engine.data.verdicts import released_verdict, verdict_of, visible


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (r"so \boxed{A}", "A"),
        (r"so boxed{B}.", "B"),
        (r"\boxed{B} no, \boxed{A}", "B"),
        (r"boxed{B} or rather \boxed{A} \boxed{B}", "A"),
        (r"boxed{B} or rather boxed{A}", "B"),
        (r"\boxed{C} \boxed{ A } \boxed{a} \boxed{A", None),
        (r"$\boxed{A|B}$", None),
        ("A is better", None),
        ("", None),
    ],
)
def test_the_released_evaluators_verdict_is_the_first_boxed_letter(text, verdict):
    assert released_verdict(text) == verdict


@pytest.mark.parametrize(
    ("text", "verdict", "released"),
    [
        (r"Answer A quotes \boxed{A}, which is false. \boxed{B}", None, "A"),
        (r"<think>\boxed{A} perhaps</think>The date is kept by B. \boxed{B}", "B", "A"),
        (r"<think>it may be \boxed{B}", None, "B"),
        (r"it may be \boxed{B}</think>The hat is not red in A. \boxed{A}", "A", "B"),
        (r"\boxed{A} since it is right. So boxed{A}", "A", "A"),
        (r"first <think>\boxed{A}</think> \boxed{B} then <think>\boxed{A}", "B", "A"),
        ("", None, None),
    ],
)
def test_a_verdict_is_the_only_one_of_the_visible_text(text, verdict, released):
    assert verdict_of(text) == verdict
    assert released_verdict(text) == released


def test_only_what_follows_the_thinking_is_visible():
    assert visible("a </think> b </think>\n c ") == "c"
    assert visible(" no thinking ") == "no thinking"
    assert visible("thinking alone</think>") == ""


def test_thinking_that_was_not_ended_is_not_visible():
    assert visible("so far <think> and on") == "so far"
    assert visible("<think> a </think> b <think> c") == "b"
