"""Schedulers whose end is not the run's: refused where torch would raise at that point, warned of otherwise."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import lr_scheduler

from leyden.core.hooks import overrides
from leyden.core.module import LightningModule
from leyden.core.optimizers import LRSchedulerConfig
from leyden.core.run import Run
from leyden.utils.errors import MisconfigurationError, warn


def check_schedules(run: Run) -> None:
    """Look at schedulers of torch's that know their total, where the number of their steps is known too.

    Raises:
        MisconfigurationError: A OneCycleLR would step beyond its end, which torch refuses when it gets there.
    """
    module, position = run.module, run.state.position
    if overrides(module, "lr_scheduler_step", LightningModule):
        return
    for config in run.schedulers:
        if (steps := _steps_of(run, config)) is not None:
            _check_end(run, config, steps)
            if config.frequency == 1 and not position.batch_total:
                _warn_of_interval(run, config, steps)


def _check_end(run: Run, config: LRSchedulerConfig, steps: int) -> None:
    """Refuse a scheduler that would step beyond its end, where it raises."""
    total, where, ends = _total_of(config.scheduler)
    position = run.state.position
    if total is None or not ends:
        return
    steps += config.scheduler.last_epoch - (_steps_of(run, config, position.epoch, position.batch) or 0)
    if steps <= total:
        return
    problem = (
        f"{where}={total} is too few: this run steps it {steps} times (interval={config.interval!r}), and it cannot "
        f"step beyond its end. Give {steps}; trainer.estimated_stepping_batches is the number of optimizer steps of a "
        "run."
    )
    if not any(getattr(callback, "may_end_training", False) for callback in run.callbacks):
        raise MisconfigurationError(problem)
    warn("LD217", f"Unless a callback ends training before: {problem}", subject=where)


def _warn_of_interval(run: Run, config: LRSchedulerConfig, steps: int) -> None:
    """Say so when the length of a schedule is told in epochs and it steps with every batch, or the other way round."""
    scheduler, by_epoch = config.scheduler, config.interval == "epoch"
    total, where, _ = _total_of(scheduler)
    of_run, epochs = length_of(run)
    other = of_run if by_epoch else epochs
    warms_up = not by_epoch and isinstance(scheduler, lr_scheduler.LinearLR)  # for as many steps as there are epochs
    if total is not None and of_run >= 2 * epochs and abs(total - other) <= 0.1 * other and not warms_up:
        meant, unit, interval = (
            ("optimizer steps", "epoch", "step") if by_epoch else ("epochs", "optimizer step", "epoch")
        )
        warn(
            "LD215",
            f"{where}={total} fits the {other} {meant} of this run, but {type(scheduler).__name__} steps with every "
            f"{unit}, {steps} times. Return {{'scheduler': scheduler, 'interval': {interval!r}}}, or give {steps}.",
            subject=where,
        )
    elif isinstance(scheduler, lr_scheduler.SequentialLR) and scheduler._milestones[-1] >= steps:
        warn(
            "LD216",
            f"SequentialLR(milestones={scheduler._milestones}): it steps with every {'epoch' if by_epoch else 'step'}, "
            f"{steps} times in this run, so the last of its schedulers never begins. Give smaller milestones, or "
            "another 'interval'.",
        )


def _total_of(scheduler: Any) -> tuple[int | None, str, bool]:
    """After how many steps ``scheduler`` is at its end, the argument that says so, and if it refuses to go on then."""
    name = type(scheduler).__name__
    if isinstance(scheduler, lr_scheduler.SequentialLR):
        total, where, ends = _total_of(scheduler._schedulers[-1])
        if total is None:
            return None, "", False
        return total + scheduler._milestones[-1], f"SequentialLR: the last milestone and {where}, together", ends
    for kind, argument in _TOTALS.items():
        if isinstance(scheduler, kind):
            return getattr(scheduler, argument), f"{name}({argument})", kind is lr_scheduler.OneCycleLR
    return None, "", False


_TOTALS: dict[type, str] = {
    lr_scheduler.OneCycleLR: "total_steps",
    lr_scheduler.CosineAnnealingLR: "T_max",
    lr_scheduler.LinearLR: "total_iters",
    lr_scheduler.PolynomialLR: "total_iters",
}


def length_of(run: Run) -> tuple[int | float, int | float]:
    """Optimizer steps and epochs of the whole run; ``inf`` where there is no end in sight."""
    options, count = run.options, run.train.count
    epochs = math.inf if options.max_epochs in (None, -1) else options.max_epochs
    most = math.inf if options.max_steps == -1 else options.max_steps
    by_epoch = math.inf if count == math.inf else math.ceil(count / run.accumulate)
    steps = min(most, epochs * by_epoch) if epochs else 0
    return steps, min(epochs, math.ceil(steps / by_epoch)) if by_epoch and steps < math.inf else epochs


def _steps_of(run: Run, config: LRSchedulerConfig, epochs: int | None = None, batches: int = 0) -> int | None:
    """How often a scheduler steps in so many epochs and batches, by default in the whole run; None if not known."""
    count, window, frequency = run.train.count, run.accumulate, config.frequency
    if config.reduce_on_plateau or count in (0, math.inf) or any(turn.every > 1 for turn in run.turns):
        return None
    count = int(count)
    if epochs is None:
        steps, _ = length_of(run)
        if steps == math.inf:
            return None
        epochs, rest = divmod(int(steps), math.ceil(count / window))
        batches = rest * window
    if config.interval == "epoch":
        return epochs // frequency
    together = math.lcm(window, frequency)
    in_tail = count % window != 0 and count % frequency == 0
    return epochs * (count // together + in_tail) + batches // together
