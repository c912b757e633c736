"""argparse as all console scripts use it."""

import argparse
import math
from collections.abc import Callable
from typing import NoReturn

from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.whole_numbers import MOST


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are `UserError`s: one line and exit status 2, as everywhere in ralign."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help lists all)")


def whole_number(least: int, most: int = MOST) -> Callable[[str], int]:
    """An argparse type: a whole number from `least` to `most`."""
    expected = f"of at least {least}" if most == MOST else f"from {least} to {most}"

    def read(text: str) -> int:
        digits = text.removeprefix("-")
        is_number = digits.isascii() and digits.isdigit() and len(digits) <= len(str(MOST))
        if not (is_number and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {expected}")
        return int(text)

    return read


def number(least: float, most: float = math.inf, *, above: bool = False) -> Callable[[str], float]:
    """An argparse type: a finite number from `least` (with `above`: above it) to `most`."""
    expected = f"{'above' if above else 'of at least'} {least:g}"
    if most < math.inf:
        expected += f" and at most {most:g}"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        is_in_range = math.isfinite(value) and least <= value <= most and not (above and value == least)
        if not is_in_range:
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number {expected}")
        return value

    return read


positive = whole_number(1)
