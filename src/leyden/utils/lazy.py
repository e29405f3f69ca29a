"""Public names of a package, imported when first used (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from leyden.utils.errors import NotBuiltError, nearest


class NotBuiltImportError(NotBuiltError, ImportError):
    """The code imports something that Lightning has and Leyden has not yet.

    An ImportError, so that ``from package import name`` shows its message, as it does not with an AttributeError's.
    """


class LazyModule:
    """A module of ours that few runs need, imported when a name of it is first read.

    Made at the top of the file that uses it, where tests see it as the import it is: ``_export =
    LazyModule("leyden.core.export")``.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        module = sys.modules.get(self._name)
        return getattr(importlib.import_module(self._name) if module is None else module, name)


def lazy_names(
    package: str, names: Mapping[str, str], not_built: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: Its name.
        names: ``{public name: module that defines it}``; a name equal to its module's last part stands for the module.
        not_built: ``{name in Lightning: what to use instead}``, for what is not built yet.
    """

    def __getattr__(name: str) -> Any:
        if not_built is not None and name in not_built:
            raise NotBuiltImportError(f"{package}.{name}", not_built[name])
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}.{nearest(name, names)}")
        module = importlib.import_module(names[name])
        found = module if names[name].rpartition(".")[2] == name else getattr(module, name)
        setattr(sys.modules[package], name, found)
        return found

    return __getattr__, lambda: sorted(names)
