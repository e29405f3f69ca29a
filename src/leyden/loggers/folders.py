"""What loggers that write files share: the folder of a run, its hparams.yaml, and checked values."""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from leyden.utils.hparams import plain_hyperparameters, to_yaml
from leyden.utils.paths import AnyPath, is_remote, join, list_dir, make_dirs

DEFAULT_NAME = "lightning_logs"  # Lightning's, so that what reads the folders of a ported project still finds them
HPARAMS_FILE = "hparams.yaml"

_VERSION_FOLDER = re.compile(r"version_(\d+)")
_FILE_URL = "file://"


class RunFolder:
    """The folder ``save_dir/name/version_N`` of one run, local or remote. Nothing here makes it.

    Attributes:
        save_dir: Folder of all experiments, with ``~`` and environment variables replaced.
        name: Name of the experiment; empty when there is no folder of that name.
    """

    def __init__(self, save_dir: AnyPath, name: str | None, version: int | str | None) -> None:
        """Check where a logger is asked to write.

        Raises:
            TypeError: An argument is of another type.
            ValueError: ``version`` is negative.
        """
        if not isinstance(save_dir, str | os.PathLike):
            raise TypeError(f"save_dir={save_dir!r} is not a path. Give a folder, such as save_dir='logs'.")
        if not isinstance(name, str | None):
            raise TypeError(f"name={name!r} is not text. Give the experiment's name, or None for no folder of its own.")
        if isinstance(version, bool) or not isinstance(version, int | str | None):
            raise TypeError(f"version={version!r} is neither a number nor text. Give None for the next free number.")
        if isinstance(version, int) and version < 0:
            raise ValueError(f"version={version} is negative. Give None for the next free number.")
        path = os.fspath(save_dir).removeprefix(_FILE_URL)
        self.save_dir = path if is_remote(path) else os.path.expanduser(os.path.expandvars(path))
        self.name = name or ""
        self._version = version

    @property
    def root(self) -> str:
        """Folder of all versions of the experiment."""
        return join(self.save_dir, self.name) if self.name else self.save_dir

    @property
    def version(self) -> int | str:
        """The version given, or else the number above those that were there when this was first asked."""
        if self._version is None:
            self._version = _next_version(self.root)
        return self._version

    @property
    def path(self) -> str:
        """Folder of the run."""
        folder = self.version if isinstance(self.version, str) else f"version_{self.version}"
        return join(self.root, folder) if folder else self.root


def pinned(folder: str) -> str:
    """``folder`` as a path that means the same after the process has changed its working folder."""
    return folder if is_remote(folder) else os.path.abspath(folder)


def _next_version(root: str) -> int:
    try:
        names = list_dir(root)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return max((int(found[1]) + 1 for name in names if (found := _VERSION_FOLDER.fullmatch(name))), default=0)


def write_hparams(folder: str, params: Mapping[str, Any]) -> None:
    """Write ``params`` to hparams.yaml in ``folder``, in place of what was there; ``yaml.safe_load`` reads it."""
    make_dirs(folder)
    to_yaml(_plain(params), join(folder, HPARAMS_FILE))


def params_dict(params: Mapping[str, Any] | Namespace) -> dict[str, Any]:
    """Hyper-parameters as a dict.

    Raises:
        TypeError: ``params`` is neither a mapping nor a Namespace.
    """
    if isinstance(params, Namespace):
        return dict(vars(params))
    if isinstance(params, Mapping):
        return dict(params)
    raise TypeError(f"log_hyperparams takes a dict or a Namespace, not {params!r} ({type(params).__name__}).")


def _plain(value: Any) -> Any:
    """``value`` in plain types, with text where it has no plain form, such as a module: a log leaves nothing out."""
    kept, left_out = plain_hyperparameters({"value": value})
    if not left_out:
        return kept["value"]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"  # the text of a function would be an address
    return str(value)


def flat(params: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """``{"net": {"width": 3}}`` as ``{"net/width": 3}``, with text for what is no number."""
    found: dict[str, bool | int | float | str] = {}
    for key, value in _plain(params).items():
        if isinstance(value, dict) and value:
            found.update({f"{key}/{inner}": item for inner, item in flat(value).items()})
        elif isinstance(value, Tensor) and value.numel() == 1:
            found[str(key)] = value.item()
        else:
            found[str(key)] = value if isinstance(value, bool | int | float | str) else str(value)
    return found


def with_prefix(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """``metrics`` under the names ``prefix-name``; as they are without a prefix."""
    return {f"{prefix}-{name}": value for name, value in metrics.items()} if prefix else dict(metrics)


def number(name: str, value: Any) -> float:
    """``value`` of metric ``name`` as a float; waits for the device if it is a tensor.

    Raises:
        TypeError: It is not one number.
    """
    if not isinstance(value, str | bytes):
        try:
            return float(value.item() if hasattr(value, "item") else value)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise TypeError(f"A logger takes one number for each metric, but {name!r} is {value!r} ({type(value).__name__}).")
