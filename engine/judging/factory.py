"""The MetaRM that the settings ask for."""

from pathlib import Path

from ralign.engine.config.judge import JudgeConfig
from ralign.engine.judging.metarm import MetaRM, RuleMetaRM
from ralign.engine.runtime.cluster import Cluster


def open_metarm(config: JudgeConfig, cluster: Cluster, folder: Path, num_askers: int = 1) -> MetaRM | None:
    """Opens the MetaRM for this job, or None for none; collective. A managed one writes its log to `folder`.

    `num_askers` processes of the job ask, and share the budget evenly.
    """
    if config.metarm == "none":
        return None
    if config.metarm == "rule":
        return RuleMetaRM()
    from ralign.engine.judging.lm_metarm import LanguageMetaRM

    if config.metarm == "managed":
        from ralign.engine.judging.managed import ManagedJudge

        return LanguageMetaRM.of(ManagedJudge(config, cluster, folder, num_askers), config)
    from ralign.engine.judging.endpoint import Endpoint

    judge = Endpoint(config, asker=f"{folder} rank{cluster.rank}", num_askers=num_askers)
    return LanguageMetaRM.of(judge, config)
