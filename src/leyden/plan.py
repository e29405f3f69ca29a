"""Trainer.plan: what a fit would do, worked out by walking through its loop without training."""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from leyden.callbacks.early_stopping import EarlyStopping
from leyden.callbacks.model_checkpoint import Checkpoint, ModelCheckpoint
from leyden.callbacks.monitoring import looks_at_train_epoch_end
from leyden.core.callback import Callback
from leyden.core.due import must_stop, scheduler_is_due, validates_in_this_epoch, validation_is_due
from leyden.core.evaluate import ready_to_validate
from leyden.core.hooks import HOOKS, overrides
from leyden.core.lifecycle import fail, finish, prepare
from leyden.core.module import LightningModule
from leyden.core.optimizers import LRSchedulerConfig, Turn
from leyden.core.preflight import check_optimization, check_schedules
from leyden.core.run import Run
from leyden.core.state import Stage
from leyden.core.train_batch import accumulation

# Where the walk ends though the run would go on.
MOST_BATCHES = 1_000_000
EPOCHS_OF_AN_ENDLESS_RUN = 10
_COLUMNS = 48
_BARS = "▁▂▃▄▅▆▇█"
_EACH_BATCH = Turn(None)


@dataclass(repr=False)
class Plan:
    """What a fit would do if no callback ends it before; ``str(plan)`` is for people.

    Attributes:
        epochs: Epochs that begin.
        batches_per_epoch: ``inf`` when that is not known before the end of the loader.
        steps: Optimizer steps; None in manual optimization, where ``training_step`` takes them.
        whole: All of the run is here. False for its beginning: it has no end in sight, or a million batches and more.
        end: Why it ends, for people.
        sanity_check: Batches of each validation loader that are tried before training.
        validation_batches: Batches of each validation loader.
        validations: After how many training batches, in all epochs together, each validation runs; empty where the
            clock says so.
        logged: The x-axis of every time that step values go to the loggers.
        checkpoints: For every ModelCheckpoint, by class name (``-1``, ``-2`` for more), the optimizer steps after
            which it considers one. One triggered by steps whose metric comes from validation waits for the next.
        scheduler_steps: How often each scheduler steps, in order; None for one that watches a metric.
        learning_rates: The rate of every optimizer step, by optimizer and parameter group.
        without_rates: Why there are no rates though there are optimizers: they, or schedulers, cannot be copied.
        hooks: The events that somebody listens to and the steps, in order, each batch and epoch once.
    """

    epochs: int = 0
    batches_per_epoch: int | float = 0
    steps: int | None = 0
    whole: bool = True
    end: str = ""
    sanity_check: list[int | float] = field(default_factory=list)
    validation_batches: list[int | float] = field(default_factory=list)
    validations: list[int] = field(default_factory=list)
    logged: list[int] = field(default_factory=list)
    checkpoints: dict[str, list[int]] = field(default_factory=dict)
    scheduler_steps: list[int | None] = field(default_factory=list)
    learning_rates: dict[str, list[float]] = field(default_factory=dict)
    without_rates: str = ""
    hooks: list[str] = field(default_factory=list)
    text: str = ""

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Plan(epochs={self.epochs}, steps={self.steps}, validations={len(self.validations)})"


def make_plan(run: Run) -> Plan:
    """Plan the fit that ``run`` was made for; it cannot be used afterwards.

    Datamodule and module are set up and torn down as in a fit, and make their optimizers and loaders; callbacks,
    loggers and devices are left alone, and nothing is read from a loader.
    """
    callbacks, run.callbacks, run.loggers = run.callbacks, [], []
    try:
        prepare(run)
        run.prepare_training()
        run.callbacks = callbacks
        check_optimization(run)
        plan, fresh = Plan(), not run.state.position.batch_total and not run.state.position.epoch
        run.state.stage = Stage.TRAIN
        if run.options.limit_train_batches == 0:
            plan.end = "limit_train_batches=0"
        elif must_stop(run):
            plan.end = run.state.stop_reason
        else:
            run.load_training_data()
            check_schedules(run)
            ready_to_validate(run)
            _Walk(run, plan).go()
        outline = _order(run, fresh)
        plan.hooks = [name for _, name, who in outline if who]
        plan.text = _text(run, plan, outline)
        run.callbacks = []
    except BaseException as error:
        run.callbacks = []
        fail(run, error)
        raise
    finish(run)
    return plan


class _Walk:
    """The training loop with nothing in it: positions go on, schedulers step on copies of the optimizers."""

    def __init__(self, run: Run, plan: Plan) -> None:
        self.run, self.plan = run, plan
        self.automatic = run.module.automatic_optimization
        names = Counter[str]()
        self.checkpoints: list[tuple[ModelCheckpoint, list[int]]] = []
        for callback in run.callbacks:
            if isinstance(callback, ModelCheckpoint):
                self.checkpoints.append((callback, plan.checkpoints.setdefault(_numbered(callback, names), [])))
        self.groups: list[tuple[int, Any, list[float]]] = []
        self.counts: dict[int, int] = {}
        self._copy_optimizers()

    def _copy_optimizers(self) -> None:
        """Put copies of optimizers and schedulers in the run; parameters and what is as large are not copied."""
        run, names = self.run, Counter[str]()
        shared: dict[int, Any] = {id(thing): thing for thing in (run.module, run.trainer, run.datamodule)}
        for optimizer in run.optimizers:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                shared[id(parameter)] = nn.Parameter(parameter.detach().new_zeros(()), requires_grad=False)
            states = (value for state in optimizer.state.values() for value in state.values())
            shared |= {id(value): value for value in states if isinstance(value, Tensor)}
        try:
            optimizers, schedulers = copy.deepcopy((run.optimizers, [c.scheduler for c in run.schedulers]), shared)
        except Exception as error:  # a scheduler that holds an open file, say
            self.plan.without_rates = f"not known: {type(error).__name__}: {error}"
            return
        run.optimizers = optimizers
        configs, turn_of = [], {}
        for config, scheduler in zip(run.schedulers, schedulers, strict=True):
            configs.append(copy.copy(config))
            configs[-1].scheduler = scheduler
            turn_of[id(configs[-1])] = run.turn_of[id(config)]
        run.schedulers, run.turn_of = configs, turn_of
        for index, optimizer in enumerate(run.optimizers):
            name = run.turns[index].name or _numbered(optimizer, names)
            for number, group in enumerate(optimizer.param_groups, 1):
                label = f"{name}/pg{number}" if len(optimizer.param_groups) > 1 else name
                self.groups.append((index, group, self.plan.learning_rates.setdefault(label, [])))

    def go(self) -> None:
        run, plan, position = self.run, self.plan, self.run.state.position
        count = plan.batches_per_epoch = run.train.count
        plan.validation_batches = run.evaluation_counts(Stage.VALIDATE)
        if run.validates and run.sanity_steps and not position.batch_total and not position.epoch:
            plan.sanity_check = [batches.count for batches in run.evaluation(Stage.SANITY_CHECK)]
        first_step, first_batch, first_epoch = position.global_step, position.batch_total, position.epoch
        plan.steps = None
        endless = run.options.max_epochs in (None, -1) and (run.options.max_steps == -1 or not self.automatic)
        plan.whole = not endless and (count != math.inf or (self.automatic and run.options.max_steps != -1))
        left = MOST_BATCHES if plan.whole or count != math.inf else 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, that no optimizer steps here
            while left > 0 and not must_stop(run):
                if endless and position.epoch - first_epoch == EPOCHS_OF_AN_ENDLESS_RUN:
                    break
                plan.epochs += 1
                self._epoch(left)
                left = MOST_BATCHES - (position.batch_total - first_batch)
        plan.end = run.state.stop_reason
        plan.whole = plan.whole and bool(plan.end)
        plan.steps = position.global_step - first_step if self.automatic else None
        plan.scheduler_steps = [
            None if config.reduce_on_plateau or not self.automatic else self.counts.get(id(config), 0)
            for config in run.schedulers
        ]
        if not self.automatic:
            plan.learning_rates = {name: [] for name in plan.learning_rates}

    def _epoch(self, most: int) -> None:
        """The rest of an epoch, as ``train_epoch`` goes through it, and at most so many batches."""
        run, train, position = self.run, self.run.train, self.run.state.position
        validates = validates_in_this_epoch(run) and run.validation_seconds == math.inf
        max_steps, count = run.options.max_steps, train.count
        train.is_last = False
        for _ in range(most):
            index = position.batch
            if index >= count:
                train.is_last = True
                break
            train.is_last = index + 1 == count
            before = position.global_step
            stepped = self._batch(index)
            self._consider_by_step(before)
            if stepped:
                position.stepped_batches += 1
                if run.log_every and position.stepped_batches % run.log_every == 0:
                    self.plan.logged.append(run.log_step)
            if validates and validation_is_due(run, index):
                self.plan.validations.append(position.batch_total)
                self._consider_by_epoch(at_epoch_end=False)
            if self.automatic and position.global_step >= max_steps != -1:
                break
            if train.is_last:
                break
        else:
            return  # the walk ends here, not the epoch
        self._consider_by_epoch(at_epoch_end=True)
        for turn in run.turns:
            turn.pending = 0
        if train.is_last:
            position.end_epoch()

    def _batch(self, index: int) -> bool:
        """One batch; True when it counts as a step for the loggers."""
        run, position = self.run, self.run.state.position
        for turn in run.turns if self.automatic else ():
            turn.stepped = False
            if (index + 1) % turn.every == 0:
                turn.stepped, _ = accumulation(run, index, turn)
                turn.pending = 0 if turn.stepped else turn.pending + 1
        for number, group, rates in self.groups if self.automatic else ():
            if run.turns[number].stepped:
                rates.append(float(group["lr"]))
        if self.automatic:
            stepped = any(turn.stepped for turn in run.turns)
        else:
            stepped, _ = accumulation(run, index, _EACH_BATCH)
        position.global_step += stepped and self.automatic
        position.batch += 1
        for config in run.schedulers if self.automatic else ():
            if scheduler_is_due(run, config, index):
                self.counts[id(config)] = self.counts.get(id(config), 0) + 1
                self._step(config)
        return stepped

    def _step(self, config: LRSchedulerConfig) -> None:
        if self.plan.without_rates:
            return
        try:
            self.run.module.lr_scheduler_step(config.scheduler, None)
        except ValueError:  # a OneCycleLR at its end, of which check_schedules has warned
            self.counts[id(config)] -= 1

    def _consider_by_step(self, before: int) -> None:
        step = self.run.state.position.global_step
        for callback, considered in self.checkpoints:
            every = callback.every_n_train_steps
            if every and step // every > before // every:
                self._consider(callback, considered)

    def _consider_by_epoch(self, at_epoch_end: bool) -> None:
        epoch = self.run.state.position.epoch
        for callback, considered in self.checkpoints:
            every = callback.every_n_epochs
            looks_then = looks_at_train_epoch_end(self.run.trainer, callback.save_on_train_epoch_end)
            if every and looks_then is at_epoch_end and (epoch + 1) % every == 0:
                self._consider(callback, considered)

    def _consider(self, callback: ModelCheckpoint, considered: list[int]) -> None:
        step = self.run.state.position.global_step
        saves = callback.save_top_k or callback.save_last
        if saves and not self.run.options.fast_dev_run and step and considered[-1:] != [step]:
            considered.append(step)


def _numbered(thing: object, names: Counter[str]) -> str:
    """The name of a thing's class, with ``-1`` for the second one, and so on."""
    name = type(thing).__name__
    names[name] += 1
    return name if names[name] == 1 else f"{name}-{names[name] - 1}"


# The order of events.


def _order(run: Run, fresh: bool) -> list[tuple[int, str, str]]:
    """Depth, event and who listens to it, in the order of the docstrings of fit.py and evaluate.py; headings too.

    Args:
        run: The fit.
        fresh: It does not go on from an earlier one.
    """
    validation = [
        *((0, f"on_validation_{event}") for event in ("start", "epoch_start")),
        (0, "for every validation batch:"),
        *((1, name) for name in ("on_validation_batch_start", "validation_step", "on_validation_batch_end")),
        *((0, f"on_validation_{event}") for event in ("epoch_end", "end")),
    ]
    events: list[tuple[int, str]] = [(0, "on_fit_start")]
    if run.validates and run.sanity_steps and fresh:
        inside = [(depth + 1, name) for depth, name in validation]
        events += [(0, "sanity check:"), (1, "on_sanity_check_start"), *inside, (1, "on_sanity_check_end")]
    events += [(0, "on_train_start"), (0, "for every epoch:"), (1, "on_train_epoch_start"), (1, "for every batch:")]
    by_batch = ["on_train_batch_start", "training_step"]
    if run.module.automatic_optimization:
        by_batch += ["on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"]
    events += [(2, name) for name in (*by_batch, "on_train_batch_end")]
    if run.validates:
        events += [(2, "validation, when due:"), *((depth + 3, name) for depth, name in validation)]
    events += [(1, "on_train_epoch_end"), (0, "on_train_end"), (0, "on_fit_end")]
    outline = []
    for depth, name in events:
        who = _listeners(run, name)
        if who or name.endswith(":"):
            outline.append((depth, name, who))
    return outline


def _listeners(run: Run, name: str) -> str:
    if name.endswith(":"):
        return ""
    if name not in HOOKS:
        return type(run.module).__name__
    first = [c for c in run.callbacks if overrides(c, name, Callback)]
    last = []
    if name == "on_train_epoch_end":
        last = [c for c in first if getattr(c, "monitors", False)]
        first = [c for c in first if c not in last]
    module = [run.module] if overrides(run.module, name, LightningModule) else []
    return ", ".join(type(owner).__name__ for owner in (*first, *module, *last))


# For people.


def _text(run: Run, plan: Plan, outline: list[tuple[int, str, str]]) -> str:
    lines = [f"Plan of fit({type(run.module).__name__})", ""]
    lines += [f"{title:<15} {line}".rstrip() for title, line in _rows(run, plan)]
    lines += ["", "Order of events, and who listens"]
    lines += [f"  {'  ' * depth + name:<40} {who}".rstrip() for depth, name, who in outline]
    return "\n".join(lines)


def _rows(run: Run, plan: Plan) -> Iterator[tuple[str, str]]:
    if not plan.epochs:
        yield "training", f"none: {plan.end or 'its length is not known. Give max_epochs or max_steps'}"
        return
    options = run.options
    known = plan.batches_per_epoch != math.inf
    length = f"of {plan.batches_per_epoch} batches" if known else "as long as the loader; taken as endless here"
    start = "" if plan.whole else ", as far as planned"
    yield "training", f"{_count(plan.epochs, 'epoch')} {length}{start}"
    window = f", of {run.accumulate} batches each" if run.accumulate > 1 else ""
    if plan.steps is None:
        yield "steps", "not known: training_step takes them (manual optimization)"
    else:
        by_epoch = f", {math.ceil(plan.batches_per_epoch / run.accumulate)} an epoch" if known else ""
        turns = [turn.every for turn in run.turns]
        yield "steps", f"{_count(plan.steps, 'optimizer step')}{by_epoch if turns == [1] else ''}{window}"
    yield "end", plan.end or "not in sight: planned is the beginning"
    for callback in run.callbacks:
        if getattr(callback, "may_end_training", False):
            yield "", f"or before: {_stopper(run, callback)}"
    if plan.sanity_check:
        yield "sanity check", f"{_listed(plan.sanity_check)} validation batches before training"
    if run.validates and run.validation_seconds != math.inf:
        yield "validation", f"every {timedelta(seconds=run.validation_seconds)}"
    elif plan.validations:
        batches = f"{_listed(plan.validation_batches)} batches"
        yield "validation", f"{len(plan.validations)} times {batches}, after training batch {_some(plan.validations)}"
    else:
        yield "validation", "none"
    yield "step values", _logging(run, plan)
    for callback, (name, considered) in zip(
        [c for c in run.callbacks if isinstance(c, ModelCheckpoint)], plan.checkpoints.items(), strict=True
    ):
        yield "checkpoints", f"{name}: {_checkpoint(callback, considered)}"
    for callback in run.callbacks:
        if isinstance(callback, Checkpoint) and not isinstance(callback, ModelCheckpoint):
            yield "checkpoints", f"{type(callback).__name__}, by its own rules"
    for config, calls in zip(run.schedulers, plan.scheduler_steps, strict=True):
        yield "scheduler", _scheduler(config, calls)
    if plan.without_rates:
        yield "learning rate", plan.without_rates
    for name, rates in plan.learning_rates.items():
        yield "learning rate", f"{name} {_curve(rates)}"
    if options.max_steps != -1 and plan.steps is None:
        yield "", f"max_steps={options.max_steps} may end it before"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(counts: Sequence[int | float]) -> str:
    return " + ".join("?" if count == math.inf else str(count) for count in counts)


def _some(numbers: Sequence[int]) -> str:
    """All numbers, or the first few and the last."""
    if len(numbers) <= 6:
        return ", ".join(map(str, numbers))
    return f"{', '.join(map(str, numbers[:4]))}, ..., {numbers[-1]}"


def _stopper(run: Run, callback: Callback) -> str:
    if not isinstance(callback, EarlyStopping):
        return f"{type(callback).__name__}, by the clock"
    at_end = looks_at_train_epoch_end(run.trainer, callback.check_on_train_epoch_end)
    when = "each training epoch" if at_end else "each validation"
    return f"EarlyStopping looks at {callback.monitor} ({callback.mode}) after {when}, patience {callback.patience}"


def _logging(run: Run, plan: Plan) -> str:
    if not run.log_every or not run.trainer.loggers:
        return "go to no logger" + (" (log_every_n_steps=0)" if not run.log_every else "")
    names = ", ".join(type(logger).__name__ for logger in run.trainer.loggers)
    if not plan.logged:
        return f"never reach {names}: log_every_n_steps={run.log_every} is more than the run's steps"
    return f"to {names} {_count(len(plan.logged), 'time')}, at x = {_some(plan.logged)}"


def _checkpoint(callback: ModelCheckpoint, considered: list[int]) -> str:
    if callback.train_time_interval is not None:
        when = f"considered every {callback.train_time_interval}"
    elif not considered:
        when = "considered never"
    else:
        when = f"considered {_count(len(considered), 'time')}, after step {_some(considered)}"
    if callback.monitor is None:
        kept = {-1: "all kept", 1: "the latest kept"}.get(callback.save_top_k, "")
    else:
        k = callback.save_top_k
        best = "all kept, ranked" if k == -1 else "the best kept" if k == 1 else f"the best {k} kept"
        kept = f"{best} by {callback.monitor} ({callback.mode})" if k else ""
    return "; ".join(filter(None, (when, kept, "a copy is last.ckpt" if callback.save_last else "")))


def _scheduler(config: LRSchedulerConfig, calls: int | None) -> str:
    name = type(config.scheduler).__name__
    unit = "epoch" if config.interval == "epoch" else "optimizer step"
    often = f"every {unit}" if config.frequency == 1 else f"every {config.frequency} {unit}s"
    if config.reduce_on_plateau:
        return f"{name} looks at {config.monitor} after {often}: what it does is not known beforehand"
    return f"{name} by training_step" if calls is None else f"{name} after {often}, {_count(calls, 'time')}"


def _curve(rates: list[float]) -> str:
    if not rates:
        return "not known"
    low, high = min(rates), max(rates)
    if low == high:
        return f"{low:.4g} throughout"
    width = min(_COLUMNS, len(rates))
    edges = [len(rates) * column // width for column in range(width + 1)]
    means = [sum(rates[a:b]) / (b - a) for a, b in pairwise(edges)]
    bars = "".join(_BARS[round((mean - low) / (high - low) * (len(_BARS) - 1))] for mean in means)
    return f"{bars} first {rates[0]:.4g}, last {rates[-1]:.4g}, least {low:.4g}, most {high:.4g}"
