"""One training batch where more is asked for than forward, backward, step: accumulation, hooks, several optimizers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from leyden.core.optimizers import Turn, Window, toggle, untoggle
from leyden.core.outputs import loss_of, losses_of
from leyden.core.run import Run
from leyden.utils.errors import MisconfigurationError, warn


def train_batch(run: Run, batch: Any, index: int, turn: Turn | None = None) -> Any:
    """Forward and backward on one batch; step the optimizer when enough gradients have accumulated."""
    if turn is None:
        turn = run.turns[0]
    stepping, share = (True, 1) if run.accumulate == 1 else accumulation(run, index, turn)
    turn.stepped = False
    if turn.closure_first:  # torch's optimizers: the same result as step(closure), four frames fewer
        output, _ = _propagate(run, turn, batch, index, stepping, share, turn.pending == 0)
        if stepping:
            _end_window(turn)
        return output
    return _closure_batch(run, turn, batch, index, stepping, share)


def _propagate(
    run: Run, turn: Turn, batch: Any, index: int, stepping: bool, share: int, clears: bool
) -> tuple[Any, Tensor | None]:
    """Forward and backward; returns what the step returned, and the loss as it was propagated."""
    output: Any = None
    loss: Tensor | None = None
    if batch is not None:
        if remember := run.remember:
            remember(turn.step)
        output = turn.step(batch, index) if turn.step_takes_index else turn.step(batch)
        loss = loss_of(output, run)
    return output, _learn_from(run, turn, output, loss, index, stepping, share, clears)


def learn_from_output(run: Run, turn: Turn, output: Any, index: int) -> bool:
    """What is left of a plain step whose ``output`` is no plain loss; returns if the optimizer stepped."""
    turn.stepped = False
    _learn_from(run, turn, output, loss_of(output, run), index, True, 1, True)
    _end_window(turn)
    return turn.stepped


def _learn_from(
    run: Run, turn: Turn, output: Any, loss: Tensor | None, index: int, stepping: bool, share: int, clears: bool
) -> Tensor | None:
    """Backward, and all that comes between its parts; returns the loss as it was propagated."""
    hooks, optimizer = run.hooks, turn.optimizer
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
    return loss


def _end_window(turn: Turn) -> None:
    """End a window."""
    turn.stepped = turn.optimizer is None or turn.pending > 0  # none are, where every batch of it was skipped
    if turn.pending and turn.optimizer is not None:
        turn.advance()
    turn.pending = 0


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


def several_turns(run: Run, batch: Any, index: int) -> Any:
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
    run.before_step(optimizer)


def manual_batch(run: Run, batch: Any, index: int) -> Any:
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
