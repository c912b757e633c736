"""Tables of named implementations: what a setting such as algo.reward chooses from.

A table maps a name to an import path, and the implementation is imported when it is first used: settings stay free of
torch. To add an implementation, write it in a file of its own and add one line here. A user's own needs no line: the
setting takes `package.module:NAME` or `path/to/file.py:NAME` instead of a name, and a program may call `register`.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from ralign.engine.runtime.errors import UserError


class Registry:
    """The implementations that one setting chooses from."""

    def __init__(self, setting: str, entries: dict[str, str]):
        """`entries`: name -> "module:attribute"."""
        self.setting = setting
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
        self._loaded[name] = implementation

    def unregister(self, name: str) -> None:
        """Remove a registered implementation."""
        del self._loaded[name]

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
            self._loaded[name] = self._import(path)
        return self._loaded[name]

    def _import(self, path: str) -> Any:
        module_name, _, attribute = path.rpartition(":")
        module = _from_file(module_name) if module_name.endswith(".py") else _from_package(module_name)
        if module is None:
            raise UserError(f"{self.setting}={path}: no module {module_name}")
        if attribute not in vars(module):
            raise UserError(f"{self.setting}={path}: {module_name} has no {attribute}")
        return vars(module)[attribute]


def _from_package(name: str) -> Any:
    parent = name.rpartition(".")[0]
    if parent and _from_package(parent) is None:
        return None
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def _from_file(path: str) -> Any:
    file = Path(path).resolve()
    if not file.is_file():
        return None
    name = f"ralign_user_{file.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, file
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ADVANTAGES = Registry(
    "algo.advantages",
    {
        "grpo": "ralign.kernels.advantages:GRPO",
        "dr_grpo": "ralign.kernels.advantages:DR_GRPO",
        "rloo": "ralign.kernels.advantages:RLOO",
        "gae": "ralign.engine.algorithms.ppo:PPO",
    },
)
OBJECTIVES = Registry(
    "algo.objective",
    {"clip": "ralign.kernels.objectives:CLIP", "cispo": "ralign.kernels.objectives:CISPO"},
)
REWARDS = Registry(
    "algo.reward",
    {
        "label": "ralign.engine.algorithms.rewards:LABEL",
        "r_align": "ralign.engine.algorithms.rewards:R_ALIGN",
    },
)
METARMS = Registry(
    "metarm.kind",
    {
        "none": "ralign.engine.judging.metarms:NONE",
        "rule": "ralign.engine.judging.metarms:RULE",
        "endpoint": "ralign.engine.judging.metarms:ENDPOINT",
        "managed": "ralign.engine.judging.metarms:MANAGED",
    },
)
FAMILIES = Registry(
    "model.family",
    {
        "qwen3": "ralign.engine.policy.families.qwen3:FAMILY",
        "qwen2": "ralign.engine.policy.families.qwen2:FAMILY",
        "llama": "ralign.engine.policy.families.llama:FAMILY",
    },
)
