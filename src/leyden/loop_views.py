"""Views of the loops: what code written for Lightning reads from ``trainer.fit_loop`` and its like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from leyden.core.state import Stage
from leyden.utils.errors import nearest


@dataclass(frozen=True, slots=True)
class Counts:
    """How many batches, or epochs, have come how far.

    Attributes:
        ready: Begun, the hook at their start included.
        started: Behind that hook.
        processed: Done, but for the hook at their end.
        completed: Done.
    """

    ready: int
    started: int
    processed: int
    completed: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Counts of batches or epochs.

    Attributes:
        current: Since the epoch began; of epochs, the same as ``total``.
        total: Since training began, over all fits of one Trainer and the runs that it goes on from.
        is_last_batch: The batch in work is the epoch's last.
    """

    current: Counts
    total: Counts
    is_last_batch: bool = False


class LoopView:
    """What can be read of a loop. The loops themselves are functions, and what changes is in ``trainer.state``.

    Attributes:
        trainer: The Trainer whose loop it is.
    """

    # Names that can be set, as they can on the Trainer.
    settable: tuple[str, ...] = ()

    def __init__(self, trainer: Any) -> None:
        object.__setattr__(self, "trainer", trainer)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in self.settable:
            raise AttributeError(
                f"trainer.{self._place}.{name} cannot be set: it only shows what the Trainer does. "
                + (f"These can be set: {', '.join(self.settable)}." if self.settable else "Give it to Trainer(...).")
            )
        setattr(self.trainer, name, value)

    def __getattr__(self, name: str) -> Any:
        if name in ("max_epochs", "max_steps", "min_epochs", "min_steps") and self._trains:
            return getattr(self.trainer, name)
        raise AttributeError(
            f"trainer.{self._place} has no {name!r}: in Leyden it shows where training stands, and nothing else."
            f"{nearest(name, [each for each in dir(type(self)) if not each.startswith('_')])}"
        )

    _place = "fit_loop"
    _trains = False


class TrainingView(LoopView):
    """Where training stands, in batches."""

    _trains = True
    settable = ("max_epochs", "max_steps", "min_epochs", "min_steps")

    @property
    def _handed_out(self) -> int:
        """Batches of the epoch in work, or else of the one before, that the loader has given in this run."""
        run = self.trainer._training_run
        train = getattr(run, "train", None)
        return int(vars(train).get("done", -1)) + 1 if train is not None else 0

    @property
    def _in_batch(self) -> bool:
        """A batch has begun, and its hook at the end not yet."""
        trainer = self.trainer
        run, position = trainer._training_run, trainer.state.position
        return (
            trainer.state.stage is Stage.TRAIN
            and run is not None
            and run.results.batch is not None
            and self._handed_out == position.batch + 1
        )

    @property
    def _hook(self) -> str:
        """The hook that is running."""
        trainer = self.trainer
        return trainer._run.results.hook if trainer._run is not None and trainer.state.stage is Stage.TRAIN else ""

    def _counts(self, done: int) -> Counts:
        """The counts where ``done`` batches lie behind ``position``."""
        if self._in_batch:
            return Counts(done + 1, done + (self._hook != "on_train_batch_start"), done, done)
        return Counts(done, done, done, done - (self._hook == "on_train_batch_end"))

    @property
    def batch_progress(self) -> Progress:
        """Batches; between two epochs ``current`` is still about the one before."""
        position = self.trainer.state.position
        between = position.batch == 0 and position.batch_total and not self._in_batch
        current = self._counts(self._handed_out if between else position.batch)
        return Progress(current, self._counts(position.batch_total), self.trainer.is_last_batch)

    @property
    def batch_idx(self) -> int:
        """Index in its epoch of the batch in work, or of the last one; -1 before the first."""
        return self.batch_progress.current.ready - 1

    @property
    def total_batch_idx(self) -> int:
        """The same, counted over all epochs."""
        return self.batch_progress.total.ready - 1

    @property
    def global_step(self) -> int:
        """Optimizer steps taken."""
        return int(self.trainer.global_step)


class EpochLoopView(TrainingView):
    """``trainer.fit_loop.epoch_loop``."""

    _place = "fit_loop.epoch_loop"

    @property
    def val_loop(self) -> EvaluationLoopView:
        """The validation inside the fit."""
        return EvaluationLoopView(self.trainer, "fit_loop.epoch_loop.val_loop", "val")

    @property
    def _batches_that_stepped(self) -> int:
        """Batches after which the optimizer stepped: the x-axis of the loggers. Lightning's users read it."""
        return int(self.trainer.state.position.stepped_batches)


class FitLoopView(TrainingView):
    """``trainer.fit_loop``."""

    @property
    def epoch_loop(self) -> EpochLoopView:
        """Where the epoch stands."""
        return EpochLoopView(self.trainer)

    @property
    def epoch_progress(self) -> Progress:
        """Epochs."""
        epoch, hook = self.trainer.state.position.epoch, self._hook
        started = epoch + bool(self._in_batch or self.trainer.state.position.batch)
        ready = epoch + 1 if hook == "on_train_epoch_start" else started
        counts = Counts(ready, started, epoch + (hook == "on_train_epoch_end"), epoch)
        return Progress(counts, counts)

    @property
    def current_epoch(self) -> int:
        """Index of the epoch in progress."""
        return int(self.trainer.current_epoch)

    @property
    def max_batches(self) -> int | float:
        """Training batches of an epoch; ``inf`` when that is not known."""
        batches: int | float = self.trainer.num_training_batches
        return batches

    @property
    def done(self) -> bool:
        """A limit is reached: ``fit`` would train no more."""
        options, position = self.trainer.options, self.trainer.state.position
        by_epoch = options.max_epochs not in (None, -1) and position.epoch >= options.max_epochs
        return by_epoch or position.global_step >= options.max_steps != -1 or bool(self.trainer.should_stop)


class EvaluationLoopView(LoopView):
    """``trainer.validate_loop``, ``test_loop`` or ``predict_loop``, or the validation inside a fit."""

    def __init__(self, trainer: Any, place: str, kind: str) -> None:
        super().__init__(trainer)
        object.__setattr__(self, "_place", place)
        object.__setattr__(self, "_kind", kind)

    @property
    def max_batches(self) -> list[int | float]:
        """Batches of each loader; nothing until they were asked for."""
        batches: list[int | float] = getattr(self.trainer, f"num_{self._kind}_batches")
        return batches

    @property
    def num_dataloaders(self) -> int:
        """Number of loaders; 0 until they were asked for."""
        return len(self.max_batches)
