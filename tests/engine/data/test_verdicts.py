import pytest
from ralign.engine.data.verdicts import (
    FORMS,
    other_forms,
    read_form,
    released_verdict,
    verdict_of,
    visible,
)
from ralign.engine.runtime.errors import UserError


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


IN_FORMS = [
    ("boxed", r"The better one: \boxed{ A }", "A"),
    ("boxed", r"The better one: \boxed{\text{B}}", "B"),
    ("boxed", r"The better one: \boxed{A.}", "A"),
    ("boxed", r"The better one: \boxed{Response B}", "B"),
    ("boxed", r"The better one: \boxed{\text{A}", None),
    ("boxed", r"\boxed{A or B}, \boxed{AB}, \boxed{a}, \boxed{}", None),
    ("boxed", r"\boxed{A}: it keeps the date. So again \boxed{ A }", "A"),
    ("boxed", r"A quotes \boxed{A}, falsely. \boxed{B}", None),
    ("boxed_index", r"Reasons. \boxed{1}", "A"),
    ("boxed_index", r"Reasons. \boxed{\text{2}}", "B"),
    ("boxed_index", r"Reasons. \boxed{12} \boxed{A}", None),
    ("brackets", "Both fail, A less. [[A]]", "A"),
    ("brackets", "<answer>[[ B ]]</answer>", "B"),
    ("brackets", "A tie. [[C]]", None),
    ("brackets", "<think>[[A]]</think> [[B]]", "B"),
    ("verdict_tag", "Reasons. <verdict> B </verdict>", "B"),
    ("verdict_tag", "Reasons. <verdict>neither</verdict>", None),
    ("answer_tag", "<answer>2</answer>", "B"),
    ("scores", "Response A: 7/10, Response B: 4/10", "A"),
    ("scores", "**Response A**: 3.5\n**Response B**: 4", "B"),
    ("scores", "A's score is 2, B's score is 9.", "B"),
    ("scores", "Response A: 7/10, Response B: 7/10", None),
    ("scores", "Response A: 7/10", None),
]


@pytest.mark.parametrize(("form", "text", "verdict"), IN_FORMS)
def test_a_form_reads_its_verdicts(form, text, verdict):
    assert verdict_of(text, read_form("data.verdict", form)) == verdict


@pytest.mark.parametrize("form", FORMS)
def test_a_form_takes_no_long_time_on_hostile_text(form):
    for part in (
        "boxed{",
        r"\boxed{ \text{ A",
        "[[ ",
        "<verdict> ",
        "A: ",
        "A's score is ",
        "B = 1",
        "** ",
        "9",
    ):
        verdict_of(part * (200_000 // len(part)), FORMS[form])


def test_a_pattern_of_the_users_is_a_form():
    form = read_form("data.verdict", r"Winner: ([AB12])")
    assert verdict_of("Winner: A", form) == verdict_of("Winner: 1, that is Winner: A", form) == "A"
    assert verdict_of("Winner: 1, no, Winner: 2", form) is None


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("boxes", "one group"),
        ("([AB", "nor a regular expression"),
        ("(A)|(B)", "one group"),
        ("", "one group"),
    ],
)
def test_a_wrong_form_is_one_line(value, problem):
    with pytest.raises(UserError, match=f"data.verdict=.*boxed, .*{problem}|data.verdict=.*{problem}"):
        read_form("data.verdict", value)


def test_a_form_that_most_judgments_do_not_have_is_named_with_those_that_they_have():
    texts = ["[[A]]", "[[B]]", "[[A]]", r"\boxed{B}"]
    assert other_forms(texts, FORMS["boxed"]) == (
        "3 of 4 judgments have no verdict in the form boxed; brackets reads 3"
    )
    assert other_forms(texts, FORMS["brackets"]) is None and other_forms([], FORMS["boxed"]) is None
    assert other_forms(["?"], FORMS["boxed"]).endswith("no other form reads more")


def test_of_channels_the_last_final_one_is_visible():
    text = "<|channel|>analysis<|message|>It may be \\boxed{B}<|end|><|start|>assistant"
    assert visible(text) == ""
    text += "<|channel|>final<|message|>A is right. \\boxed{A}<|return|>"
    assert visible(text) == "A is right. \\boxed{A}" and verdict_of(text) == "A"
    quoted = "The response has <|channel|>analysis in it. \\boxed{A}"
    assert visible(quoted) == quoted
