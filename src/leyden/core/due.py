"""What is due behind a batch: the end of training, validation, the schedulers' steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from leyden.core.optimizers import LRSchedulerConfig
from leyden.core.run import Run
from leyden.utils.errors import MisconfigurationError, warn


def must_stop(run: Run) -> bool:
    """True when a limit is reached, or when a stop was asked for that the minima allow."""
    state, options = run.state, run.options
    position = state.position
    if options.max_steps != -1 and position.global_step >= options.max_steps:
        state.stop_reason = f"max_steps={options.max_steps} reached"
    elif options.max_epochs is not None and options.max_epochs != -1 and position.epoch >= options.max_epochs:
        state.stop_reason = f"max_epochs={options.max_epochs} reached"
    elif state.should_stop and position.epoch >= (options.min_epochs or 0):
        if position.global_step >= (options.min_steps or 0):
            state.stop_reason = state.stop_reason or "a stop was asked for"
            return True
        return False
    else:
        return False
    return True


def resolve_validation(run: Run) -> Callable[[Run, int], bool] | None:
    """Who says whether validation runs after a batch of the epoch in work; None where it does not run in it."""
    if not validates_in_this_epoch(run):
        return None
    return validation_is_due if run.validation_seconds == math.inf else _is_due_by_time


def validates_in_this_epoch(run: Run) -> bool:
    """True when validation runs in the epoch in work, or may at its end."""
    every = run.options.check_val_every_n_epoch
    return run.validates and (every is None or (run.state.position.epoch + 1) % every == 0)


def validation_is_due(run: Run, index: int) -> bool:
    """True when validation runs after batch ``index``, in an epoch in which it runs."""
    if run.validation_interval == math.inf or run.validation_interval == run.train.count:
        return run.train.is_last or (run.state.should_stop and must_stop(run))
    across_epochs = run.options.check_val_every_n_epoch is None
    done = run.state.position.batch_total if across_epochs else index + 1
    return bool(done % run.validation_interval == 0) or (run.state.should_stop and must_stop(run))


def _is_due_by_time(run: Run, index: int) -> bool:
    is_over = time.monotonic() - run.validated_at >= run.validation_seconds
    return run.strategy.any(is_over) or (run.state.should_stop and must_stop(run))


def step_schedulers(run: Run, index: int) -> None:
    """Step the schedulers that watch nothing."""
    for config in run.schedulers:
        if scheduler_is_due(run, config, index):
            run.step_scheduler(config.scheduler, None)


def scheduler_is_due(run: Run, config: LRSchedulerConfig, index: int) -> bool:
    """True when a scheduler steps after batch ``index``: by step after a step, by epoch after the epoch's last batch.

    False for one that watches a metric.
    """
    if config.reduce_on_plateau:
        return False
    if config.interval == "step":
        return run.turn_of[id(config)].stepped and (index + 1) % config.frequency == 0
    return run.train.is_last and (run.state.position.epoch + 1) % config.frequency == 0


def step_plateau(run: Run, interval: str, count: int) -> None:
    """Step the schedulers that watch a metric."""
    for config in run.schedulers:
        if not config.reduce_on_plateau or config.interval != interval or (count + 1) % config.frequency:
            continue
        logged = run.results.callback_metrics()
        if config.monitor in logged:
            run.step_scheduler(config.scheduler, logged[config.monitor])
            continue
        problem = (
            f"ReduceLROnPlateau watches {config.monitor!r}, which was not logged. Logged: {', '.join(sorted(logged))}."
        )
        if config.strict:
            raise MisconfigurationError(problem)
        warn("LD034", f"{problem} The scheduler does not step.", subject=str(config.monitor))
