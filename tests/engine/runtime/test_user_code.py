"""What a user's code raises names its line; what is none of its mistakes passes."""

import sys
from importlib.util import spec_from_file_location

import pytest
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.user_code import named_by_line, run_module


def spec_of(path, text: str):
    path.write_text(text)
    return spec_from_file_location("of_a_user", path)


def test_the_last_line_of_the_file_counts_also_below_a_library(tmp_path):
    text = "import json\n\n\ndef load():\n    return json.loads('{')\n\n\nVALUE = load()\n"
    with pytest.raises(UserError, match=r"own.py:5: JSONDecodeError: Expecting property name") as refused:
        run_module(spec_of(tmp_path / "own.py", text))
    assert refused.value.__cause__ is not None and "of_a_user" not in sys.modules


def test_a_function_of_the_file_that_fails_later_is_named(tmp_path, monkeypatch):
    path = tmp_path / "own.py"
    module = run_module(spec_of(path, "def f():\n    raise KeyError('a')\n"))
    monkeypatch.delitem(sys.modules, "of_a_user")
    with pytest.raises(UserError) as refused, named_by_line(str(path)):
        module.f()
    assert str(refused.value) == f"{path}:2: KeyError: 'a'"


@pytest.mark.parametrize("error", [MemoryError("4 GiB"), KeyboardInterrupt(), UserError("own")])
def test_what_is_no_mistake_of_the_code_passes(error):
    with pytest.raises(type(error)) as raised, named_by_line("own.py"):
        raise error
    assert raised.value is error
