"""Notes that a report prints under its tables, where the figures say less than they seem to."""

from ralign.engine.config.judge import EvalMetaRMConfig, MetaRMConfig, public_url

SAME = "same"  # eval.metarm.kind: the MetaRM of the training


def metarm_notes(paid: MetaRMConfig, reports: EvalMetaRMConfig, *, pays: bool) -> list[str]:
    """A note if the MetaRM that paid in training also reports: the same kind, model and address.

    pays: whether any reward of the training asks the MetaRM.
    """
    if not pays or "none" in (paid.kind, reports.kind):
        return []
    if reports.kind != SAME and _identity(reports) != _identity(paid):
        return []
    where = "eval.metarm is not set" if reports.kind == SAME else "eval.metarm is the same"
    note = (
        f"The MetaRM that paid in training ({_name(paid)}) also reports S-Corr and F-Score here ({where}): a policy"
        " that learned to exploit it looks better than it is, and these two cannot show that. L-Acc does not depend"
        " on it."
    )
    # In JudgeWorld nothing is nearer to the truth than the rule.
    return [
        note if paid.kind == "rule" else f"{note} Give eval.metarm.kind and eval.metarm.model another judge."
    ]


def _identity(config: MetaRMConfig) -> tuple[str, str | None, str | None]:
    """A model in a folder or behind an address; a trailing slash makes no other address."""
    return config.kind, config.model, config.base_url and config.base_url.rstrip("/")


def _name(config: MetaRMConfig) -> str:
    parts = [config.kind, config.model, config.base_url and public_url(config.base_url)]
    return " ".join(part for part in parts if part)
