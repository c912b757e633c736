"""The kinds of MetaRM that the setting metarm.kind (and `ralign-eval --metarm`) chooses from.

A kind of your own needs no change here: make a `MetaRMKind` in a file of yours, and set
metarm.kind=path/to/file.py:NAME. Nothing here imports torch before a managed judge is opened.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ralign.engine.config.judge import MetaRMConfig, check_endpoint, check_judge, check_server
from ralign.engine.data.metarm_prompts import load_metarm_template
from ralign.engine.judging.endpoint import Endpoint
from ralign.engine.judging.judge import ClientContext
from ralign.engine.judging.lm_metarm import LanguageMetaRM
from ralign.engine.judging.metarm import KeywordMetaRM, MetaRM, RuleMetaRM
from ralign.engine.runtime.errors import UserError


def _nothing_to_check(config: MetaRMConfig) -> None:
    """Without settings of its own a kind accepts every config."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetaRMKind:
    """One way to get a MetaRM.

    Attributes:
        open: makes the MetaRM, or None where there is none. Collective over `context.cluster`, if there is one.
        check_settings: raises UserError for settings that this kind cannot work with.
        location: where reviews are computed: in this process, behind an endpoint that is running, or on a vLLM server
            that the job starts.
    """

    open: Callable[[MetaRMConfig, ClientContext], MetaRM | None]
    check_settings: Callable[[MetaRMConfig], None] = _nothing_to_check
    location: Literal["process", "endpoint", "server"] = "process"

    def check(self, config: MetaRMConfig) -> None:
        """Raises UserError for settings that cannot work; reads templates and model folders too."""
        check_judge(config)
        if not 0 <= config.graded_threshold <= 1:
            raise UserError(
                f"{config.SETTING}.graded_threshold must be from 0 to 1, got {config.graded_threshold}"
            )
        self.check_settings(config)


def as_kind(implementation: Any, setting: str) -> MetaRMKind:
    """`implementation`, if it is a kind; `setting` names it in the UserError."""
    if not isinstance(implementation, MetaRMKind):
        raise UserError(f"{setting}: expected a MetaRMKind, got {type(implementation).__name__}")
    return implementation


def _check_endpoint(config: MetaRMConfig) -> None:
    load_metarm_template(config.template, graded=config.graded)
    check_endpoint(config)


def _check_managed(config: MetaRMConfig) -> None:
    load_metarm_template(config.template, graded=config.graded)
    check_endpoint(config, needs_url=False)
    check_server(config)


def _open_endpoint(config: MetaRMConfig, context: ClientContext) -> MetaRM:
    return LanguageMetaRM.of(Endpoint(config, context), config)


def _open_managed(config: MetaRMConfig, context: ClientContext) -> MetaRM:
    from ralign.engine.judging.managed import ManagedJudge  # it imports torch

    return LanguageMetaRM.of(ManagedJudge(config, context), config)


NONE = MetaRMKind(open=lambda config, context: None)
RULE = MetaRMKind(open=lambda config, context: RuleMetaRM())
KEYWORDS = MetaRMKind(open=lambda config, context: KeywordMetaRM())
ENDPOINT = MetaRMKind(open=_open_endpoint, check_settings=_check_endpoint, location="endpoint")
MANAGED = MetaRMKind(open=_open_managed, check_settings=_check_managed, location="server")
