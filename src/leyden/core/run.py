"""Run: one fit, validate, test or predict, with everything it needs resolved before its loop begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from operator import methodcaller
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import LBFGS, Optimizer
from torch.optim import optimizer as torch_optimizer

from leyden.core.backward import resolve_backward
from leyden.core.batches import (
    Batches,
    Source,
    TrainBatches,
    one_loader,
    resolve_transfer,
    several_loaders,
    without_shuffling,
)
from leyden.core.callback import Callback
from leyden.core.former_hooks import adapted, with_step_end
from leyden.core.hooks import Hooks, overrides, resolve, takes, untimed
from leyden.core.module import LightningModule
from leyden.core.optimizers import LRSchedulerConfig, SteppingOptimizer, Turn, Window, named_turns, uniform
from leyden.core.results import Results, numbers
from leyden.core.state import Fn, RunState, Stage
from leyden.fabric.precision import Precision
from leyden.fabric.strategies.strategy import Strategy
from leyden.utils.durations import parse_duration
from leyden.utils.dynamo import compiler_put_off
from leyden.utils.errors import MisconfigurationError, warn
from leyden.utils.lazy import LazyModule

if TYPE_CHECKING:
    from leyden.core.datamodule import LightningDataModule
    from leyden.core.times import Times
    from leyden.loggers.guard import LoggerGuard
    from leyden.loggers.logger import Logger

_compiling = LazyModule("leyden.core.compiling")
_direct_step = LazyModule("leyden.core.direct_step")
_finite = LazyModule("leyden.core.finite")
_fused = LazyModule("leyden.core.fused")
_guard = LazyModule("leyden.loggers.guard")
_time_report = LazyModule("leyden.core.time_report")
_times = LazyModule("leyden.core.times")

# Kinds of devices on which torch's fused optimizers are what an optimizer is given that was not told how to step.
FUSED_ON = ("cuda",)
# Which loaders each loop reads, which step it calls, and how its hooks and limits are called.
KIND = {
    Stage.TRAIN: "train",
    Stage.SANITY_CHECK: "val",
    Stage.VALIDATE: "val",
    Stage.TEST: "test",
    Stage.PREDICT: "predict",
}
WORD = {
    Stage.TRAIN: "train",
    Stage.SANITY_CHECK: "validation",
    Stage.VALIDATE: "validation",
    Stage.TEST: "test",
    Stage.PREDICT: "predict",
}


class Run:
    """One fit, validate, test or predict.

    Made by the Trainer, prepared by lifecycle.py, driven by fit.py and evaluate.py. What changes while it goes on is in
    ``state`` and ``results``; the rest is bound before the loop.

    Attributes:
        options: The Trainer's options.
        state: Where training stands; shared by all runs of one Trainer.
        strategy: The device, and what it takes to be on it.
        precision: The strategy's number types.
        hooks: The events somebody listens to.
        results: What is logged.
        guard: Calls the loggers.
        training_step: The module's, as the closure calls it.
        optimizer_step: The module's.
        step_scheduler: The module's ``lr_scheduler_step``.
        step_takes_index: ``training_step`` wants ``batch_idx`` too.
        turns: The optimizers' parts in automatic optimization.
        turn_of: The turn of a scheduler's optimizer, by the scheduler config's ``id``.
        shares_step: One ``training_step`` gives the losses of several optimizers.
        accumulate: Batches whose gradients make one optimizer step.
        window: What that means for the batch in work, in manual optimization.
        validation_seconds: Time between validations where ``val_check_interval`` is one, else ``inf``.
        validated_at: When the last validation ended, or training began, by ``time.monotonic``.
        validation_is_due: Says whether validation runs after a batch; None in epochs without.
        before_validation: What a validation changes and its repetition needs, as it was when the last one began.
        evaluated: Batches evaluated in all passes of this run, by loader: the x-axis of what evaluation logs by step.
        without_step: In manual optimization, no optimizer stepped in the last batch, so its gradients may be needed.
        listening: Who notes the signals that ask this run to stop.
        stopped: It has stopped for one, between two batches.
        since_validation: Seconds from the last validation to the checkpoint to go on from.
        checkpoint: The checkpoint to go on from; None when there is none.
        loader_state: The training loader's own state in it.
        check: Looks at every loss before it is propagated; None where nobody wants that.
        unscale: The precision's; None where it does nothing.
        remember: Told of every training step as it begins, for the check; None where it need not be.
        unguarded: ``backward`` of a plain loss without the check, where the loop itself looks at the loss; else None.
        plain_backward: ``backward`` for the loop itself, while a batch takes forward, backward, the optimizer's step,
            and nothing that comes between; else None.
        looks: The loop looks if a plain loss is finite.
        replaced: Other optimizers have come in during the epoch in work.
        max_steps: Training ends at so many optimizer steps.
        compiling: Compiles the training step; None where nobody wants that.
        times: What the time of this run goes into.
    """

    train: TrainBatches
    training_step: Callable[..., Any]
    backward: Callable[..., None]
    optimizer_step: Callable[..., Any]
    step_scheduler: Callable[..., Any]

    def __init__(
        self,
        *,
        trainer: Any,
        fn: Fn,
        options: Any,
        module: LightningModule,
        datamodule: LightningDataModule | None,
        callbacks: list[Callback],
        loggers: list[Logger],
        state: RunState,
        strategy: Strategy,
        sources: dict[str, Source],
    ) -> None:
        self.times: Times = _times.Times(self)
        self.trainer = trainer
        self.fn = fn
        self.options = options
        self.module = module
        self.datamodule = datamodule
        self.callbacks = callbacks
        self.loggers = loggers
        self.state = state
        self.strategy = strategy
        self.precision = strategy.precision
        self.sources = sources
        self.results = Results(module)
        self.hooks = Hooks()
        self.guard: LoggerGuard = _guard.LoggerGuard()
        self.checkpoint: dict[str, Any] | None = None
        self.check: Any = None
        self.remember: Callable[..., Any] | None = None
        self.unguarded: Callable[..., None] | None = None
        self.plain_backward: Callable[..., None] | None = None
        self.looks = False
        self.replaced = False
        self.max_steps: int | float = math.inf
        self.compiling: Any = None

        self.optimizers: list[Optimizer] = []
        self.wrapped_optimizers: list[SteppingOptimizer] = []
        self.schedulers: list[LRSchedulerConfig] = []
        self.step_takes_index = True
        self.accumulate = 1
        self.window = Window()
        self.turns: list[Turn] = []
        self.turn_of: dict[int, Turn] = {}
        self.shares_step = False
        self.clip: Callable[[Optimizer], Any] | None = None
        self.unscale: Callable[[Optimizer], None] | None = None
        self.zero_grad: Callable[[int, int, Optimizer], Any] | None = None
        self.validation_interval: int | float = math.inf
        self.validation_seconds = math.inf
        self.validated_at = self.since_validation = 0.0
        self.validation_is_due: Callable[[Run, int], bool] | None = None
        self.before_validation: dict[str, Any] = {}
        self.evaluated: dict[str, int] = {}
        self.without_step = False
        self.listening: Any = None
        self.stopped = False
        self.log_every = 0

        self.loader_state: dict[str, Any] = {}
        self._evaluation: dict[Stage, list[Batches]] = {}
        self._asked_in: dict[str, int] = {}  # the period of loaders, by kind
        self._transfer: Any = None
        self._resolved_for: list[Callback] = []
        self._device_before = module.device

    # For profiling.py, which measures what is bound. Without a profiler nothing is added.

    def begin(self) -> None:
        """The run begins."""

    def end(self) -> None:
        """The run is over, well or not."""

    def timed(self, action: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, which a profiler knows as ``action``."""
        return untimed(action, call)

    def hook(self, owner: object, name: str) -> Callable[..., Any]:
        """The method ``name`` of module, datamodule or a callback, for one call."""
        method: Callable[..., Any] = getattr(owner, name)
        return method

    # Bound before the loop.

    def resolve_hooks(self) -> None:
        """Bind the hooks of callbacks and module, and let callbacks log."""
        self.hooks = resolve(self.trainer, self.module, self.callbacks, LightningModule, self.results, self.timed)
        self.let_log()
        self._resolved_for = list(self.callbacks)

    def let_log(self) -> None:
        """Give callbacks and all LightningModules in the module their ``self.log``."""
        for owner in () if self.options.barebones else (*self.module.modules(), *self.callbacks):
            if isinstance(owner, LightningModule | Callback):
                owner.__dict__["_results"] = self.results

    def resolve_changed_hooks(self) -> None:
        """Bind the hooks anew when somebody has changed the list of callbacks."""
        if self.callbacks != self._resolved_for:
            self.resolve_hooks()

    def place_module(self) -> None:
        """Put the module on the device in its number type; resolve how batches get there."""
        self.strategy.setup_module(self.module)
        fast = self.options.fast_paths
        self._transfer = resolve_transfer(self.module, self.datamodule, LightningModule, self.strategy, fast)

    def prepare_training(self) -> None:
        """Make the optimizers and bind everything that a training step calls."""
        module, options, precision = self.module, self.options, self.precision
        self.check = _finite.make_check(self)
        with compiler_put_off():
            returned = self.hook(module, "configure_optimizers")()
        if named := named_turns(returned):
            for name, (value, every) in named.items():
                self._take_optimizers(value, name, every)
        else:
            self._take_optimizers(returned, "", 1)
        if module.automatic_optimization and len(self.optimizers) > 1 and not named:
            raise MisconfigurationError(
                f"configure_optimizers returned {len(self.optimizers)} optimizers without names. Return a dict, as "
                "{'generator': ..., 'discriminator': ...}, and from training_step a dict of losses under the same "
                "names; or set self.automatic_optimization = False and step them in training_step."
            )
        if options.compile is not None:
            self.compiling = _compiling.Compiling(self)
        self.prefer_fused()
        self.training_step, self.step_takes_index = self._bind(module.training_step)
        self._bind_turns()
        plainly = _leaves_as_is(precision, "backward", "scale")
        self.backward = resolve_backward(self.strategy.device, options.fast_paths) if plainly else precision.backward
        self.unscale = None if _leaves_as_is(precision, "unscale") else precision.unscale
        if overrides(module, "backward", LightningModule):
            backward = self._method("backward")
            self.backward = lambda loss, **options: backward(precision.scale(loss), **options)
        if self.check is not None:
            self.check.arm(self.optimizers)
            self.check.watch()
        if overrides(module, "optimizer_zero_grad", LightningModule):
            self.zero_grad = self._method("optimizer_zero_grad")
        self.optimizer_step = self._method("optimizer_step")
        self.step_scheduler = self._method("lr_scheduler_step")
        self.clip = self._resolve_clipping()
        self.accumulate = options.accumulate_grad_batches
        self.follow(options)
        self.log_every = 50 if options.log_every_n_steps is None else options.log_every_n_steps

    def resolve_plain_step(self) -> None:
        """Find out if a batch takes nothing but forward, backward and the optimizer's step, until somebody asks."""
        turn, hooks = self.turns[0], self.hooks
        inside = (
            *(hooks.on_before_zero_grad, hooks.on_before_backward),
            *(hooks.on_after_backward, hooks.on_before_optimizer_step),
        )
        plain = (
            self.module.automatic_optimization
            and not self.replaced
            and len(self.turns) == 1
            and turn.optimizer is not None
            and turn.closure_first
            and turn.step_takes_index
            and self.accumulate == 1
            and self.compiling is None
            and not any((*inside, self.zero_grad, self.unscale, self.clip))
        )
        self.looks = plain and self.unguarded is not None and self.check is not None
        self.plain_backward = (self.unguarded or self.backward) if plain else None

    def follow(self, options: Any) -> None:
        """Go on with other options."""
        self.options = options
        self.max_steps = math.inf if options.max_steps == -1 else options.max_steps

    def accumulate_over(self, batches: int) -> None:
        """Have an optimizer step after so many batches, from the next one on."""
        self.accumulate, self.plain_backward = batches, None

    def take_optimizers(self, optimizers: list[Optimizer]) -> None:
        """Train with ``optimizers`` in place of those that ``configure_optimizers`` made."""
        if len(optimizers) != len(self.optimizers):
            raise MisconfigurationError(
                f"trainer.optimizers has {len(self.optimizers)} optimizers, and {len(optimizers)} are to replace them. "
                "Give one for each."
            )
        self.optimizers = list(optimizers)
        self.wrapped_optimizers = [self._wrapped(optimizer) for optimizer in optimizers]
        for turn, optimizer, wrapped in zip(self.turns, self.optimizers, self.wrapped_optimizers, strict=False):
            self.precision.check_optimizer(optimizer)
            turn.optimizer, turn.wrapped = optimizer, wrapped
        self.prefer_fused()
        if self.check is not None:
            self.check.arm(self.optimizers)
        self.plain_backward, self.replaced = None, True  # for the rest of the epoch
        self._bind_turns()

    def prefer_fused(self) -> None:
        """Have optimizers that are free to do so step by fused kernels, on devices where those are faster."""
        if self.strategy.device.type in FUSED_ON:
            _fused.prefer_fused(self)

    def state_of(self, optimizer: Optimizer) -> dict[str, Any]:
        """``optimizer.state_dict()``, as it would be without ``prefer_fused``."""
        return _fused.state_of(optimizer) if self.strategy.device.type in FUSED_ON else optimizer.state_dict()

    def _take_optimizers(self, returned: Any, name: str, every: int) -> None:
        """Take over what ``configure_optimizers`` returned, or returned under ``name``."""
        optimizers, schedulers = uniform(returned)
        if name and len(optimizers) != 1:
            raise MisconfigurationError(f"configure_optimizers: {name!r} must be one optimizer, got {len(optimizers)}.")
        self.optimizers += optimizers
        self.schedulers += schedulers
        first = len(self.turns)
        for optimizer in optimizers:
            self.precision.check_optimizer(optimizer)
            wrapped = self._wrapped(optimizer)
            self.wrapped_optimizers.append(wrapped)
            self.turns.append(Turn(optimizer, name, every, wrapped))
        for config in schedulers:
            bound_to = getattr(config.scheduler, "optimizer", None)
            owners = [turn for turn in self.turns[first:] if turn.optimizer is bound_to]
            self.turn_of[id(config)] = owners[0] if owners else self.turns[first]

    def _wrapped(self, optimizer: Optimizer) -> SteppingOptimizer:
        return SteppingOptimizer(optimizer, self._step_now, lambda: self.optimizers)

    def _bind_turns(self) -> None:
        """Find the step method of every optimizer: ``training_step``, or one of its own."""
        module = self.module
        if not self.turns:
            self.turns.append(Turn(None))
        steps_itself = overrides(module, "optimizer_step", LightningModule)
        own = {turn.name: getattr(module, f"training_step_{turn.name}", None) for turn in self.turns if turn.name}
        self.shares_step = bool(own) and not any(own.values())
        if own and not self.shares_step and not all(own.values()):
            missing = ", ".join(f"training_step_{name}" for name, step in own.items() if step is None)
            raise MisconfigurationError(
                f"{type(module).__name__} has a step method for some optimizers, not: {missing}."
            )
        if (self.shares_step or not own) and not overrides(module, "training_step", LightningModule):
            raise MisconfigurationError(
                f"{type(module).__name__} has no training_step(). Define it; or return the optimizers as a dict, "
                "with a training_step_NAME() for each."
            )
        for turn in self.turns:
            turn.closure_first = not steps_itself and (turn.optimizer is None or _steps_plainly(turn.optimizer))
            if turn.optimizer is not None:
                turn.advance, turn.clear = self._bind_optimizer(turn.optimizer)
                turn.named = isinstance(turn.advance, partial) and turn.advance.func is _STEP
            turn.step, turn.step_takes_index = self.training_step, self.step_takes_index
            if step := own.get(turn.name):
                turn.step, turn.step_takes_index = self._bind(step)
        if self.shares_step and not all(turn.closure_first for turn in self.turns):
            raise MisconfigurationError(
                "A training_step that returns several losses cannot be run again by an optimizer, as LBFGS or an "
                f"overridden optimizer_step do. Define a step for each: training_step_{self.turns[0].name}, ..."
            )

    def _bind_optimizer(self, optimizer: Optimizer) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """What steps ``optimizer``, and what clears its gradients."""
        precision = self.strategy.precision
        if not self.options.fast_paths:
            plainly = _leaves_as_is(precision, "step")
            advance = partial(_STEP, optimizer) if plainly else partial(precision.step, optimizer)
            return self.timed("optimizer_step", advance), partial(_ZERO_GRAD, optimizer)
        advance = _direct_step.advancing(optimizer, precision)
        return self.timed("optimizer_step", advance), _direct_step.clearing(optimizer)

    def _bind(self, step: Callable[..., Any]) -> tuple[Callable[..., Any], bool]:
        """``step`` as the loop calls it, and if it wants ``batch_idx`` too."""
        bound = step if self.compiling is None else self.compiling.forward(step)
        bound = in_context(bound, self.precision) if self.precision.has_context else bound
        bound = with_step_end(bound, self.module, "training_step_end", self.results)
        return self.timed(getattr(step, "__name__", "training_step"), bound), takes(step, 2)

    def _method(self, name: str) -> Callable[..., Any]:
        """The module's method ``name``, as the loop calls it."""
        return adapted(self.module, name, self.trainer) or getattr(self.module, name)

    @property
    def pending(self) -> int:
        """Backward passes since the last optimizer step; not 0 in the middle of an accumulation window."""
        return max([turn.pending for turn in self.turns], default=0)

    def _resolve_clipping(self) -> Callable[[Optimizer], Any] | None:
        module, precision = self.module, self.precision
        value, algorithm = self.options.gradient_clip_val, self.options.gradient_clip_algorithm or "norm"
        if not module.automatic_optimization and not value:
            return None  # what is overridden is training_step's to call
        if any(overrides(module, name, LightningModule) for name in ("configure_gradient_clipping", "clip_gradients")):
            clip = self._method("configure_gradient_clipping")
            return lambda optimizer: clip(optimizer, gradient_clip_val=value, gradient_clip_algorithm=algorithm)
        return (lambda optimizer: precision.clip_gradients(optimizer, value, algorithm)) if value else None

    def load_training_data(self) -> None:
        """Ask for the training loader, and give it its state back."""
        self.renew_training_data()
        if self.loader_state:
            self.train.check_resumable()
        epoch = self.state.position.epoch
        # Where the run that is resumed would have asked for another loader, the state is of the one before.
        if self.state.position.batch or self._period("train", epoch) == self._period("train", max(0, epoch - 1)):
            self.train.load_state_dict(self.loader_state)

    def renew_training_data(self) -> None:
        """Ask for the training loader where there is none for this epoch; count what depends on its length."""
        period = self._period("train", self.state.position.epoch)
        if self._asked_in.get("train") != period:  # configure_optimizers may have asked for the number of steps
            source, limit = self.sources["train"], self.options.limit_train_batches
            loader = one_loader(source)
            if self.options.overfit_batches:
                loader = without_shuffling(loader, source.name)
            self.train = TrainBatches(loader, source.name, limit, "limit_train_batches", self._transfer)
            self.train.times = self.times
            self.train.fast = self.options.fast_paths
            self.validation_interval = self._resolve_validation_interval()
            self._asked_in["train"] = period

    def renew_validation_data(self) -> None:
        """Ask for the validation loaders anew where those that are there are of earlier epochs."""
        period = self._period("val", self.state.position.epoch)
        if Stage.VALIDATE in self._evaluation and self._asked_in["val"] != period:
            self._evaluation.pop(Stage.VALIDATE)

    def _period(self, kind: str, epoch: int) -> int:
        """Which of the loaders that are asked for one after the other are those of ``epoch``.

        Epochs are counted from the very first, so a resumed run asks where it would have asked anyway.
        """
        every: int = self.options.reload_dataloaders_every_n_epochs
        return epoch // every if every and self.sources[kind].is_asked else 0

    def _resolve_validation_interval(self) -> int | float:
        """Training batches between validations; ``inf`` for the end of every epoch."""
        count, interval = self.train.count, self.options.val_check_interval
        if isinstance(interval, str | timedelta | Mapping):
            if self.validates and (span := parse_duration(interval, "val_check_interval")):
                self.validation_seconds = span.total_seconds()
            return math.inf
        across_epochs = self.options.check_val_every_n_epoch is None
        if not self.validates or interval is None or (isinstance(interval, float) and interval == 1.0):
            return count
        if isinstance(interval, int):
            if interval > count and not across_epochs:
                raise MisconfigurationError(
                    f"Trainer(val_check_interval={interval}) is more than the {count} training batches of an epoch, so "
                    "validation would never run. Give a smaller number, a fraction such as 1.0, or "
                    "check_val_every_n_epoch=None to count batches across epochs."
                )
            return interval
        if count == math.inf:
            raise MisconfigurationError(
                f"Trainer(val_check_interval={interval}) is a fraction, and {self.sources['train'].name} does not know "
                "its length. Give a number of batches."
            )
        return max(1, int(count * interval))

    @property
    def validates(self) -> bool:
        """Validation runs inside this fit."""
        return (
            self.fn is Fn.FIT
            and self.sources["val"].exists
            and overrides(self.module, "validation_step", LightningModule)
            and self.options.limit_val_batches != 0
        )

    def evaluation(self, stage: Stage) -> list[Batches]:
        """The loaders of an evaluating stage, asked for when first needed."""
        if stage is Stage.SANITY_CHECK:
            steps = self.sanity_steps
            return [
                Batches(full.loader, full.where, steps, "num_sanity_val_steps", full.transfer, full.name)
                if -1 < steps < full.count
                else full
                for full in self.evaluation(Stage.VALIDATE)
            ]
        if stage not in self._evaluation:
            kind = KIND[stage]
            source, option = self.sources[kind], f"limit_{kind}_batches"
            loaders = several_loaders(source)
            self._asked_in[kind] = self._period(kind, self.state.position.epoch)
            if self.fn is Fn.FIT and any(isinstance(loader, GeneratorType) for loader in loaders.values()):
                raise TypeError(
                    f"{source.name} gave a generator, which can be read only once, and validation reads it again and "
                    "again. Give a DataLoader, or list(generator)."
                )
            if self.options.overfit_batches and kind == "val":
                loaders = {name: without_shuffling(loader, source.name) for name, loader in loaders.items()}
            self._evaluation[stage] = [
                Batches(loader, source.name, getattr(self.options, option), option, self._transfer, name)
                for name, loader in loaders.items()
            ]
            for batches in self._evaluation[stage]:
                batches.fast = self.options.fast_paths
        return self._evaluation[stage]

    @property
    def sanity_steps(self) -> int:
        """Validation batches of each loader that are tried before training; -1 for all."""
        steps: int | None = self.options.num_sanity_val_steps
        return 2 if steps is None else steps

    @property
    def fetches(self) -> bool:
        """A batch is waited for, and nothing else is going on."""
        return any(batches.fetching for batches in self._loaders())

    def end_workers(self) -> None:
        """End the worker processes of all loaders."""
        for batches in self._loaders():
            batches.end_workers()

    def _loaders(self) -> list[Batches]:
        evaluation = [batches for stage in self._evaluation.values() for batches in stage]
        return [*evaluation, self.train] if hasattr(self, "train") else evaluation

    def evaluation_counts(self, stage: Stage) -> list[int | float]:
        """Batches of each loader of ``stage``; nothing for a stage whose loaders were not needed yet."""
        known = Stage.VALIDATE if stage is Stage.SANITY_CHECK else stage
        return [batches.count for batches in self.evaluation(stage)] if known in self._evaluation else []

    # Used while the loop runs.

    def send(self, metrics: dict[str, Any], step: int, with_epoch: bool = True) -> None:
        """Hand ``metrics``, and with them the epoch, to every logger; a value named ``step`` replaces ``step``."""
        if self.results.due_media:
            self._send_media(step)
        if not metrics or not self.loggers:
            return
        found = numbers(metrics)
        if "step" in found:
            step = int(found.pop("step"))
        if with_epoch:
            found.setdefault("epoch", self.state.position.epoch)
        began = self.times.clock()  # reading the values was the wait for the device, if there was one
        self.guard.tell(self.loggers, "log_metrics", found, step)
        self.times.add("logging", began)

    def _send_media(self, step: int) -> None:
        """Hand the images and the like that are due to every logger."""
        due, self.results.due_media = self.results.due_media, {}
        began = self.times.clock()
        for name, media in due.items():
            self.guard.tell(self.loggers, "log_media", name, media, step)
        self.times.add("logging", began, len(due))

    def warn_of_waiting(self, share: float) -> bool:
        """Warn that ``share`` of the time goes into waiting for data; False where there is no help."""
        warned: bool = _time_report.warn_of_waiting(self, share)
        return warned

    @property
    def log_step(self) -> int:
        """The x-axis of the loggers: the index of the batch that stepped the optimizer last."""
        return max(0, self.state.position.stepped_batches - 1)

    def before_step(self, optimizer: Optimizer) -> None:
        """What comes between complete gradients and the step by them."""
        if self.unscale is not None:
            self.unscale(optimizer)
        if fire := self.hooks.on_before_optimizer_step:
            fire(optimizer)
        if self.clip is not None:
            self.clip(optimizer)

    def _step_now(self, optimizer: Optimizer, closure: Callable[[], Any] | None) -> Any:
        """What ``step`` of a wrapped optimizer does, in manual optimization or an overridden ``optimizer_step``."""
        result = None
        if not self.module.automatic_optimization:
            if closure is not None:
                result = closure()
            turn = next(turn for turn in self.turns if turn.optimizer is optimizer)
            if not self.window.steps:
                turn.hold()
                return result
            if turn.pending or self.window.catch_up != 1:
                turn.release(self.window.catch_up)
            self.before_step(optimizer)
            turn.advance()
            self.state.position.global_step += 1
            return result
        turn = next(turn for turn in self.turns if turn.optimizer is optimizer)
        if closure is None and turn.pending == 0:
            raise MisconfigurationError(
                "optimizer.step() was called before there are gradients to step by. In automatic optimization return "
                "the loss from training_step; Leyden steps. To step yourself set self.automatic_optimization = False "
                "in __init__. In an overridden optimizer_step call optimizer.step(closure=optimizer_closure)."
            )
        result = self.precision.step(optimizer, closure)
        turn.stepped = turn.pending > 0  # else the batch was skipped, and there was nothing to step by
        return result

    def leave_device(self) -> None:
        """Put the module, and what the optimizers remember, back to where the module was before the run."""
        if self.module.device != self._device_before:
            self.module.to(self._device_before)
            for optimizer in self.optimizers:
                optimizer.load_state_dict(optimizer.state_dict())  # moves its state to its parameters' device


# These find the method anew at every call, since schedulers and others wrap it, and take no frame of Python's.
_STEP, _ZERO_GRAD = methodcaller("step"), methodcaller("zero_grad")


def _leaves_as_is(precision: Precision, *names: str) -> bool:
    """``precision`` has the methods ``names`` from the base class, where they do nothing of their own."""
    return not any(overrides(precision, name, Precision) for name in names)


def in_context(step: Callable[..., Any], precision: Any) -> Callable[..., Any]:
    """``step`` under the precision's context."""

    def step_in_context(*args: Any) -> Any:
        with precision.forward_context():
            return step(*args)

    return step_in_context


def _steps_plainly(optimizer: Optimizer) -> bool:
    """True when running the closure before ``step`` gives the same result as handing it over.

    That holds for torch's own optimizers but LBFGS, which calls it several times, and while nobody has hooked into
    ``step``. Classes are compared, since ``Optimizer.__init__`` wraps their ``step``.
    """
    step = vars(optimizer).get("step")  # torch's schedulers wrap it, to know whether it was called
    return (
        type(optimizer).__module__.startswith("torch.optim.")
        and not isinstance(optimizer, LBFGS)
        and (step is None or getattr(step, "__wrapped__", None) is type(optimizer).step)
        and not optimizer._optimizer_step_pre_hooks
        and not torch_optimizer._global_optimizer_pre_hooks
    )


def warn_about_modes(module: nn.Module) -> None:
    """Say so when layers are in evaluation mode as training starts, which is seldom meant."""
    asleep = [name for name, part in module.named_modules() if not part.training and name]
    if asleep:
        warn(
            "LD031",
            f"{len(asleep)} submodules are in evaluation mode as training starts ({', '.join(asleep[:3])}"
            f"{', ...' if len(asleep) > 3 else ''}). If that is not meant, call model.train().",
        )
