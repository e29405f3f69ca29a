"""ProgressBar: how far the run has come, shown as fits the place."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

from leyden.core.callback import Callback
from leyden.utils.errors import MisconfigurationError
from leyden.utils.lazy import LazyModule
from leyden.utils.optional import installed, require
from leyden.utils.rank import is_rank_zero

if TYPE_CHECKING:
    from leyden.callbacks.displays import Display, Metrics, Row
    from leyden.core.module import LightningModule
    from leyden.core.types import Trainer

_displays = LazyModule("leyden.callbacks.displays")


@dataclass(slots=True)
class Loop:
    """How far a loop has come, and how fast. Times are ``perf_counter``'s.

    Attributes:
        label: What it is called.
        total: Batches there will be; ``inf`` when nobody knows.
        first: Batches that were done before this run.
        trains: It is an epoch of training.
        brief: Not worth a line that stays.
        done: Batches done.
        due: When to show it next.
        ended: When it ended; None while it runs.
        paused: Seconds in which a loop inside it ran.
        marks: Where it stood when it was last shown: seconds without pauses, and batches. Speed is measured over
            them, so that a slow first batch is soon forgotten.
    """

    label: str
    total: int | float
    first: int = 0
    trains: bool = False
    brief: bool = False
    done: int = field(init=False)
    began: float = field(init=False)
    due: float = field(init=False)
    ended: float | None = field(init=False, default=None)
    paused: float = field(init=False, default=0.0)
    marks: deque[tuple[float, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.done = self.first
        self.began = self.due = perf_counter()
        self.marks = deque([(self.began, self.first)], maxlen=100)

    def rate(self, until: float) -> float:
        """Batches a second: lately while the loop runs, of all of it when it has ended; 0.0 when nothing is known."""
        since, before = self.marks[0] if self.ended is None else (self.began, self.first)
        seconds = until - self.paused - since
        return (self.done - before) / seconds if seconds > 0 else 0.0


class ProgressBar(Callback):
    """Shows counts, speed and the values logged with ``prog_bar=True``, on standard output of rank 0.

    On a terminal: a live bar, and above it one line for every epoch that is done. Elsewhere (a pipe, a file, a
    notebook): one plain line for every epoch and, while a loop is long, one every ``line_every`` seconds, without
    carriage returns and escape codes. Either way a validation, test or prediction of its own leaves one line.

    The time of an epoch includes its validation; its batches a second do not. What validation logged is shown only
    with an epoch that validated. Values are read, which waits for the device, only when something is shown.

    Override ``get_metrics`` to show other values.

    Args:
        refresh_every: Seconds between two redraws of the live bar.
        line_every: Seconds between two plain lines of one loop; ``inf`` for none but the one at its end.
        live: True is the live bar wherever it runs, False is plain lines on a terminal too; None chooses.

    Raises:
        MisconfigurationError: A time is negative or no number.
        ModuleNotFoundError: ``live=True`` without rich.
    """

    def __init__(self, refresh_every: float = 0.1, line_every: float = 10.0, live: bool | None = None) -> None:
        for name, seconds in (("refresh_every", refresh_every), ("line_every", line_every)):
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
                raise MisconfigurationError(f"ProgressBar({name}={seconds!r}) takes a number of seconds, 0 or more.")
        if live:
            require("rich", "ProgressBar(live=True)")
        self.refresh_every = refresh_every
        self.line_every = line_every
        self.live = live
        self._enabled = True
        self._display = _displays.Display()
        self._loops: list[Loop] = []  # the last one runs; it is the second when it is validation inside fit
        self._metrics: Metrics = {}  # as read last
        self._names_before: set[str] = set()
        self._names_of_validation: set[str] = set()
        self._has_validated = False

    def __getstate__(self) -> dict[str, Any]:
        # A display cannot be copied, nor can two share the screen. A copy shows what it is told from its setup on.
        return self.__dict__ | {"_display": _displays.Display(), "_loops": []}

    def enable(self) -> None:
        """Show progress, from now on."""
        self._enabled = True
        self._display.close()
        self._display = self._fitting_display()
        for loop in self._loops:
            loop.due = 0.0

    def disable(self) -> None:
        """Show nothing, from now on."""
        self._enabled = False
        self._display.close()
        self._display = _displays.Display()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print as the built-in ``print`` does, above the live bar where there is one."""
        print(*args, **kwargs)  # an open live display has taken the place of sys.stdout

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Metrics:
        """What to show behind the counts, by name; waits for the device."""
        return {name: value for name, value in trainer.progress_bar_metrics.items() if name != "v_num"}

    # Around a run.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._forget()
        self._display = self._fitting_display()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # The device may be out of order, so the line shows what was read last.
        self._display.close()
        if self._loops:
            self._display.keep(self._rows(trainer, perf_counter())[0])
        self._forget()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._forget()

    # Training.

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.position.batch:  # in the middle of an epoch, whose start is not announced again
            self._begin_epoch(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_epoch(trainer, pl_module)
        self._begin_epoch(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = self._loops[-1]
        loop.done = batch_idx + 1
        if perf_counter() >= loop.due:
            self._metrics = self.get_metrics(trainer, pl_module)
            self._update(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._loops[-1].ended = perf_counter()
        self._redraw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_epoch(trainer, pl_module)
        self._display.close()

    def _begin_epoch(self, trainer: Trainer) -> None:
        number, limit = trainer.current_epoch + 1, trainer.max_epochs or -1
        label = f"epoch {number:{len(str(limit))}}/{limit}" if limit > 0 else f"epoch {number}"
        self._has_validated = False
        self._begin(trainer, Loop(label, trainer.num_training_batches, trainer.state.position.batch, trains=True))

    def _end_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the line of the epoch that ended last, if one did. Its means were not known when it ended."""
        if self._loops:
            if self._display.shows:
                self._metrics = self.get_metrics(trainer, pl_module)
            self._leave_line(trainer, self._loops.pop())

    # Validation, test, prediction.

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            self._begin(trainer, Loop("sanity check", sum(trainer.num_sanity_val_batches), brief=True))
            return
        if self._loops and self._display.shows:
            self._names_before = set(self.get_metrics(trainer, pl_module))
        self._begin(trainer, Loop("validate", sum(trainer.num_val_batches)))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        loop = self._loops[-1]
        loop.done += 1
        if perf_counter() >= loop.due:
            self._update(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(self._loops) == 1:  # the sanity check, or trainer.validate()
            self._end_alone(trainer)
            return
        validation = self._loops.pop()
        self._loops[-1].paused += perf_counter() - validation.began
        self._has_validated = True
        if self._display.shows:
            self._metrics = self.get_metrics(trainer, pl_module)
            self._names_of_validation |= self._metrics.keys() - self._names_before
        self._redraw(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, Loop("test", sum(trainer.num_test_batches)))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, Loop("predict", sum(trainer.num_predict_batches)))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_alone(trainer)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end
    on_predict_end = on_test_end

    # Loops and what is shown of them.

    def _forget(self) -> None:
        """Forget the last run, and leave the screen as it was found."""
        self._display.close()
        self._loops.clear()
        self._metrics = {}
        self._names_before = set()
        self._names_of_validation = set()
        self._has_validated = False

    def _fitting_display(self) -> Display:
        if not self._enabled or not is_rank_zero():
            nothing: Display = _displays.Display()
            return nothing
        live = _displays.is_terminal(sys.stdout) and installed("rich") if self.live is None else self.live
        shown: Display = _displays.LiveDisplay(self.refresh_every) if live else _displays.PlainDisplay(self.line_every)
        return shown

    def _begin(self, trainer: Trainer, loop: Loop) -> None:
        loop.due = loop.began + self._display.period
        self._loops.append(loop)
        self._redraw(trainer)

    def _end_alone(self, trainer: Trainer) -> None:
        """The loop ended that was all of the run, or all but the training."""
        self._loops[-1].ended = perf_counter()
        self._leave_line(trainer, self._loops.pop())
        self._display.close()

    def _update(self, trainer: Trainer) -> None:
        loop, now = self._loops[-1], perf_counter()
        self._display.update(self._rows(trainer, now))
        loop.marks.append((now - loop.paused, loop.done))
        loop.due = perf_counter() + self._display.period

    def _redraw(self, trainer: Trainer) -> None:
        if self._display.shows:
            self._display.redraw(self._rows(trainer, perf_counter()))

    def _leave_line(self, trainer: Trainer, loop: Loop) -> None:
        self._display.keep(self._row(trainer, loop, perf_counter()))

    def _rows(self, trainer: Trainer, now: float) -> list[Row]:
        running = self._loops[-1]
        return [
            self._row(trainer, loop, now, busy_until=now if loop is running else running.began) for loop in self._loops
        ]

    def _row(self, trainer: Trainer, loop: Loop, now: float, busy_until: float | None = None) -> Row:
        """What to show of ``loop``, in which nothing has happened since ``busy_until``."""
        until = now if loop.ended is None else loop.ended
        limit = trainer.max_steps
        row: Row = _displays.Row(
            label=loop.label,
            done=loop.done,
            total=loop.total,
            seconds=until - loop.began,
            rate=loop.rate(until if busy_until is None else busy_until),
            steps=f"step {trainer.global_step}/{limit}" if loop.trains and limit > 0 else "",
            metrics=self._metrics_of_epoch() if loop.trains else {},
            brief=loop.brief,
        )
        return row

    def _metrics_of_epoch(self) -> Metrics:
        """The last values read: first those of training, then those of validation, if this epoch has validated."""
        of_validation = self._names_of_validation
        training = {name: value for name, value in self._metrics.items() if name not in of_validation}
        return training | self._metrics if self._has_validated else training
