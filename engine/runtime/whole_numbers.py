"""The range of whole numbers that users give."""

from collections.abc import Mapping
from typing import Any

from ralign.engine.runtime.errors import UserError

MOST = 2**63 - 1  # a signed 64-bit integer, which all libraries take
_MAX_SHOWN_CHARS = 80


def check_whole_numbers(settings: Mapping[str, Any], prefix: str = "") -> None:
    """Raises UserError for a setting, also of a nested group, that is a whole number beyond 64 bits."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            check_whole_numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int) and not -MOST <= value <= MOST:
            shown = f"{value:d}" if abs(value) < 10**_MAX_SHOWN_CHARS else f"about 2^{value.bit_length() - 1}"
            raise UserError(f"{prefix}{name} must be a whole number of at most 64 bits, got {shown}")
