import pytest
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.problems import Problems


def test_all_mistakes_are_in_one_message_each_once():
    problems = Problems()
    problems.check()
    assert problems.require(True, "never") and not problems.require(False, "a must be 1")
    with pytest.raises(UserError, match="^a must be 1$"):
        problems.check()
    for _ in range(2):
        with problems.collect():
            raise UserError("b must be 2")
    with pytest.raises(UserError, match="^2 mistakes: a must be 1; b must be 2$"):
        problems.check()
    outer = Problems()
    with outer.collect():
        raise UserError("c must be 3")
    with outer.collect():
        problems.check()
    with pytest.raises(UserError, match="^3 mistakes: c must be 3; a must be 1; b must be 2$"):
        outer.check()


def test_a_bug_is_not_collected():
    with pytest.raises(ZeroDivisionError), Problems().collect():
        raise ZeroDivisionError
