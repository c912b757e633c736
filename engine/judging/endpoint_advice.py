"""Which setting to change when a server refuses every request."""

import json
import re

from ralign.engine.config.judge import EndpointConfig, extra_fields
from ralign.engine.judging.client import Failure

_LIMITS = ("max_completion_tokens", "max_tokens")
_UNFIT_STATUS = frozenset({400, 422})  # the request has a field or a value that the server does not take


def advice(config: EndpointConfig, failure: Failure) -> str:
    """The end of a sentence about refused requests: the settings behind the fields of every request.

    The first field that the server's sentence names is left out by the suggested `extra`. Servers know the limit on an
    answer's tokens by one of two names, so the one is replaced by the other.
    """
    if failure.refused_status not in _UNFIT_STATUS:
        return ""
    group, extra = config.SETTING, extra_fields(config)
    fields = {"temperature", *_LIMITS, *extra}
    named = next((word for word in re.findall(r"\w+", failure.problem) if word in fields), None)
    if named is None:
        change = f"{group}.extra (null leaves a field out)"
    else:
        swapped = {other: config.max_new_tokens for other in _LIMITS if named in _LIMITS and other != named}
        change = f"{group}.extra='{json.dumps(extra | swapped | {named: None})}'"
    return f": set {change}, or change {group}.max_new_tokens or {group}.temperature"
