"""Questions without an oracle: what a judge is shown of them, and nothing of the pair's own answers."""

from types import SimpleNamespace

import pytest
from ralign.engine.data.pairs import Pair
from ralign.engine.data.prompts import load_template, render
from ralign.engine.data.questions import OpenQuestion
from ralign.engine.runtime.errors import UserError
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast


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


def test_an_actor_is_asked_the_dialogue_in_its_chat_template_or_as_plain_text():
    question = OpenQuestion(pair=make_pair("A"))
    assert question.prompt(None, chat=False) == "first\n\nsecond\n\nthird\n\n"
    with pytest.raises(UserError, match="data.chat=True: the tokenizer in 'here' has no chat template"):
        question.prompt(SimpleNamespace(chat_template=None, name_or_path="here"), chat=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()),
        chat_template="{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}[answer]{% endif %}",
    )
    assert question.prompt(tokenizer, chat=True) == "[user] first [assistant] second [user] third [answer]"
