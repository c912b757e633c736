"""A `LocalModel` without vLLM: requests that the model cannot take."""

from types import SimpleNamespace

import jinja2
import pytest
from ralign.engine.judging import local_model
from ralign.engine.judging.judge import Request
from ralign.engine.judging.local_model import LocalModel, LocalModelConfig

_TEMPLATE = jinja2.Template(
    "{% if 'bad' in messages[0].content %}{{ fail(messages[0].role) }}{% endif %}{{ messages[0].content }}"
)


def _fail(role):
    raise jinja2.TemplateError(f"no turn of a {role} like this one")


class _Tokenizer:
    chat_template = "there is one"

    def apply_chat_template(self, messages, **kwargs):
        return _TEMPLATE.render(messages=messages, fail=_fail)

    def __call__(self, text, **kwargs):
        if text == "bug":
            raise ZeroDivisionError(text)
        return {"input_ids": [ord(letter) for letter in text]}


class _Engine:
    """Answers every prompt with itself, one a step."""

    def __init__(self):
        self.waiting = []

    def add_request(self, name, prompt, sampling):
        self.waiting.append((name, prompt["prompt_token_ids"]))

    def step(self):
        name, ids = self.waiting.pop(0)
        completion = SimpleNamespace(text="".join(map(chr, ids)), finish_reason="stop", token_ids=ids)
        return [SimpleNamespace(finished=True, request_id=name, prompt_token_ids=ids, outputs=[completion])]


@pytest.fixture
def model(tmp_path, monkeypatch):
    llm = SimpleNamespace(
        get_tokenizer=_Tokenizer,
        model_config=SimpleNamespace(max_model_len=20),
        llm_engine=_Engine(),
    )
    monkeypatch.setattr(local_model, "_load", lambda config, options: llm)
    monkeypatch.setattr(LocalModel, "_sampling", lambda self, request: None)
    (tmp_path / "config.json").write_text("{}")
    made = LocalModel(LocalModelConfig(folder=str(tmp_path), temperature=0, max_new_tokens=5))
    yield made
    made._waiting.put(None)
    made._thread.join(10)
    assert not made._thread.is_alive()


def test_a_request_that_the_chat_template_refuses_fails_and_others_are_answered(model):
    asked = [model.submit(Request.of(text)) for text in ("one", "bad", "two", "x" * 20, "bad too", "three")]
    one, bad, two, long, worse, three = (future.result(timeout=10) for future in asked)
    assert [reply.text for reply in (one, two, three)] == ["one", "two", "three"]
    for reply in (bad, worse):
        assert (
            reply.failed
            and reply.problem == "the chat template refuses the request: no turn of a user like this one"
        )
    assert long.failed and long.problem == "the prompt has 20 tokens, the model takes 20"
    assert (model.usage.num_calls, model.usage.num_failed) == (3, 3)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_reaches_every_future(model):
    asked = [model.submit(Request.of(text)) for text in ("one", "bug", "two")]
    assert isinstance(asked[1].exception(timeout=10), ZeroDivisionError)
    asked[2].exception(timeout=10)  # TimeoutError if the future is never set
    with pytest.raises(ZeroDivisionError):
        model.submit(Request.of("three")).result(timeout=10)
