"""What callbacks that watch a metric share: when they look, and what they say when it is not there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from leyden.utils.errors import MisconfigurationError, nearest

if TYPE_CHECKING:
    from leyden.core.types import Trainer

MODES = ("min", "max")


def check_monitor(owner: str, monitor: object, mode: object) -> None:
    """Refuse a metric's name that is not one, and a mode that does not exist.

    Raises:
        MisconfigurationError: Naming ``owner``, the callback's class.
    """
    if not isinstance(monitor, str) or not monitor:
        raise MisconfigurationError(
            f"{owner}(monitor={monitor!r}) is not the name of a metric. Give the name that self.log has, such as "
            "'val_loss'."
        )
    if mode not in MODES:
        raise MisconfigurationError(
            f"{owner}(mode={mode!r}) is unknown. Choose 'min' where less of {monitor!r} is better, 'max' where more is."
            f"{nearest(mode, MODES)}"
        )


def in_training(trainer: Trainer) -> bool:
    """True in a real fit: no trial run, no sanity check, no validation asked for by itself."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.fast_dev_run


def validates(trainer: Trainer) -> bool:
    """True when this fit has validation batches, or has not asked for them yet."""
    counts = trainer.num_val_batches
    return trainer.enable_validation and (not counts or any(counts))


def looks_at_train_epoch_end(trainer: Trainer, choice: bool | None) -> bool:
    """Whether to look at the metric when a training epoch ends, rather than when a validation ends.

    Without a ``choice`` it is the epoch's end where no validation runs, or one at the end of every epoch.
    """
    if choice is not None:
        return choice
    return not validates(trainer) or (trainer.validate_once_per_epoch and trainer.check_val_every_n_epoch == 1)


def matches_nothing(asked: str, name: str, logged: Iterable[str]) -> str:
    """A sentence for the metric ``name`` that ``asked`` names in vain, with those that are there and the nearest."""
    names = sorted(logged)
    return f"{asked} matches nothing logged. Logged so far: {', '.join(names) or 'nothing'}.{nearest(name, names)}"
