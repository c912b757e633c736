"""Whole numbers beyond 64 bits are refused with the setting's name."""

import pytest
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.whole_numbers import MOST, check_whole_numbers


@pytest.mark.parametrize(
    ("value", "shown"),
    [(MOST + 1, str(MOST + 1)), (-MOST - 1, str(-MOST - 1)), (10**5000, "about 2^16609")],
    ids=["above", "below", "huge"],
)
def test_a_number_beyond_64_bits_is_named(value, shown):
    with pytest.raises(UserError) as refused:
        check_whole_numbers({"a": 1, "group": {"b": value}})
    assert str(refused.value) == f"group.b must be a whole number of at most 64 bits, got {shown}"


def test_all_other_values_pass():
    check_whole_numbers({"a": MOST, "b": -MOST, "c": 1e300, "d": "x" * 100, "e": None, "f": True, "g": {}})
