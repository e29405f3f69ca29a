"""EarlyStopping: ends training when a metric no longer gets better."""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch

from leyden.callbacks.monitoring import check_monitor, in_training, looks_at_train_epoch_end, matches_nothing, validates
from leyden.core.callback import Callback
from leyden.utils.errors import MisconfigurationError, MissingMetricError, warn
from leyden.utils.rank import global_rank, is_rank_zero, log, say

if TYPE_CHECKING:
    from leyden.core.module import LightningModule
    from leyden.core.types import Trainer


class EarlyStoppingReason(Enum):
    """Why EarlyStopping asked for the end of training."""

    NOT_STOPPED = 0
    STOPPING_THRESHOLD = 1
    DIVERGENCE_THRESHOLD = 2
    PATIENCE_EXHAUSTED = 3
    NON_FINITE_METRIC = 4


class EarlyStopping(Callback):
    """Asks for the end of training when a metric no longer gets better.

    It looks at the metric after every validation, or at the end of every training epoch where validation runs once in
    each epoch or not at all; patience counts these looks. ``min_epochs`` and ``min_steps`` of the Trainer come first.
    When a run is resumed the count goes on, but with the ``patience`` given now.

    Args:
        monitor: Name of the metric, as given to ``self.log``.
        min_delta: An improvement must be larger than this.
        patience: Stop after so many looks in a row without improvement; 0 and 1 stop at the first.
        verbose: Say when the metric improves and why training stops.
        mode: ``"min"`` where less is better, ``"max"`` where more is.
        strict: Raise when the metric is not logged, though validation has run. False leaves training alone until it is.
        check_finite: Stop when the metric is NaN or infinite. False counts NaN as no improvement.
        stopping_threshold: Stop once the metric is better than this.
        divergence_threshold: Stop once the metric is worse than this.
        check_on_train_epoch_end: Look at the end of training epochs (True) or of validations (False).
        log_rank_zero_only: Speak on one process only, where there are several.

    Attributes:
        wait_count: Looks since the last improvement.
        stopped_epoch: Index of the epoch in which the stop was asked for; 0 before.
        best_score: The best value seen, a tensor of shape ``()`` on the CPU.
        stopping_reason: Why the stop was asked for.
        stopping_reason_message: The same for people to read; None before.

    Raises:
        MisconfigurationError: ``mode`` is unknown, ``patience`` is not a count, or ``monitor`` is no name.
    """

    monitors = True
    may_end_training = True

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: str = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        check_monitor("EarlyStopping", monitor, mode)
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 0:
            raise MisconfigurationError(
                f"EarlyStopping(patience={patience!r}) is not a number of checks. Give 0 or more; 0 stops at the first "
                "check without improvement."
            )
        self.monitor = monitor
        self.min_delta = min_delta
        self.patience = patience
        self.verbose = verbose
        self.mode = mode
        self.strict = strict
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.check_on_train_epoch_end = check_on_train_epoch_end
        self.log_rank_zero_only = log_rank_zero_only

        self.wait_count = 0
        self.stopped_epoch = 0
        self.best_score = torch.tensor(math.inf if mode == "min" else -math.inf)
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message: str | None = None
        self._validated = False

    @property
    def state_key(self) -> str:
        """One for each metric and mode."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the stop of an earlier run, which this one goes on from."""
        self.stopped_epoch = 0
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message = None
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the metric, unless that is done at the end of training epochs."""
        if not in_training(trainer):
            return
        self._validated = True
        if not looks_at_train_epoch_end(trainer, self.check_on_train_epoch_end):
            self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the metric, unless that is done at the end of validations."""
        if in_training(trainer) and looks_at_train_epoch_end(trainer, self.check_on_train_epoch_end):
            self._look(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The count and the best score; also the patience, for Lightning, which cannot read a state without."""
        return {
            "patience": self.patience,
            "wait_count": self.wait_count,
            "stopped_epoch": self.stopped_epoch,
            "best_score": self.best_score,
            "stopping_reason": self.stopping_reason.value,
            "stopping_reason_message": self.stopping_reason_message,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting, with the patience given now."""
        self.wait_count = state_dict["wait_count"]
        self.stopped_epoch = state_dict["stopped_epoch"]
        self.best_score = torch.as_tensor(state_dict["best_score"])
        self.stopping_reason = EarlyStoppingReason(state_dict.get("stopping_reason", 0))
        self.stopping_reason_message = state_dict.get("stopping_reason_message")

    def _look(self, trainer: Trainer) -> None:
        """Judge the metric as it is now; ask for the end if it, or that of another process, calls for it."""
        metrics = trainer.callback_metrics
        reason, message = EarlyStoppingReason.NOT_STOPPED, None
        if self.monitor in metrics:
            reason, message = self._judge(metrics[self.monitor].detach().to("cpu"))
        elif self._validated or not validates(trainer):  # else the first validation may yet log it
            if self.strict:
                raise MissingMetricError(f"{self._absent(metrics)} With strict=False training goes on without it.")
            if self.verbose:
                warn("LD130", self._absent(metrics), subject=self.monitor)

        mine = reason is not EarlyStoppingReason.NOT_STOPPED
        if not trainer.strategy.any(mine):
            return
        message = message or f"EarlyStopping: another process stopped because of {self.monitor}."
        # While min_epochs or min_steps hold the stop back, it is asked for again at every look.
        if not trainer.should_stop:
            self._say(message)
        trainer.should_stop = True
        trainer.state.stop_reason = message
        self.stopped_epoch = trainer.current_epoch
        self.stopping_reason, self.stopping_reason_message = reason, message

    def _judge(self, score: torch.Tensor) -> tuple[EarlyStoppingReason, str | None]:
        """Count ``score``; the reason to stop, and a sentence for it."""
        value, best, name = float(score), float(self.best_score), self.monitor
        if self.check_finite and not math.isfinite(value):
            return EarlyStoppingReason.NON_FINITE_METRIC, (
                f"EarlyStopping: {name} is {value}. Its best value was {best:.3f}."
            )
        if self.stopping_threshold is not None and self._better(value, self.stopping_threshold):
            return EarlyStoppingReason.STOPPING_THRESHOLD, (
                f"EarlyStopping: {name} = {value:.6g} is better than stopping_threshold={self.stopping_threshold}."
            )
        if self.divergence_threshold is not None and self._better(self.divergence_threshold, value):
            return EarlyStoppingReason.DIVERGENCE_THRESHOLD, (
                f"EarlyStopping: {name} = {value:.6g} is worse than divergence_threshold={self.divergence_threshold}."
            )
        margin = self.min_delta if self.mode == "min" else -self.min_delta
        if self._better(value + margin, best):
            before = f", from {best:.3f}" if math.isfinite(best) else ""
            self._say(f"EarlyStopping: {name} improved to {value:.3f}{before}.")
            self.best_score, self.wait_count = score.clone(), 0
            return EarlyStoppingReason.NOT_STOPPED, None
        self.wait_count += 1
        if self.wait_count < self.patience:
            return EarlyStoppingReason.NOT_STOPPED, None
        checks = f"{self.wait_count} check{'s' if self.wait_count > 1 else ''}"
        return EarlyStoppingReason.PATIENCE_EXHAUSTED, (
            f"EarlyStopping: {name} has not improved on {best:.3f} in {checks}."
        )

    def _absent(self, metrics: Iterable[str]) -> str:
        return matches_nothing(f"EarlyStopping(monitor={self.monitor!r})", self.monitor, metrics)

    def _better(self, value: float, other: float) -> bool:
        return value < other if self.mode == "min" else value > other

    def _say(self, message: str) -> None:
        if not self.verbose:
            return
        if is_rank_zero() or self.log_rank_zero_only:
            say(message)
        else:
            log.info("[rank %d] %s", global_rank(), message)
