"""Tables of named implementations: what a setting such as algo.reward chooses from.

A table maps a name to an import path, and the implementation is imported when it is first used: settings stay free of
torch. To add an implementation, write it in a file of its own and add one line here. A user's own needs no line: the
setting takes `package.module:NAME` or `path/to/file.py:NAME` instead of a name, and a program may call `register`.
"""

import copy
import importlib
import importlib.util
import sys
import zlib
from pathlib import Path
from typing import Any

from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.user_code import named_by_line, run_module


class Registry:
    """The implementations that one setting chooses from."""

    def __init__(self, setting: str, entries: dict[str, str], adapt: str | None = None):
        """A table for one setting.

        Args:
            setting: its name, for messages.
            entries: name -> "module:attribute".
            adapt: "module:function" that is called with every implementation and "setting=name", and returns the
                implementation to use, or raises UserError.
        """
        self.setting = setting
        self._adapter = adapt
        self._paths = dict(entries)
        self._loaded: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        return list(self._paths | self._loaded)

    def register(self, name: str, implementation: Any) -> None:
        """Make `implementation` available under a new name.

        Raises:
            ValueError: the name is taken.
        """
        if name in self.names:
            raise ValueError(f"{self.setting}={name} exists already")
        self._loaded[name] = self._adapted(implementation, name)

    def unregister(self, name: str) -> None:
        """Remove a registered implementation."""
        del self._loaded[name]

    def under(self, setting: str) -> "Registry":
        """The same table for another setting that chooses from it, which messages then name."""
        other = copy.copy(self)
        other.setting = setting
        return other

    def check(self, name: str) -> None:
        """Raises UserError unless `load` would succeed; the built-in implementations are not imported."""
        if name not in self._paths:
            self.load(name)

    def load(self, name: str) -> Any:
        """The implementation of a name or an import path.

        Raises:
            UserError: neither a known name nor an import path that leads to an object.
        """
        if name not in self._loaded:
            path = self._paths.get(name, name)
            if ":" not in path:
                raise UserError(
                    f"{self.setting}={name}: expected one of {', '.join(self.names)}, or FILE.py:NAME"
                )
            self._loaded[name] = self._adapted(self._import(path), name)
        return self._loaded[name]

    def _adapted(self, implementation: Any, name: str) -> Any:
        if self._adapter is None:
            return implementation
        return self._import(self._adapter)(implementation, f"{self.setting}={name}")

    def _import(self, path: str) -> Any:
        module_name, _, attribute = path.rpartition(":")
        module = _from_file(module_name) if module_name.endswith(".py") else _from_package(module_name)
        if module is None:
            raise UserError(f"{self.setting}={path}: no module {module_name}")
        if attribute not in vars(module):
            raise UserError(f"{self.setting}={path}: {module_name} has no {attribute}")
        return vars(module)[attribute]


def as_callable(implementation: Any, setting: str) -> Any:
    """`implementation`, if it can be called; `setting` names it in the UserError."""
    if not callable(implementation):
        raise UserError(f"{setting}: expected a function, got {type(implementation).__name__}")
    return implementation


def _from_package(name: str) -> Any:
    """The module of that name; None where there is none."""
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    if parent := name.rpartition(".")[0]:
        package = _from_package(parent)
        if package is None or "__path__" not in vars(package):  # a module without submodules
            return None
    if name in sys.modules:  # the program itself, __main__, has no spec
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    with named_by_line(spec.origin or name):
        return importlib.import_module(name)


def _from_file(path: str) -> Any:
    """The module in that file; None where there is no file."""
    file = Path(path).resolve()
    if not file.is_file():
        return None
    name = f"ralign_user_{file.stem}_{zlib.crc32(bytes(file)):08x}"  # folders may have files of the same name
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, file
    return run_module(spec)


ADVANTAGES = Registry(
    "algo.advantages",
    {
        "grpo": "ralign.kernels.advantages:GRPO",
        "dr_grpo": "ralign.kernels.advantages:DR_GRPO",
        "rloo": "ralign.kernels.advantages:RLOO",
        "reinforce_pp": "ralign.kernels.batch_advantages:REINFORCE_PP",
        "reinforce_pp_baseline": "ralign.kernels.batch_advantages:REINFORCE_PP_BASELINE",
        "gdpo": "ralign.kernels.batch_advantages:GDPO",
        "gae": "ralign.engine.algorithms.ppo:PPO",
    },
    adapt="ralign.engine.config.registry:as_callable",
)
OBJECTIVES = Registry(
    "algo.objective",
    {"clip": "ralign.kernels.objectives:CLIP", "cispo": "ralign.kernels.objectives:CISPO"},
    adapt="ralign.engine.config.registry:as_callable",
)
REWARDS = Registry(
    "algo.reward",
    {
        "label": "ralign.engine.algorithms.rewards:LABEL",
        "r_align": "ralign.engine.algorithms.rewards:R_ALIGN",
        "label_rationale": "ralign.engine.algorithms.rewards:LABEL_RATIONALE",
    },
    adapt="ralign.engine.algorithms.rewards:as_reward",
)
METARMS = Registry(
    "metarm.kind",
    {
        "none": "ralign.engine.judging.metarms:NONE",
        "rule": "ralign.engine.judging.metarms:RULE",
        "endpoint": "ralign.engine.judging.metarms:ENDPOINT",
        "managed": "ralign.engine.judging.metarms:MANAGED",
        "keywords": "ralign.engine.judging.metarms:KEYWORDS",
    },
    adapt="ralign.engine.judging.metarms:as_kind",
)
TWINS = Registry(
    "algo.partner",
    {
        "order": "ralign.engine.data.twins:ORDER",
        "cues": "ralign.engine.data.cues:CUES",
        "markdown": "ralign.engine.data.surface_twins:MARKDOWN",
        "padding": "ralign.engine.data.surface_twins:PADDING",
        "reorder": "ralign.engine.data.surface_twins:REORDER",
    },
    adapt="ralign.engine.data.twins:as_kind",
)
TRACKERS = Registry(
    "report.trackers",
    {
        "tensorboard": "ralign.engine.report.trackers:TensorBoard",
        "wandb": "ralign.engine.report.trackers:WeightsAndBiases",
        "mlflow": "ralign.engine.report.trackers:MLflow",
        "trackio": "ralign.engine.report.trackers:Trackio",
    },
    adapt="ralign.engine.config.registry:as_callable",
)


class _Families(Registry):
    """A family that an import path gives is known by its model_type, too, as config.json files name it."""

    def load(self, name: str) -> Any:
        family = super().load(name)
        self._loaded.setdefault(family.model_type, family)
        return family


FAMILIES = _Families(
    "model.family",
    {
        "qwen3": "ralign.engine.policy.families.qwen3:FAMILY",
        "qwen2": "ralign.engine.policy.families.qwen2:FAMILY",
        "llama": "ralign.engine.policy.families.llama:FAMILY",
        "mistral": "ralign.engine.policy.families.mistral:FAMILY",
        "olmo2": "ralign.engine.policy.families.olmo2:FAMILY",
    },
    adapt="ralign.engine.policy.families.family:as_family",
)
