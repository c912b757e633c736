"""A `LocalModel` without vLLM: requests that the model cannot take."""

from types import SimpleNamespace

import jinja2
import pytest
from ralign.engine.judging import local_model
from ralign.engine.judging.judge import Request
from ralign.engine.judging.local_model import LocalModel, LocalModelConfig

_TEMPLATE = jinja2.Template(
    "{% if messages[0].role == 'system' %}{{ fail('no system turn') }}{% endif %}{{ messages[0].content.strip() }}"
)


def _fail(message):
    raise jinja2.TemplateError(message)


class _Tokenizer:
    """A token a character, and none added."""

    chat_template, name_or_path, is_fast = "there is one", "folder", True
    added_tokens_decoder: dict = {}
    unk_token_id = None

    def apply_chat_template(self, messages, **kwargs):
        return _TEMPLATE.render(messages=messages, fail=_fail)

    def __len__(self):
        return 128

    def __call__(self, texts, **kwargs):
        if texts == ["bug"]:
            raise ZeroDivisionError("bug")
        offsets = [[(i, i + 1) for i in range(len(text))] for text in texts]
        return {"input_ids": [[ord(letter) for letter in text] for text in texts], "offset_mapping": offsets}


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
    bad = Request(messages=(("system", "bad"),))
    asked = [
        model.submit(request if isinstance(request, Request) else Request.of(request))
        for request in ("one", bad, "two", "x" * 20, bad, "three")
    ]
    one, bad, two, long, worse, three = (future.result(timeout=10) for future in asked)
    assert [reply.text for reply in (one, two, three)] == ["one", "two", "three"]
    for reply in (bad, worse):
        assert reply.failed and "fails for the roles system: TemplateError: no system turn" in reply.problem
    assert long.failed and long.problem == "the prompt has 20 tokens, the model takes 20"
    assert (model.usage.num_calls, model.usage.num_failed) == (3, 3)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_reaches_every_future(model):
    asked = [model.submit(Request.of(text)) for text in ("one", "bug", "two")]
    assert isinstance(asked[1].exception(timeout=10), ZeroDivisionError)
    asked[2].exception(timeout=10)  # TimeoutError if the future is never set
    with pytest.raises(ZeroDivisionError):
        model.submit(Request.of("three")).result(timeout=10)
