"""THE TRAINING LOOP.

on_fit_start
[sanity check]
on_train_start
for every epoch:
    on_train_epoch_start
    for every batch:
        on_train_batch_start
        training_step
        [on_before_zero_grad, the gradients are cleared]    first batch of an accumulation window
        on_before_backward, backward, on_after_backward
        [on_before_optimizer_step, clipping, the optimizer steps]    last batch of the window
        [schedulers by step; on the epoch's last batch, schedulers by epoch]
        on_train_batch_end
        [step values go to the loggers]
        [validation, when due]
        [checkpoints that were asked for are written]
    on_train_epoch_end
    [epoch values go to the loggers, checkpoints are written]
on_train_end
on_fit_end
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from leyden.core.checkpoint import restore_loop
from leyden.core.due import must_stop, resolve_validation, step_plateau, step_schedulers
from leyden.core.evaluate import ready_to_validate, sanity_check, validate_inside_fit
from leyden.core.lifecycle import start_logging
from leyden.core.outputs import refuse_what_is_no_loss, seen_by_hooks
from leyden.core.run import Run, warn_about_modes
from leyden.core.saving import write_asked
from leyden.core.state import LOGGING, VALIDATED, VALIDATION, Stage
from leyden.core.train_batch import learn_from_output, manual_batch, several_turns, train_batch
from leyden.utils.errors import warn
from leyden.utils.lazy import LazyModule

_preflight = LazyModule("leyden.core.preflight")
_signals = LazyModule("leyden.core.signals")
_time_report = LazyModule("leyden.core.time_report")


def fit(run: Run) -> None:
    """Train to the end, from wherever the run stands."""
    hooks, state = run.hooks, run.state
    run.place_module()
    run.prepare_training()
    _preflight.check_optimization(run)
    state.stage = Stage.TRAIN
    run.results.enter(Stage.TRAIN)
    if fire := hooks.on_fit_start:
        fire()
    start_logging(run)
    run.module.zero_grad()
    if run.checkpoint is not None:
        restore_loop(run)
        if must_stop(run):
            warn(
                "LD061", f"{run.trainer.ckpt_path}: {state.stop_reason}, so fit has nothing to do. Give a higher limit."
            )
    with torch.enable_grad():
        sanity_check(run)
        if run.options.limit_train_batches == 0:
            state.stop_reason = "limit_train_batches=0"
        elif not must_stop(run):
            run.load_training_data()
            _preflight.check_schedules(run)
            ready_to_validate(run)
            warn_about_modes(run.module)
            if fire := hooks.on_train_start:
                fire()
            run.validated_at = time.monotonic() - run.since_validation
            while not must_stop(run):
                train_epoch(run)
            if run.check is not None:
                run.check.settle()
            if run.compiling is not None:
                run.compiling.report()
            if fire := hooks.on_train_end:
                fire()
            write_asked(run)
    run.leave_device()
    if fire := run.hooks.on_fit_end:
        fire()
    if run.times.starved:
        _time_report.tell(run)


def train_epoch(run: Run) -> None:
    """Train on the rest of one epoch: from ``position.batch`` to the loader's end or a stop."""
    run.resolve_changed_hooks()
    if run.state.position.batch == 0:
        run.renew_training_data()
    hooks, state, results, train = run.hooks, run.state, run.results, run.train
    position, log_every = state.position, run.log_every
    steps_before_epoch = position.global_step
    automatic, turns, schedulers = run.module.automatic_optimization, run.turns, run.schedulers
    due = run.validation_is_due = resolve_validation(run)
    complete = True
    train.begin_epoch(position.epoch)
    results.hook = "training_step"
    if position.batch == 0 and (fire := hooks.on_train_epoch_start):
        fire()
    before, after = hooks.on_train_batch_start, hooks.on_train_batch_end
    more = bool(after or due)  # comes after every batch
    next_log = (position.stepped_batches // log_every + 1) * log_every if log_every else math.inf
    work = resolve_work(run)
    # What is called in every step has a local name: Python finds what lies in attributes slower than it is called.
    first = turns[0]
    step, optimizer, clear, advance, named = first.step, first.optimizer, first.clear, first.advance, first.named

    batches = train.rest_of_epoch(position, state)
    run.times.enter_steps()
    if position.tail:
        _finish_batch(run, position.batch - 1, run.pending == 0)
    for batch in batches:
        index = position.batch
        results.batch, results.samples = batch, None
        if batch is None:
            warn("LD032", f"{run.sources['train'].name} gave None instead of a batch; it is passed over.")
        elif before is not None and before(batch, index) == -1:
            train.is_last = True
            if schedulers and automatic:
                for turn in turns:
                    turn.stepped = False
                step_schedulers(run, index)
            break
        backward = run.plain_backward  # behind the hook, which may change what a batch takes
        if backward is not None and batch is not None:
            if remember := run.remember:
                remember(step)
            output = step(batch, index)
            if type(output) is Tensor and run.plain_backward is not None:  # nothing was changed in the step either
                if named:
                    optimizer.zero_grad()
                else:
                    clear()
                try:
                    if run.looks and not isfinite(output.item()):
                        run.check.refuse(output)
                    backward(output)
                except (RuntimeError, TypeError):  # of complex numbers
                    refuse_what_is_no_loss(output, run)
                    raise
                if named:
                    optimizer.step()
                else:
                    advance()
                first.stepped = stepped = True
                position.global_step += 1
            else:
                stepped = learn_from_output(run, first, output, index)
                position.global_step += stepped
        else:
            output = work(run, batch, index)
            stepped = any(turn.stepped for turn in turns) if automatic else batch is not None and run.window.steps
            position.global_step += stepped and automatic
        position.batch = index + 1  # before the hooks, so that a checkpoint they save resumes behind this batch
        if stepped:
            position.stepped_batches += 1
        if more or schedulers or state.save_requests or state.signal or position.stepped_batches >= next_log:
            position.tail = LOGGING
            if schedulers and automatic:
                step_schedulers(run, index)
            if after is not None and batch is not None:
                after(seen_by_hooks(output, run), batch, index)
            _finish_batch(run, index, stepped)
            if position.stepped_batches >= next_log:
                next_log += log_every
        if position.global_step >= run.max_steps or (state.should_stop and must_stop(run)):
            if complete := train.is_last:
                next(batches, None)  # the loader is read to its very end, where samplers draw too
            break

    run.times.leave_steps()
    results.begin_batch(None)
    results.ended = True
    if fire := hooks.on_train_epoch_end:
        fire()
    for turn in turns:
        turn.forget()
    if run.schedulers and automatic and complete:
        step_plateau(run, "epoch", position.epoch)
    run.send(results.end_epoch(clear=complete), run.log_step)
    if complete:
        if not automatic and run.optimizers and position.global_step == steps_before_epoch:
            warn("LD035", _NO_STEP)
        position.end_epoch()
    if state.save_requests:
        write_asked(run)


def resolve_work(run: Run) -> Callable[[Run, Any, int], Any]:
    """What trains on a batch in the epoch that begins, where ``run.plain_backward`` is None."""
    run.replaced = False
    run.resolve_plain_step()
    if run.pending:  # of a window that a checkpoint was made in
        run.plain_backward = None
    work: Callable[[Run, Any, int], Any] = train_batch
    if not run.module.automatic_optimization:
        work = manual_batch
    elif len(run.turns) > 1:
        work = several_turns
    return work if run.compiling is None else run.compiling.work(work)


def _finish_batch(run: Run, index: int, stepped: bool) -> None:
    """What follows on_train_batch_end; a run that was broken off in it goes on at ``position.tail``."""
    state, position = run.state, run.state.position
    if position.tail == LOGGING and stepped and run.log_every and position.stepped_batches % run.log_every == 0:
        run.send(run.results.step_metrics(), run.log_step)
    due, broken_off = run.validation_is_due, position.tail == VALIDATION  # broken off: whatever is due now, it was then
    if due is not None and position.tail != VALIDATED and (broken_off or due(run, index)):
        position.tail = VALIDATION
        if run.pending == 0:
            run.module.on_validation_model_zero_grad()
        validate_inside_fit(run)
    if run.schedulers and stepped and run.module.automatic_optimization:
        step_plateau(run, "step", index)
    position.tail = 0
    if state.save_requests:
        write_asked(run)  # the safe point: no hook is half done
    if state.signal:
        _signals.stop(run)


_NO_STEP = (
    "No optimizer has stepped in this epoch. In manual optimization training_step does it: opt = self.optimizers(), "
    "opt.zero_grad(), self.manual_backward(loss), opt.step()."
)
