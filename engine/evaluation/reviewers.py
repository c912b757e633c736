"""MetaRMs for an evaluation, by the names of the command line; each answers with a whole `Review`."""

import re
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from ralign.engine.config.judge import JudgeConfig, check_judge
from ralign.engine.data.pairs import Pair
from ralign.engine.data.verdicts import visible
from ralign.engine.evaluation.models import parse_endpoint
from ralign.engine.judging.endpoint import Endpoint
from ralign.engine.judging.lm_metarm import LanguageMetaRM, Review
from ralign.engine.judging.metarm import Outcome, RuleMetaRM
from ralign.engine.runtime.errors import UserError

NAMES = "rule, keywords, endpoint:URL#MODEL or managed:FOLDER"
_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')
_WORD = re.compile(r"\w+")


class Reviewer(Protocol):
    """A MetaRM that says why."""

    @property
    def stop_reason(self) -> str | None: ...

    def review(self, pair: Pair, judgment: str) -> Future[Review]: ...

    def close(self) -> None: ...


class KeywordMetaRM:
    """The baseline: Correct if the rationale holds, in order, the words that the golden judgment puts in quotes.

    One quoted phrase is enough. It knows nothing of who erred, how, or what is true instead.
    """

    stop_reason = None

    def judge(self, golden: str, judgment: str) -> Outcome:
        """`UserError` if the golden judgment quotes nothing."""
        phrases = [_words(a or b) for a, b in _QUOTED.findall(visible(golden))]
        phrases = [phrase for phrase in phrases if phrase]
        if not phrases:
            raise UserError(
                f"the keyword MetaRM needs a golden judgment that quotes what is wrong, got {golden[:80]!r}"
            )
        said = f" {' '.join(_words(visible(judgment)))} "
        found = any(f" {' '.join(phrase)} " in said for phrase in phrases)
        return Outcome.CORRECT if found else Outcome.INCORRECT


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


class _RuleReviewer:
    """A rule as a `Reviewer`: its outcome, and nothing to read."""

    stop_reason = None

    def __init__(self, rule: RuleMetaRM | KeywordMetaRM) -> None:
        self.rule = rule

    def review(self, pair: Pair, judgment: str) -> Future[Review]:
        future: Future[Review] = Future()
        future.set_result(Review(outcome=self.rule.judge(pair.gt_judgment, judgment)))
        return future

    def close(self) -> None:
        pass


class _ServedJudge(Endpoint):
    """An `Endpoint` of a server that is started for it and ends with it."""

    def __init__(self, config: JudgeConfig, log: Path, spent: tuple[int, int]) -> None:
        from ralign.engine.judging.managed import fingerprint
        from ralign.engine.judging.server import Server

        self.server = Server(config, log)
        super().__init__(
            config,
            base_url=self.server.start(),
            api_key=self.server.api_key,
            model_key=fingerprint(Path(config.model)),
            asker="metarm",
            patience_s=config.server.start_timeout_s,
            spent=spent,
            use_proxy=False,
            lost=lambda: self.server.dead,
        )

    def close(self) -> None:
        super().close()
        self.server.close()


def metarm_config(spec: str, **settings: Any) -> JudgeConfig | None:
    """The settings of a MetaRM that is a language model, checked; None for a rule.

    settings: fields of `JudgeConfig`. Raises UserError for a name that is none, a bad address, no model folder.
    """
    if spec in ("rule", "keywords"):
        return None
    if spec.startswith("endpoint:"):
        url, model = parse_endpoint(spec, "--metarm")
        config = JudgeConfig(metarm="endpoint", base_url=url, model=model, **settings)
    elif spec.startswith("managed:"):
        config = JudgeConfig(metarm="managed", model=spec.removeprefix("managed:"), **settings)
    else:
        raise UserError(f"--metarm {spec}: expected {NAMES}")
    check_judge(config)
    return config


def build_reviewer(
    spec: str, config: JudgeConfig | None, log: Path, spent: tuple[int, int] = (0, 0)
) -> Reviewer:
    """The MetaRM that `spec` names, with the settings of `metarm_config`.

    A managed server logs to `log`; `spent` are the tokens that count against the budget already.
    """
    if config is None:
        return _RuleReviewer(RuleMetaRM() if spec == "rule" else KeywordMetaRM())
    if config.metarm == "managed":
        judge = _ServedJudge(config, log, spent)
    else:
        judge = Endpoint(config, asker="metarm", spent=spent)
    return LanguageMetaRM.of(judge, config)
