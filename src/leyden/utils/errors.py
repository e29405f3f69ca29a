"""Exceptions, warnings with an id, and hints at the nearest right spelling."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from leyden.utils.rank import is_rank_zero


class MisconfigurationError(ValueError):
    """The code asks for something that cannot work; raised before training wherever it can be known."""


# The name that code written for Lightning catches.
MisconfigurationException = MisconfigurationError


class NotBuiltError(MisconfigurationError):
    """The code asks for something that Lightning has and Leyden has not yet."""

    def __init__(self, what: str, instead: str) -> None:
        super().__init__(f"{what} is not built yet in Leyden. {instead}")


class MissingMetricError(MisconfigurationError, RuntimeError):
    """A callback or a scheduler monitors what nobody logs; a RuntimeError too, as the code for Lightning catches."""


class SIGTERMException(SystemExit):
    """The process was asked to end, by SIGTERM. Unless caught it does, with the status that shells give for that."""

    def __init__(self, code: int = 143) -> None:
        super().__init__(code)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, read or applied; the message names its path."""


class NonFiniteLossError(RuntimeError):
    """The loss of a batch is NaN or infinite; the message says of which batch, and where in the module it arose."""


class LeydenWarning(UserWarning):
    """Something works, but probably not as meant. The message ends in the warning's id, such as ``[LD003]``."""


# What ``Trainer(warnings={id: action})`` may say: once a run, every time, never, or as an exception.
WARNING_ACTIONS = ("once", "always", "ignore", "error")

_already_said: set[tuple[str, str]] = set()
_actions: dict[str, str] = {}
_PACKAGE = str(Path(__file__).parents[1])


def warn(identity: str, message: str, *, subject: str = "") -> None:
    """Warn once a run, unless ``Trainer(warnings=...)`` says otherwise.

    Args:
        identity: The warning's id, ``"LD"`` and three digits; docs/warnings.md lists them all.
        message: What is the matter and what to do about it.
        subject: What the warning is about, such as a metric's name, where each subject deserves its own warning.

    Raises:
        LeydenWarning: The action for this id is ``"error"``; on every process.
    """
    action, text = _actions.get(identity, "once"), f"{message} [{identity}]"
    if action == "ignore" or (action == "once" and (identity, subject) in _already_said):
        return
    if action == "error":
        raise LeydenWarning(text)
    _already_said.add((identity, subject))
    if not is_rank_zero():
        return
    if action == "once":
        warnings.warn(text, LeydenWarning, stacklevel=_frames_of_ours())
    else:  # with no registry Python does not remember what it has shown
        frame = sys._getframe(_frames_of_ours() - 1)
        warnings.warn_explicit(
            text, LeydenWarning, frame.f_code.co_filename, frame.f_lineno, frame.f_globals.get("__name__")
        )


def _frames_of_ours() -> int:
    """The stack level of the user's line: how far up the call came from outside the package, seen from ``warn``."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level


def forget_warnings(actions: Mapping[str, str] | None = None) -> None:
    """Let every warning be given again: a new run begins.

    Args:
        actions: One of ``WARNING_ACTIONS`` by id, in force until this is called again; the others are ``"once"``.
    """
    _already_said.clear()
    _actions.clear()
    _actions.update(actions or {})


def nearest(given: object, allowed: Iterable[str]) -> str:
    """A hint such as `` Did you mean 'val_loss'?``, or ``""`` when nothing is close.

    >>> nearest("val_los", ["train_loss", "val_loss"])
    " Did you mean 'val_loss'?"
    """
    lower = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(str(given).lower(), lower, n=1, cutoff=0.6)
    return f" Did you mean {lower[close[0]]!r}?" if close else ""
