"""Questions without an oracle: what a judge is shown of them, and nothing of the pair's own answers."""

from ralign.engine.data.pairs import Pair
from ralign.engine.data.prompts import load_template, render
from ralign.engine.data.questions import OpenQuestion


def make_pair(label):
    turns = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "second"},
        {"role": "user", "content": "third"},
    ]
    return Pair(
        id="p", source="s", conversations=turns, response_A="answer a", response_B="answer b", gt_label=label,
        gt_judgment="golden",
    )  # fmt: skip


def test_the_better_response_is_the_reference():
    assert OpenQuestion(pair=make_pair("A")).reference == "answer a"
    assert OpenQuestion(pair=make_pair("B")).reference == "answer b"


def test_a_judge_sees_the_dialogue_and_the_two_answers_alone():
    question = OpenQuestion(pair=make_pair("B"))
    prompt = render(load_template("full"), question.compare("one", "two"))
    assert all(text in prompt for text in ("first", "second", "third", "one", "two"))
    assert not any(text in prompt for text in ("answer a", "answer b", "golden"))
    assert question.grade("one") is None


def test_an_actors_prompt_is_the_dialogue_without_earlier_thinking():
    pair = make_pair("A")
    pair.conversations[1]["content"] = "<think>a thought</think>\nsecond"
    assert OpenQuestion(pair=pair).messages() == (
        ("user", "first"),
        ("assistant", "second"),
        ("user", "third"),
    )
