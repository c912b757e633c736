"""The rule reads quotations: which rationales it finds Correct."""

import pytest
from ralign.engine.config.registry import METARMS
from ralign.engine.judging.metarm import Outcome
from ralign.engine.runtime.errors import UserError
from ralign.recipes.real.metarm import SPANS, SpanMetaRM
from ralign.recipes.real.pairs import judgment

GOLDEN = judgment(
    ["the two tubes", "it is red"], ["the five tubes", "it is red"], ["the two tubes", "it is red"]
)
FACTOR = 'A says "the five tubes", the source says "the two tubes".'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOLDEN, "Correct"),
        (FACTOR + r" \boxed{B}", "Correct"),  # evidence may be left out
        (FACTOR + " " + FACTOR, "Correct"),
        (GOLDEN.replace("A says", "B says"), "Incorrect"),
        (GOLDEN.replace('says "the five tubes"', 'says "the six tubes"'), "Incorrect"),
        (GOLDEN.replace('source says "the two tubes"', 'source says "the ten tubes"'), "Incorrect"),
        (GOLDEN.replace('says "the five tubes"', 'says "five"'), "Incorrect"),
        (GOLDEN + ' B says "it is blue", the source says "it is red".', "Incorrect"),
        (GOLDEN.replace('Source "the two tubes"', 'Source "the three tubes"'), "Incorrect"),
        (GOLDEN.replace("A differs", "B differs"), "Incorrect"),
        (GOLDEN.replace(": same", ": both differ"), "Incorrect"),
        (GOLDEN.replace(FACTOR, ""), "Incorrect"),
        ('Source "nonsense" , A. ' + GOLDEN, "Incorrect"),  # evidence in another form is no way out
        (GOLDEN + ' B also claims "x" where the source has "y".', "Incorrect"),
        ("A is polite and in bullets. " + GOLDEN, "Incorrect"),
        (GOLDEN.replace(FACTOR, FACTOR + " The bullets decide."), "Incorrect"),
        (f"<think>{GOLDEN}</think> " + r"\boxed{B}", "Incorrect"),  # only visible text counts
        ("B is neat and clear. \\boxed{B}", "Incorrect"),
        ("", "Incorrect"),
    ],
)
def test_outcomes(text, expected):
    assert SpanMetaRM().outcome(GOLDEN, text) is Outcome(expected)


def test_other_pairs_are_refused():
    with pytest.raises(UserError, match="reads pairs of recipes/real only"):
        SpanMetaRM().outcome("A is wrong: color should be red.", GOLDEN)


def test_the_setting_finds_it():
    assert METARMS.load("ralign.recipes.real.metarm:SPANS") is SPANS
