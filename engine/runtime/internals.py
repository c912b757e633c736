"""Access to attributes of other packages that are not their public interface.

A package may move them in any release. Each is written down once, with its purpose and the version in which it was
read; where the installed version has none, the error is one sentence that says so.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class MissingInternal(RuntimeError):
    """The installed version of a package has no such attribute."""


@dataclass(kw_only=True, frozen=True)
class Internal:
    """An attribute of a module, or of a class in it.

    Attributes:
        module: where it is defined; its first part is the package.
        name: dotted inside the module.
        purpose: what it does for ralign.
        read_in: the versions of the package in which it was read.
    """

    module: str
    name: str
    purpose: str
    read_in: str

    def get(self) -> Any:
        """The attribute; of a class, as the class holds it (a staticmethod stays one).

        Raises:
            MissingInternal: the installed version has none.
        """
        try:
            found = vars(self._owner())
            return found[self._last]
        except (ImportError, AttributeError, KeyError) as error:
            raise self._missing() from error

    @contextmanager
    def replaced(self, replacement: Any) -> Iterator[Any]:
        """While open, the attribute is `replacement`; yields the original.

        Raises:
            MissingInternal: the installed version has none.
        """
        original, owner = self.get(), self._owner()
        setattr(owner, self._last, replacement)
        try:
            yield original
        finally:
            setattr(owner, self._last, original)

    @property
    def _last(self) -> str:
        return self.name.rpartition(".")[2]

    def _owner(self) -> Any:
        owner: Any = importlib.import_module(self.module)
        for name in self.name.split(".")[:-1]:
            owner = getattr(owner, name)
        return owner

    def _missing(self) -> MissingInternal:
        return _missing(f"{self.module}.{self.name}", self.module, self.purpose, self.read_in)


@dataclass(kw_only=True, frozen=True)
class InternalPath:
    """Attributes of objects, followed from one object to the next.

    Attributes:
        steps: (module, class, attribute) in order; the class is the one that sets the attribute.
        purpose, read_in: as of `Internal`.
    """

    steps: tuple[tuple[str, str, str], ...]
    purpose: str
    read_in: str

    def get(self, start: Any) -> Any:
        """The last attribute, from `start`.

        Raises:
            MissingInternal: an object on the way has none of that name.
        """
        found = start
        for module, _, attribute in self.steps:
            if not hasattr(found, attribute):
                raise _missing(f"{type(found).__name__}.{attribute}", module, self.purpose, self.read_in)
            found = getattr(found, attribute)
        return found


def _missing(what: str, module: str, purpose: str, read_in: str) -> MissingInternal:
    package = "megatron.core" if module.startswith("megatron.") else module.partition(".")[0]
    version = importlib.import_module(package).__version__
    return MissingInternal(
        f"{package} {version} has no {what} ({purpose}); ralign read it in {package} {read_in}"
    )
