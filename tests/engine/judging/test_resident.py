"""A resident judge shares vLLM's rotary table with the generator, whose sleep frees that memory."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from ralign.engine.judging.judge import Request
from ralign.engine.judging.local_model import LocalModel
from ralign.engine.judging.resident import ResidentJudge


@pytest.mark.parametrize("is_awake", [True, False])
def test_a_request_while_the_generator_sleeps_is_a_bug(monkeypatch, is_awake):
    judge = object.__new__(ResidentJudge)
    judge._generator = SimpleNamespace(kv_cache=SimpleNamespace(is_awake=is_awake))
    answer: Future = Future()
    monkeypatch.setattr(LocalModel, "submit", lambda self, request: answer)
    request = Request(messages=(("user", "which?"),))
    if is_awake:
        assert judge.submit(request) is answer
        return
    with pytest.raises(AssertionError, match="while the generator sleeps"):
        judge.submit(request)
