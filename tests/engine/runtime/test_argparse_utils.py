import argparse
import re

import pytest
from ralign.engine.runtime.argparse_utils import Parser, number, positive, whole_number
from ralign.engine.runtime.errors import UserError

HUGE = "9" * 5000  # Python refuses to read so long a number


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (positive, {"1": 1, "007": 7, str(2**63 - 1): 2**63 - 1}, ["0", "-1", str(2**63), HUGE]),
        (positive, {}, ["", "²", "٣", "1.0", "1e3", "+1", " 1", "1_0", "--1", "nan"]),
        (whole_number(-2, 5), {"-2": -2, "5": 5}, ["-3", "6", "-", "−1"]),
        (number(0), {"0": 0.0, "1e3": 1000.0}, ["-1e-9", "nan", "inf", "-inf", "1e999", "x", "", HUGE]),
        (number(0, 1, above=True), {"1": 1.0, "0.5": 0.5}, ["0", "1.1", "nan"]),
    ],
)
def test_only_finite_numbers_in_the_range_are_read(kind, good, bad):
    assert {text: kind(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=f"^{re.escape(repr(text))} is not a "):
            kind(text)


def test_a_mistake_names_option_value_and_range():
    parser = Parser(prog="program")
    parser.add_argument("--seed", type=whole_number(0))
    parser.add_argument("--share", type=number(0, 1, above=True))
    for argv, message in (
        (["--seed", "-1"], "argument --seed: '-1' is not a whole number of at least 0"),
        (["--share", "0"], "argument --share: '0' is not a finite number above 0 and at most 1"),
        (["stray"], "unrecognized arguments: stray"),
    ):
        with pytest.raises(UserError, match=re.escape(f"{message} (program --help lists all)")):
            parser.parse_args(argv)
