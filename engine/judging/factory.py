"""The MetaRM that the settings ask for."""

from pathlib import Path

from ralign.engine.cluster import Cluster
from ralign.engine.judging.config import JudgeConfig
from ralign.engine.judging.metarm import MetaRM, RuleMetaRM


def open_metarm(config: JudgeConfig, cluster: Cluster, folder: Path, num_askers: int = 1) -> MetaRM | None:
    """Opens the MetaRM for this job, or None for none; collective. A managed one writes its log to `folder`.

    `num_askers` processes of the job ask, and share the budget evenly.
    """
    if config.metarm == "none":
        return None
    if config.metarm == "rule":
        return RuleMetaRM()
    if config.metarm == "managed":
        from ralign.engine.judging.managed import ManagedMetaRM

        return ManagedMetaRM(config, cluster, folder, num_askers)
    from ralign.engine.judging.endpoint import Endpoint
    from ralign.engine.judging.lm_metarm import LanguageMetaRM, load_metarm_template

    return LanguageMetaRM(
        Endpoint(config, asker=f"{folder} rank{cluster.rank}", num_askers=num_askers),
        load_metarm_template(config.template, graded=config.graded),
        graded=config.graded,
        threshold=config.graded_threshold,
        num_tries=config.num_tries,
    )
