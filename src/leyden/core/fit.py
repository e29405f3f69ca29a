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
from typing import Any

import torch
from torch import Tensor

from leyden.core.checkpoint import restore_loop
from leyden.core.due import must_stop, resolve_validation, step_plateau, step_schedulers
from leyden.core.evaluate import ready_to_validate, sanity_check, validate_inside_fit
from leyden.core.lifecycle import start_logging
from leyden.core.optimizers import Turn, Window, toggle, untoggle
from leyden.core.outputs import loss_of, losses_of, seen_by_hooks
from leyden.core.run import Run, warn_about_modes
from leyden.core.saving import write_asked
from leyden.core.state import LOGGING, VALIDATED, VALIDATION, Stage
from leyden.utils.errors import MisconfigurationError, warn
from leyden.utils.lazy import LazyModule

_preflight = LazyModule("leyden.core.preflight")
_signals = LazyModule("leyden.core.signals")


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


def train_epoch(run: Run) -> None:
    """Train on the rest of one epoch: from ``position.batch`` to the loader's end or a stop."""
    run.resolve_changed_hooks()
    if run.state.position.batch == 0:
        run.renew_training_data()
    hooks, state, results, train = run.hooks, run.state, run.results, run.train
    position, max_steps = state.position, run.options.max_steps
    steps_before_epoch = position.global_step
    automatic, turns = run.module.automatic_optimization, run.turns
    run.validation_is_due = resolve_validation(run)
    alone = len(turns) == 1
    work = (train_batch if alone else _several_turns) if automatic else _manual_batch
    if run.compiling is not None:
        work = run.compiling.work(work)
    complete = True
    train.begin_epoch(position.epoch)
    results.hook = "training_step"
    if position.batch == 0 and (fire := hooks.on_train_epoch_start):
        fire()

    batches = train.rest_of_epoch(position, state)
    if position.tail:
        _finish_batch(run, position.batch - 1, run.pending == 0)
    for batch in batches:
        index = position.batch
        results.begin_batch(batch)
        if batch is None:
            warn("LD032", f"{run.sources['train'].name} gave None instead of a batch; it is passed over.")
        elif (fire := hooks.on_train_batch_start) and fire(batch, index) == -1:
            train.is_last = True
            if run.schedulers and automatic:
                for turn in turns:
                    turn.stepped = False
                step_schedulers(run, index)
            break
        output = work(run, batch, index)
        if automatic:
            stepped = turns[0].stepped if alone else any(turn.stepped for turn in turns)
            position.global_step += stepped
        else:
            stepped = batch is not None and run.window.steps
        position.batch += 1  # before the hooks, so that a checkpoint they save resumes behind this batch
        position.batch_total += 1
        position.stepped_batches += stepped
        position.tail = LOGGING
        if run.schedulers and automatic:
            step_schedulers(run, index)
        if batch is not None and (fire := hooks.on_train_batch_end):
            fire(seen_by_hooks(output, run), batch, index)
        _finish_batch(run, index, stepped)
        if position.global_step >= max_steps != -1 or (state.should_stop and must_stop(run)):
            if complete := train.is_last:
                next(batches, None)  # the loader is read to its very end, where samplers draw too
            break

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
        position.epoch += 1
        position.batch = 0
    if state.save_requests:
        write_asked(run)


def _finish_batch(run: Run, index: int, stepped: bool) -> None:
    """What follows on_train_batch_end; a run that was broken off in it goes on at ``position.tail``."""
    state, position = run.state, run.state.position
    if position.tail == LOGGING and stepped and run.log_every and position.stepped_batches % run.log_every == 0:
        run.send(run.results.step_metrics(), run.log_step)
    if run.validation_is_due is not None and position.tail != VALIDATED and run.validation_is_due(run, index):
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


def train_batch(run: Run, batch: Any, index: int, turn: Turn | None = None) -> Any:
    """Forward and backward on one batch; step the optimizer when enough gradients have accumulated."""
    if turn is None:
        turn = run.turns[0]
    stepping, share = (True, 1) if run.accumulate == 1 else accumulation(run, index, turn)
    turn.stepped = False
    if turn.closure_first:  # torch's optimizers: the same result as step(closure), four frames fewer
        output, _ = _propagate(run, turn, batch, index, stepping, share, turn.pending == 0)
        if stepping:
            if turn.optimizer is None:
                turn.stepped = True
            elif turn.pending:  # none are, where every batch of the window was skipped
                turn.advance()
                turn.stepped = True
            turn.pending = 0
        return output
    return _closure_batch(run, turn, batch, index, stepping, share)


def _propagate(
    run: Run, turn: Turn, batch: Any, index: int, stepping: bool, share: int, clears: bool
) -> tuple[Any, Tensor | None]:
    """Forward and backward; returns what the step returned, and the loss as it was propagated."""
    hooks, optimizer = run.hooks, turn.optimizer
    output: Any = None
    loss: Tensor | None = None
    if batch is not None:
        if remember := run.remember:
            remember(turn.step)
        output = turn.step(batch, index) if turn.step_takes_index else turn.step(batch)
        loss = loss_of(output, run)
    if clears and optimizer is not None:
        _clear_gradients(run, turn, index)
    if loss is not None:
        if type(output) is not Tensor and "weight" in output:
            loss = _weighted(loss, output["weight"], turn)
        elif share != 1:
            loss = loss / share
        if fire := hooks.on_before_backward:
            fire(loss)
        run.backward(loss)
        turn.pending += 1
        if fire := hooks.on_after_backward:
            fire()
    if stepping and turn.pending and optimizer is not None:
        _finish_gradients(run, turn)
    return output, loss


def _closure_batch(run: Run, turn: Turn, batch: Any, index: int, stepping: bool, share: int) -> Any:
    """The same for LBFGS, an optimizer not of torch's, or a module that overrides ``optimizer_step``."""
    clears, output = turn.pending == 0, _NOT_RUN

    def closure() -> Any:
        nonlocal output
        output, loss = _propagate(run, turn, batch, index, stepping, share, clears)
        return loss

    if not stepping:
        closure()
        return output
    run.optimizer_step(run.state.position.epoch, index, turn.wrapped, closure)
    if output is _NOT_RUN:
        raise MisconfigurationError(
            f"{type(run.module).__name__}.optimizer_step() did not call optimizer_closure, which trains on the "
            "batch. Call optimizer.step(closure=optimizer_closure), or optimizer_closure() alone."
        )
    turn.pending = 0
    return output


def _several_turns(run: Run, batch: Any, index: int) -> Any:
    """One batch for several optimizers, those whose turn it is, one after the other."""
    due = []
    for turn in run.turns:
        turn.stepped = False
        if (index + 1) % turn.every == 0:
            due.append(turn)
    if run.shares_step:
        return _shared_step(run, due, batch, index)
    outputs = {}
    for turn in due:
        frozen = toggle(turn.optimizer, run.optimizers)
        try:
            outputs[turn.name] = train_batch(run, batch, index, turn)
        finally:
            untoggle(frozen)
    return outputs


def _shared_step(run: Run, due: list[Turn], batch: Any, index: int) -> Any:
    """One ``training_step`` for several optimizers: it returns a loss for each, by name.

    Every loss reaches the parameters of its own optimizer alone, and no optimizer steps before the last loss is
    propagated, since that still needs the weights as they were.
    """
    hooks = run.hooks
    if batch is None or not due:
        return None
    if remember := run.remember:
        remember(run.training_step)
    output = run.training_step(batch, index) if run.step_takes_index else run.training_step(batch)
    losses = losses_of(output, run, due)
    for left, (turn, loss) in enumerate(reversed(losses), start=1 - len(losses)):
        _, share = accumulation(run, index, turn)
        if turn.pending == 0:
            _clear_gradients(run, turn, index)
        if share != 1:
            loss = loss / share
        if fire := hooks.on_before_backward:
            fire(loss)
        own = [p for group in turn.optimizer.param_groups for p in group["params"] if p.requires_grad]
        run.backward(loss, inputs=own, retain_graph=left < 0)
        turn.pending += 1
        if fire := hooks.on_after_backward:
            fire()
    for turn in due:
        stepping, _ = accumulation(run, index, turn)
        if stepping and turn.pending:
            _finish_gradients(run, turn)
            turn.advance()
            turn.stepped, turn.pending = True, 0
    return output


_NOT_RUN = object()
_NO_STEP = (
    "No optimizer has stepped in this epoch. In manual optimization training_step does it: opt = self.optimizers(), "
    "opt.zero_grad(), self.manual_backward(loss), opt.step()."
)

_NO_STEP_IN_LAST = (
    "{}.step() was called in a batch, and not in the last one of its accumulation window, so those gradients are lost. "
    "With accumulate_grad_batches={} call step() in every batch: the Trainer puts it off to the window's last one."
)


def accumulation(run: Run, index: int, turn: Turn) -> tuple[bool, int]:
    """Does the optimizer step after batch ``index``, and among how many batches is its step shared?

    The last window of an epoch may be shorter; its gradient is the mean over the batches it really has. Where its
    length is seen too late for the loss, ``_finish_gradients`` makes up for it.
    """
    window, count = run.accumulate, run.train.count
    if window == 1:
        return True, 1
    if turn.every > 1:
        # Its last turn of the epoch comes before the epoch's last batch; without a length nobody knows which it is.
        return turn.pending + 1 >= window or run.train.is_last or index + turn.every >= count, window
    if count != math.inf and index >= (tail := int(count) // window * window):
        return index + 1 == count, int(count) - tail
    return (index + 1) % window == 0 or run.train.is_last, window


def _clear_gradients(run: Run, turn: Turn, index: int) -> None:
    """Begin a window."""
    if fire := run.hooks.on_before_zero_grad:
        fire(turn.optimizer)
    if run.zero_grad is None:
        turn.clear()
    else:
        run.zero_grad(run.state.position.epoch, index, turn.optimizer)
    turn.weight = None


def _weighted(loss: Tensor, weight: Any, turn: Turn) -> Tensor:
    """A mean loss as a sum, for windows whose batches weigh differently; ``_finish_gradients`` divides by them all."""
    if isinstance(weight, Tensor):
        weight = weight.detach().to(loss.device)
    turn.weight = weight if turn.weight is None else turn.weight + weight
    weighted: Tensor = loss * weight
    return weighted


def _finish_gradients(run: Run, turn: Turn) -> None:
    """The last touches to the gradients before the optimizer steps."""
    window, optimizer = run.accumulate, turn.optimizer
    short = window != 1 and turn.pending < window and (run.train.count == math.inf or turn.every > 1)
    if short or turn.weight is not None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if turn.weight is not None:
            torch._foreach_div_(gradients, turn.weight)
        else:
            torch._foreach_mul_(gradients, window / turn.pending)
    if run.unscale is not None:
        run.unscale(optimizer)
    if fire := run.hooks.on_before_optimizer_step:
        fire(optimizer)
    if run.clip is not None:
        run.clip(optimizer)


def _manual_batch(run: Run, batch: Any, index: int) -> Any:
    """One batch in manual optimization: training_step does it all, and its optimizers know when to step."""
    run.window = _window(run, index) if run.accumulate != 1 else _NO_WINDOW
    if batch is None:
        return None
    if remember := run.remember:
        remember(run.training_step)
    steps_before = run.state.position.global_step
    output = run.training_step(batch, index) if run.step_takes_index else run.training_step(batch)
    run.without_step = run.state.position.global_step == steps_before
    if output is not None and not isinstance(output, Tensor | dict):
        raise MisconfigurationError(
            f"training_step returned {type(output).__name__}: {output!r}. "
            "In manual optimization it may return a tensor, a dict or None."
        )
    return output


_NO_WINDOW, _EACH_BATCH = Window(), Turn(None)


def _window(run: Run, index: int) -> Window:
    """What accumulation means for batch ``index`` in manual optimization."""
    window = run.accumulate
    steps, share = accumulation(run, index, _EACH_BATCH)
    if index % window == 0:
        for turn in run.turns:
            if turn.held:
                warn("LD206", _NO_STEP_IN_LAST.format(type(turn.optimizer).__name__, window))
                turn.forget()
    unforeseen = steps and run.train.count == math.inf
    return Window(steps, share, window / (index % window + 1) if unforeseen else 1.0)
