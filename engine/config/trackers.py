"""report.trackers: the experiment trackers that a run writes to, and whether their packages are there."""

import importlib.util

from ralign.engine.config.registry import TRACKERS
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.problems import Problems

AUTO, NONE = "auto", "none"
# Tracker -> its package. The package of TensorBoard is its reader; torch writes the files, but not without it.
_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


def tracker_names(setting: str) -> list[str]:
    """The trackers that report.trackers names, in order; auto is TensorBoard where that is installed.

    Raises:
        UserError: an empty or repeated name, or auto or none beside others.
    """
    if setting == NONE:
        return []
    if setting == AUTO:
        return ["tensorboard"] if _is_installed("tensorboard") else []
    names = [name.strip() for name in setting.split(",")]
    if "" in names or {AUTO, NONE} & set(names) or len(set(names)) < len(names):
        raise UserError(
            f"report.trackers={setting}: expected auto, none, or a list such as tensorboard,wandb without repetition"
        )
    return names


def check_trackers(setting: str) -> None:
    """Raises UserError for a tracker that does not exist or whose package is not installed; imports no package."""
    problems = Problems()
    for name in tracker_names(setting):
        with problems.collect():
            TRACKERS.check(name)
        package = _PACKAGES.get(name)
        problems.require(
            package is None or _is_installed(package),
            f"report.trackers={name}: {package} is not installed (pip install {package})",
        )
    problems.check()


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
