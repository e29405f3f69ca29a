"""What ``train.py:Net`` or ``package.module:Net`` on the command line means."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any

from leyden.utils.errors import MisconfigurationError, nearest


def find_target(spec: str, argument: str) -> Any:
    """The object that ``train.py:name`` or ``package.module:name`` means.

    Args:
        spec: A file or module, and a name in it.
        argument: What the command calls it, for messages.

    Raises:
        MisconfigurationError: There is no such file, module or name.
    """
    source, _, name = spec.rpartition(":")
    if not source or not name:
        raise MisconfigurationError(f"{argument} {spec} is not of the form train.py:Net or package.module:Net.")
    is_file = source.endswith(".py")
    sys.path.insert(0, os.path.dirname(os.path.abspath(source)) if is_file else os.getcwd())
    try:
        found: Any = _module_of_file(source) if is_file else importlib.import_module(source)
    except (ImportError, FileNotFoundError) as error:
        raise MisconfigurationError(f"{argument} {spec}: {error}.") from error
    for part in name.split("."):
        if not hasattr(found, part):
            there = [one for one in dir(found) if not one.startswith("_")]
            raise MisconfigurationError(f"{argument} {spec}: there is no {part} in {source}.{nearest(part, there)}")
        found = getattr(found, part)
    return found


def _module_of_file(path: str) -> Any:
    """The script at ``path`` as a module, not as ``__main__``: what is under ``if __name__`` does not run."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file {path}")
    name = os.path.splitext(os.path.basename(path))[0]
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) == os.path.abspath(path):
        return sys.modules[name]  # --data names the same file
    spec = importlib.util.spec_from_file_location(name, os.path.abspath(path))
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
