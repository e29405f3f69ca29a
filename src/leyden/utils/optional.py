"""Packages that may be missing: is one here, import it, or say how to install it."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


def installed(package: str) -> bool:
    """True when ``package`` can be found; nothing is imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def require(package: str, wanted_by: str, *, pip: str | None = None) -> ModuleType:
    """Import ``package`` for ``wanted_by``.

    Raises:
        ModuleNotFoundError: It is missing or broken; the message is the pip command.
    """
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError) as error:  # torchvision without its operators raises RuntimeError
        raise ModuleNotFoundError(f"{wanted_by} needs {package}: pip install {pip or package}") from error
