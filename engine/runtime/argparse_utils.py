"""argparse as all console scripts use it."""

import argparse
from typing import NoReturn

from ralign.engine.runtime.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are `UserError`s: one line and exit status 2, as everywhere in ralign."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help lists all)")


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
