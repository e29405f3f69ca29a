"""Validation, test and prediction: one loop, three endings.

[sanity check only: on_sanity_check_start]
on_{validation,test,predict}_start
on_{...}_epoch_start
for every loader, for every batch:
    on_{...}_batch_start
    {validation,test,predict}_step
    on_{...}_batch_end
on_{...}_epoch_end
the epoch's values are reduced and go to the loggers
on_{...}_end
[sanity check only: on_sanity_check_end]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from leyden.core.batches import Batches
from leyden.core.former_hooks import with_step_end
from leyden.core.hooks import overrides, parameters_of, takes
from leyden.core.lifecycle import start_logging
from leyden.core.module import LightningModule
from leyden.core.results import numbers
from leyden.core.run import WORD, Run, in_context
from leyden.core.state import VALIDATED, Stage
from leyden.utils.errors import MisconfigurationError
from leyden.utils.lazy import LazyModule
from leyden.utils.seed import isolate_rng, rng_state
from leyden.utils.tree import tree_map

_loader_checks = LazyModule("leyden.core.loader_checks")
_preflight = LazyModule("leyden.core.preflight")
_signals = LazyModule("leyden.core.signals")

Metrics = list[dict[str, float]]


def sanity_check(run: Run) -> None:
    """Try a few validation batches before training, and leave no trace: metrics, random numbers, modes."""
    position = run.state.position
    if not run.validates or run.sanity_steps == 0 or position.batch_total or position.epoch:
        return
    with isolate_rng():
        run.state.stage = Stage.SANITY_CHECK
        if fire := run.hooks.on_sanity_check_start:
            fire()
        with torch.no_grad():
            _evaluate(run, Stage.SANITY_CHECK)
        if fire := run.hooks.on_sanity_check_end:
            fire()
    run.state.stage = Stage.TRAIN


def ready_to_validate(run: Run) -> None:
    """Ask for the validation loaders now, so that what is wrong with them or the step shows before training."""
    _loader_checks.warn_of_training_loader(run)
    if run.validates:
        with isolate_rng():
            loaders = [batches.name for batches in run.evaluation(Stage.VALIDATE)]
        _step_of(run, WORD[Stage.VALIDATE], len(loaders) > 1)
        _preflight.check_loaders_of_monitors(run, loaders)
        _loader_checks.warn_of_evaluation_loaders(run, Stage.VALIDATE)


def validate_inside_fit(run: Run) -> None:
    """Validate while training; the metrics go to callbacks, bar and loggers."""
    began = run.times.clock()
    run.renew_validation_data()
    if run.check is not None:
        run.check.settle()
    values = run.results.running_values(copy=True)
    run.before_validation = {"rng": rng_state(), "evaluated": dict(run.evaluated), **values}
    with torch.no_grad():
        _preflight.warn_of_broken_monitors(run, _evaluate(run, Stage.VALIDATE))
    run.validated_at = time.monotonic()
    run.times.add("validation", began)


def validate(run: Run) -> Metrics:
    """Validate; returns the metrics of every loader."""
    return _evaluate_alone(run, Stage.VALIDATE)


def test(run: Run) -> Metrics:
    """Test; returns the metrics of every loader."""
    return _evaluate_alone(run, Stage.TEST)


def predict(run: Run, keep: bool) -> list[list[Any]] | None:
    """Predict; returns the predictions of every loader and batch, on the CPU, if they are to be kept."""
    predictions: list[list[Any]] = []
    _evaluate_alone(run, Stage.PREDICT, predictions if keep else None)
    return predictions if keep else None


def _evaluate_alone(run: Run, stage: Stage, predictions: list[list[Any]] | None = None) -> Metrics:
    run.place_module()
    start_logging(run)
    run.evaluation(stage)  # asked for now, and looked at
    _loader_checks.warn_of_evaluation_loaders(run, stage)
    with torch.inference_mode() if run.options.inference_mode else torch.no_grad():
        found = _evaluate(run, stage, predictions)
    run.leave_device()
    return found


def _evaluate(run: Run, stage: Stage, predictions: list[list[Any]] | None = None) -> Metrics:
    """One pass over all loaders of ``stage``."""
    results, state, hooks, word = run.results, run.state, run.hooks, WORD[stage]
    loaders = run.evaluation(stage)
    several = len(loaders) > 1
    step, arity = _step_of(run, word, several)
    outer_stage, state.stage = state.stage, stage
    entered = results.enter(stage)
    with _in_evaluation_mode(run.module, word):
        if fire := getattr(hooks, f"on_{word}_start"):
            fire()
        if fire := getattr(hooks, f"on_{word}_epoch_start"):
            fire()
        for index, batches in enumerate(loaders):
            results.enter(stage, f"/{batches.name}" if several else "")
            results.hook = f"{word}_step"
            kept: list[Any] | None = None
            if predictions is not None:
                predictions.append(kept := [])
            _evaluate_loader(run, stage, batches, index, step, arity, kept)
            if several:
                results.end_loader()
        results.enter(stage)
        results.begin_batch(None)
        results.ended = True
        if fire := getattr(hooks, f"on_{word}_epoch_end"):
            fire()
        found = _reduce(run, stage, [batches.name for batches in loaders])
        if outer_stage is Stage.TRAIN and stage is Stage.VALIDATE:
            state.position.tail = VALIDATED
        if fire := getattr(hooks, f"on_{word}_end"):
            fire()

    results.leave(entered)
    state.stage = outer_stage
    return found


def _evaluate_loader(
    run: Run,
    stage: Stage,
    batches: Batches,
    loader_index: int,
    step: Callable[..., Any],
    arity: int,
    kept: list[Any] | None,
) -> None:
    """The batches of one loader."""
    results, word, state, name = run.results, WORD[stage], run.state, batches.name
    batch_start = getattr(run.hooks, f"on_{word}_batch_start")
    batch_end = getattr(run.hooks, f"on_{word}_batch_end")
    sends_steps, evaluated = stage is not Stage.SANITY_CHECK, run.evaluated.get(name, 0)
    if stage is not Stage.SANITY_CHECK:
        batches.begin_epoch(state.position.epoch)
    for index, batch in enumerate(batches.run(loader_index)):
        results.begin_batch(batch)
        if batch_start is not None:
            batch_start(batch, index, loader_index)
        if arity == 2:
            output = step(batch, index)
        elif arity == 1:
            output = step(batch)
        else:
            output = step(batch, index, loader_index)
        if batch_end is not None:
            batch_end(output, batch, index, loader_index)
        if kept is not None:
            kept.append(_on_cpu(output))
        if sends_steps:
            if results.by_step:
                run.send(results.step_metrics(), evaluated, with_epoch=False)  # another axis
            run.evaluated[name] = evaluated = evaluated + 1
        if state.signal:
            _signals.stop(run)


def _reduce(run: Run, stage: Stage, loaders: list[str]) -> Metrics:
    """The epoch's values, by loader; values logged outside the loaders' batches belong to each of them."""
    results = run.results
    if stage is Stage.SANITY_CHECK:
        results.forget(stage)
        return []
    shared = results.end_epoch()
    by_loader = [shared]
    if len(loaders) > 1:
        by_loader = []
        for name in loaders:
            results.enter(stage, f"/{name}")
            by_loader.append({**results.end_epoch(), **shared})
        results.enter(stage)
    merged = {name: value for metrics in by_loader for name, value in metrics.items()}
    run.send(merged, run.log_step if run.fn == "fit" else run.state.position.stepped_batches)
    return [numbers(metrics) for metrics in by_loader]


def _step_of(run: Run, word: str, several: bool) -> tuple[Callable[..., Any], int]:
    """The module's step, and how many of (batch, batch_idx, dataloader_idx) it takes."""
    name = f"{word}_step"
    step = getattr(run.module, name)
    if several:
        if not takes(step, 3):
            raise MisconfigurationError(
                f"{type(run.module).__name__}.{name}{parameters_of(step)} gets several loaders, so it must take "
                "(batch, batch_idx, dataloader_idx)."
            )
        arity = 3
    else:
        arity = next((count for count in (2, 1, 3) if takes(step, count)), 0)
        if not arity:
            raise MisconfigurationError(
                f"{type(run.module).__name__}.{name}{parameters_of(step)} must take (batch) or (batch, batch_idx) or "
                "(batch, batch_idx, dataloader_idx)."
            )
    bound = in_context(step, run.precision) if run.precision.has_context else step
    return run.timed(name, with_step_end(bound, run.module, f"{name}_end", run.results)), arity


@contextmanager
def _in_evaluation_mode(module: LightningModule, word: str) -> Iterator[None]:
    """Inside in evaluation mode; afterwards, whatever happens, every submodule is in the mode it had.

    So layers that were frozen in evaluation mode stay so, and a run that was broken off goes on in training mode.
    """
    modes = [(part, part.training) for part in module.modules()]
    getattr(module, f"on_{word}_model_eval")()
    try:
        yield
    except BaseException:
        _set_modes(modes)
        raise
    hook = f"on_{word}_model_train"
    if overrides(module, hook, LightningModule) and hasattr(module, hook):
        getattr(module, hook)()
    else:
        _set_modes(modes)


def _set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for part, training in modes:
        part.training = training


def _on_cpu(output: Any) -> Any:
    """``output`` with its tensors on the CPU, and without their graph."""
    if type(output) is Tensor and output.is_cpu and not output.requires_grad:
        return output
    return tree_map(_to_cpu, output)


def _to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()
