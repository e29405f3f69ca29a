"""RunState, Position and Stage: all that changes while a run goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class _Name(str, Enum):
    """An enum whose members are, and print as, their plain names."""

    def __str__(self) -> str:
        return str(self.value)


class Fn(_Name):
    """The Trainer method that is running."""

    FIT = "fit"
    VALIDATE = "validate"
    TEST = "test"
    PREDICT = "predict"


class Stage(_Name):
    """The loop that is running."""

    TRAIN = "train"
    SANITY_CHECK = "sanity_check"
    VALIDATE = "validate"
    TEST = "test"
    PREDICT = "predict"


# What of the last batch is still to be done, in Position.tail; 0 is nothing.
LOGGING = 1  # all that follows on_train_batch_end
VALIDATION = 2  # the validation that is due, and what follows it
VALIDATED = 3  # what follows validation


class Status(_Name):
    """How far the run has come."""

    INITIALIZING = "initializing"
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"


@dataclass(slots=True)
class Position:
    """Where training stands. Written by the loop, never inferred; resume means starting here.

    Attributes:
        epoch: Index of the epoch in progress, which is also the number of completed epochs.
        batch: Batches of this epoch that are done; the next one has this index.
        batches_before: Batches done in the epochs before.
        global_step: Optimizer steps taken. In automatic optimization one for each batch that stepped; in manual
            optimization one for each ``optimizer.step()``.
        stepped_batches: Batches after which the optimizer stepped: the x-axis of the loggers.
        tail: What of the last batch is still to be done: LOGGING, VALIDATION, VALIDATED, or 0 for nothing.
    """

    epoch: int = 0
    batch: int = 0
    batches_before: int = 0
    global_step: int = 0
    stepped_batches: int = 0
    tail: int = 0

    @property
    def batch_total(self) -> int:
        """Batches done in all epochs."""
        return self.batches_before + self.batch

    def end_epoch(self) -> None:
        """Count an epoch of which all batches are done."""
        self.epoch, self.batch, self.batches_before = self.epoch + 1, 0, self.batch_total

    def state_dict(self) -> dict[str, int]:
        """The numbers, by name; ``batch_total`` in place of ``batches_before``."""
        return {name: getattr(self, name) for name in _IN_CHECKPOINTS}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take over the numbers of ``state``; those it does not name stay."""
        numbers = self.state_dict() | state
        self.batches_before = numbers.pop("batch_total") - numbers["batch"]
        for name, number in numbers.items():
            setattr(self, name, number)


_IN_CHECKPOINTS = ("epoch", "batch", "batch_total", "global_step", "stepped_batches", "tail")


@dataclass(slots=True)
class SaveRequest:
    """A checkpoint that a callback asked for; the loop writes it at the next safe point.

    Attributes:
        path: Where to.
        weights_only: Leave out everything that only resuming needs.
        epoch: The epoch during which it was asked for.
        written: Called with ``path`` once the file is safe on disk.
        failed: Called with ``path`` and the error when the file could not be written, for want of space or the like;
            without it, that error ends the run.
        in_background: Training goes on while the file is written.
        safe: The file is safe on disk.
    """

    path: str
    weights_only: bool
    epoch: int
    written: Callable[[str], None] | None = None
    failed: Callable[[str, Exception], None] | None = None
    in_background: bool = False
    safe: bool = False


@dataclass(slots=True)
class RunState:
    """All that changes while a run goes on. The loops write it; others read, or ask through the Trainer.

    Attributes:
        fn: The Trainer method that is running or ran last; None before the first.
        stage: The loop that is running; None outside the loops.
        status: How far the run has come.
        position: Where training stands.
        should_stop: Somebody asked for the end of training; granted once min_epochs and min_steps are reached.
        stop_reason: Why training ended, for people to read.
        epoch_rng: The random number generators when the current epoch's order of data was drawn.
        save_requests: Checkpoints asked for and not yet written.
        outstanding: Those that are being written in the background.
        background_io: Writes them, where the strategy's own CheckpointIO writes at once.
        signal: The signal that asks this process to stop, once there was one; else 0.
    """

    fn: Fn | None = None
    stage: Stage | None = None
    status: Status = Status.INITIALIZING
    position: Position = field(default_factory=Position)
    should_stop: bool = False
    stop_reason: str = ""
    epoch_rng: dict[str, Any] | None = None
    save_requests: list[SaveRequest] = field(default_factory=list)
    outstanding: list[SaveRequest] = field(default_factory=list)
    background_io: Any = None
    signal: int = 0

    @property
    def finished(self) -> bool:
        """True when the last run came to its end."""
        return self.status is Status.FINISHED
