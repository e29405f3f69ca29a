"""Timer: how long the stages took, and an end of training after a given time."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from leyden.core.callback import Callback
from leyden.core.state import Stage
from leyden.utils.durations import parse_duration
from leyden.utils.errors import MisconfigurationError, nearest
from leyden.utils.rank import say

if TYPE_CHECKING:
    from leyden.core.module import LightningModule
    from leyden.core.types import Trainer

INTERVALS = ("step", "epoch")


class Timer(Callback):
    """Measures how long the stages take, and asks for the end of training when ``duration`` is over.

    ``min_epochs`` and ``min_steps`` of the Trainer come first. Time spent before a run was resumed counts. The clock
    is ``time.monotonic``: changes of the wall clock do not matter.

    Args:
        duration: ``"DD:HH:MM:SS"``, a timedelta, or a dict of its arguments; None only measures.
        interval: Look at the clock after every batch (``"step"``) or at the end of every epoch (``"epoch"``).
        verbose: Say when the time is over.

    Raises:
        MisconfigurationError: ``duration`` or ``interval`` is none of these.
    """

    may_end_training = True

    def __init__(
        self,
        duration: str | timedelta | dict[str, int] | None = None,
        interval: str = "step",
        verbose: bool = True,
    ) -> None:
        if interval not in INTERVALS:
            raise MisconfigurationError(
                f"Timer(interval={interval!r}) is unknown. Choose 'step' or 'epoch'.{nearest(interval, INTERVALS)}"
            )
        span = parse_duration(duration, "duration")
        self.interval = interval
        self.verbose = verbose
        self._duration = None if span is None else span.total_seconds()
        self._before = 0.0  # seconds of training before this run was resumed
        self._started: dict[str, float] = {}
        self._ended: dict[str, float] = {}

    def start_time(self, stage: str = Stage.TRAIN) -> float | None:
        """When ``stage`` last began, in seconds of ``time.monotonic``; None when it has not."""
        return self._started.get(_known(stage))

    def end_time(self, stage: str = Stage.TRAIN) -> float | None:
        """When ``stage`` last ended, in seconds of ``time.monotonic``; None when it has not."""
        return self._ended.get(_known(stage))

    def time_elapsed(self, stage: str = Stage.TRAIN) -> float:
        """Seconds that ``stage`` has taken so far: training in all, another stage the last time it ran."""
        before = self._before if _known(stage) == Stage.TRAIN else 0.0
        if (started := self._started.get(stage)) is None:
            return before
        return before + self._ended.get(stage, time.monotonic()) - started

    def time_remaining(self, stage: str = Stage.TRAIN) -> float | None:
        """Seconds until ``duration`` is over for ``stage``, less than 0 afterwards; None without a ``duration``."""
        return None if self._duration is None else self._duration - self.time_elapsed(stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; a resumed run may have no time left."""
        self._start(Stage.TRAIN)
        self._stop_when_over(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._ended[Stage.TRAIN] = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clock."""
        if self.interval == "step":
            self._stop_when_over(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the clock."""
        if self.interval == "epoch":
            self._stop_when_over(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start(Stage.SANITY_CHECK if trainer.sanity_checking else Stage.VALIDATE)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._ended[Stage.SANITY_CHECK if trainer.sanity_checking else Stage.VALIDATE] = time.monotonic()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start(Stage.TEST)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._ended[Stage.TEST] = time.monotonic()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start(Stage.PREDICT)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._ended[Stage.PREDICT] = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Seconds of every stage."""
        return {"time_elapsed": {stage.value: self.time_elapsed(stage) for stage in Stage}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count the time before the interruption."""
        self._before = state_dict["time_elapsed"].get(Stage.TRAIN.value, 0.0)

    def _start(self, stage: Stage) -> None:
        self._started[stage] = time.monotonic()
        self._ended.pop(stage, None)

    def _stop_when_over(self, trainer: Trainer) -> None:
        if self._duration is None:
            return
        elapsed = self.time_elapsed()
        if not trainer.strategy.any(elapsed >= self._duration):
            return
        # While min_epochs or min_steps hold the stop back, it is asked for again and again.
        if not trainer.should_stop:
            message = f"Timer: {timedelta(seconds=int(self._duration))} of training are over."
            trainer.state.stop_reason = message
            if self.verbose:
                say(message)
        trainer.should_stop = True


def _known(stage: str) -> str:
    names = [known.value for known in Stage]
    if stage not in names:
        raise MisconfigurationError(
            f"Timer knows no stage {stage!r}. Choose one of: {', '.join(names)}.{nearest(stage, names)}"
        )
    return stage
