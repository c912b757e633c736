"""The report of a recipe that trains judges."""

from collections.abc import Mapping, Sequence
from typing import Any

from ralign.engine.config.registry import REWARDS
from ralign.engine.data.examples import Example
from ralign.engine.evaluation.baselines import baselines_of
from ralign.engine.evaluation.notes import metarm_notes
from ralign.engine.report.report import write_report
from ralign.engine.training.genrm import GenRM


def write_judges_report(
    genrm: GenRM,
    models: Mapping[str, Mapping[str, Mapping[str, Any]]],
    tests: Mapping[str, Sequence[Example]],
    *,
    rewards: Sequence[str],
) -> None:
    """`write_report` with the baselines on the tests and the notes on the MetaRM; it does nothing on other ranks.

    Args:
        models: model -> test -> result of `GenRM.evaluate`.
        tests: the examples of each test, as `GenRM.evaluate` took them.
        rewards: of the training, by their names.
    """
    run, session = genrm.run, genrm.session
    if not session.cluster.is_first_rank:
        return
    judged = {
        test: [example.pair for example in examples[: run.eval.num_pairs]] for test, examples in tests.items()
    }
    pays = any(REWARDS.load(name).needs_metarm for name in rewards)
    write_report(
        run.folder,
        models,
        seed=run.seed,
        time_s=session.progress.time_s,
        baselines=baselines_of(judged),
        notes=metarm_notes(run.metarm, run.eval.metarm, pays=pays),
    )
