"""What ModelCheckpoint's arguments may be, and where its files lie."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING

from leyden.utils.errors import MisconfigurationError, warn
from leyden.utils.paths import is_remote, join

if TYPE_CHECKING:
    from leyden.core.types import Trainer

# {name} or {name:format}
PLACEHOLDER = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")


def check_top_k(save_top_k: object, monitor: str | None) -> None:
    """Refuse a ``save_top_k`` that is no count, or that ranks by nothing."""
    if isinstance(save_top_k, bool) or not isinstance(save_top_k, int) or save_top_k < -1:
        raise MisconfigurationError(
            f"ModelCheckpoint(save_top_k={save_top_k!r}): give how many checkpoints to keep, -1 for all or 0 for none."
        )
    if monitor is None and save_top_k > 1:
        raise MisconfigurationError(
            f"ModelCheckpoint(save_top_k={save_top_k}) needs a metric to rank checkpoints by. Give one, such as "
            "monitor='val_loss', or keep the latest (save_top_k=1) or all (save_top_k=-1)."
        )


def check_filename(filename: object) -> None:
    """Refuse a ``filename`` that cannot be filled in."""
    if filename is None:
        return
    if not isinstance(filename, str):
        raise MisconfigurationError(f"ModelCheckpoint(filename={filename!r}) is not a string.")
    for name, form in PLACEHOLDER.findall(filename):
        try:
            format(1 if name in ("epoch", "step") else 1.0, form)
        except ValueError as error:
            raise MisconfigurationError(
                f"ModelCheckpoint(filename={filename!r}): {form!r} cannot format {name!r}: {error}. "
                f"Write for example {{{name}:.2f}}."
            ) from error


def check_triggers(
    steps: int | None, epochs: int | None, interval: timedelta | None, at_train_epoch_end: bool | None
) -> None:
    """Refuse two triggers at once, and what is no count."""
    counts = {"every_n_train_steps": steps, "every_n_epochs": epochs}
    for name, count in counts.items():
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
            raise MisconfigurationError(
                f"ModelCheckpoint({name}={count!r}) is not a count. Give 1 or more; 0 is never."
            )
    given = [f"{name}={count}" for name, count in counts.items() if count]
    given += [] if interval is None else [f"train_time_interval={interval}"]
    if len(given) > 1:
        raise MisconfigurationError(
            f"ModelCheckpoint({', '.join(given)}): only one of these can trigger it. For more, give the Trainer "
            "several ModelCheckpoints."
        )
    if at_train_epoch_end and (steps or interval is not None):
        warn(
            "LD136",
            f"ModelCheckpoint(save_on_train_epoch_end=True) is ignored, because {given[0]} triggers it.",
        )


def absolute(path: str) -> str:
    """``path`` as one that means the same after the process has changed its working folder."""
    if is_remote(path):
        return path.rstrip("/")
    return os.path.abspath(os.path.expanduser(path.removeprefix("file://")))


def same_file(one: str, other: str) -> bool:
    """True for two paths of one file, by way of a symbolic link too."""
    if not other or is_remote(one) or is_remote(other):
        return one == other
    return os.path.realpath(one) == os.path.realpath(other)


def default_folder(trainer: Trainer) -> str:
    """``checkpoints`` in the folder of the first logger, or else in the Trainer's."""
    logger = trainer.logger
    folder = None if logger is None else logger.log_dir
    if folder is None and logger is not None and logger.save_dir is not None:
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = join(logger.save_dir, str(logger.name), version)
    return join(absolute(str(folder or trainer.default_root_dir)), "checkpoints")
