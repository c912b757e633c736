import pytest
from ralign.engine.data.verdicts import parse_verdict, visible


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
def test_the_first_boxed_letter_is_the_verdict(text, verdict):
    assert parse_verdict(text) == verdict


def test_only_what_follows_the_thinking_is_visible():
    assert visible("a </think> b </think>\n c ") == "c"
    assert visible(" no thinking ") == "no thinking"
    assert visible("thinking alone</think>") == ""


def test_thinking_that_was_not_ended_is_not_visible():
    assert visible("so far <think> and on") == "so far"
    assert visible("<think> a </think> b <think> c") == "b"
