"""What configure_optimizers returned, made uniform; schedulers; toggling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from leyden.utils.errors import MisconfigurationError, nearest, warn

_FORMS = (
    "configure_optimizers may return an optimizer, a list of optimizers, ([optimizers], [schedulers]), "
    "(optimizer, scheduler), a dict {'optimizer': ..., 'lr_scheduler': ...}, several such dicts, or a dict of any of "
    "these by name"
)


@dataclass(slots=True)
class LRSchedulerConfig:
    """A learning-rate scheduler and when it steps.

    Attributes:
        scheduler: The scheduler.
        name: Under which LearningRateMonitor logs it.
        interval: ``"epoch"`` or ``"step"``.
        frequency: Steps every so many epochs, or batches of an epoch.
        reduce_on_plateau: It steps by a metric, ``monitor``.
        monitor: The logged name that it watches.
        strict: A missing ``monitor`` is an error rather than a warning.
    """

    scheduler: Any
    name: str | None = None
    interval: str = "epoch"
    frequency: int = 1
    reduce_on_plateau: bool = False
    monitor: str | None = None
    strict: bool = True

    def __post_init__(self) -> None:
        if self.interval not in ("epoch", "step"):
            raise MisconfigurationError(
                f"The lr_scheduler's interval={self.interval!r} is unknown. Choose 'epoch' or 'step'."
            )
        if not isinstance(self.frequency, int) or self.frequency < 1:
            raise MisconfigurationError(
                f"The lr_scheduler's frequency={self.frequency!r} is not a whole number from 1."
            )
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.reduce_on_plateau = True
        if self.monitor is not None and not isinstance(self.monitor, str):
            raise MisconfigurationError(
                f"The lr_scheduler's monitor={self.monitor!r} is not the name of a metric. Give the name that self.log "
                "has, such as 'val_loss'."
            )
        if self.reduce_on_plateau and self.monitor is None:
            raise MisconfigurationError(
                "ReduceLROnPlateau needs a metric to watch. Return {'optimizer': optimizer, 'lr_scheduler': "
                "{'scheduler': scheduler, 'monitor': 'val_loss'}}."
            )
        if isinstance(self.scheduler, OneCycleLR | CyclicLR) and self.interval == "epoch":
            counts = "total_steps counts" if isinstance(self.scheduler, OneCycleLR) else "step_size_up counts"
            warn(
                "LD020",
                f"{type(self.scheduler).__name__} is made to step with every batch, and steps with every epoch here. "
                f"Return {{'scheduler': scheduler, 'interval': 'step'}}, unless its {counts} epochs.",
            )


class SteppingOptimizer:
    """An optimizer whose ``step`` goes by the run: precision, hooks and the count of steps are taken care of.

    Everything else is the optimizer's own; to ``isinstance`` it is one of the optimizer's class.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        step: Callable[[Optimizer, Callable[[], Any] | None], Any],
        optimizers: Callable[[], list[Optimizer]],
    ) -> None:
        self.__dict__.update(optimizer=optimizer, _step=step, _optimizers=optimizers)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step once, or leave it to a later batch of the window; returns what the closure returned.

        Raises:
            TypeError: ``closure`` cannot be called.
        """
        if closure is not None and not callable(closure):
            raise TypeError(
                f"optimizer.step(closure={closure!r}): a closure is a function that gives the loss, such as "
                "lambda: self.loss(batch). Most optimizers need none: optimizer.step()."
            )
        return self._step(self.optimizer, closure)

    @contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Inside, only this optimizer's parameters require gradients; with one process there is nothing to sync."""
        frozen = toggle(self.optimizer, self._optimizers())
        try:
            yield
        finally:
            untoggle(frozen)

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:
        return type(self.optimizer)

    def __getattr__(self, name: str) -> Any:
        if "optimizer" not in self.__dict__:  # while it is being copied
            raise AttributeError(name)
        return getattr(self.__dict__["optimizer"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "step":  # a scheduler made for this wraps it, to know whether it was called
            self.__dict__[name] = value
        else:
            setattr(self.__dict__["optimizer"], name, value)


@dataclass(frozen=True, slots=True)
class Window:
    """What accumulation means for the batch in work, in manual optimization.

    Attributes:
        steps: The optimizers really step in this batch.
        share: Batches among which their step is shared: ``manual_backward`` divides the loss by them.
        catch_up: Factor of the gradients at the step, where ``share`` turned out to be too large.
    """

    steps: bool = True
    share: int = 1
    catch_up: float = 1.0


@dataclass(slots=True)
class Turn:
    """One optimizer's part in optimization.

    Attributes:
        optimizer: The optimizer; None where nothing is optimized.
        name: Its key in the dict that ``configure_optimizers`` returned; empty for one optimizer alone.
        every: It takes its turn in every so-manieth batch of an epoch.
        wrapped: The optimizer as an overridden ``optimizer_step`` gets it.
        step: The step method that gives its loss.
        step_takes_index: ``step`` wants ``batch_idx`` too.
        closure_first: The closure may run before ``optimizer.step`` with the same result.
        advance: Steps the optimizer under the run's precision.
        clear: Clears the gradients of its parameters.
        named: ``advance`` and ``clear`` are the optimizer's own ``step`` and ``zero_grad``.
        pending: Backward passes since it stepped last; in manual optimization, calls of ``step`` that are put off.
        stepped: It stepped in the batch in work.
        weight: Sum of the ``"weight"`` of these batches, a number or a tensor; None where steps return none.
        held: Gradients of the calls that are put off.
    """

    optimizer: Any
    name: str = ""
    every: int = 1
    wrapped: Any = None
    step: Any = None
    step_takes_index: bool = True
    closure_first: bool = True
    advance: Any = None
    clear: Any = None
    named: bool = False
    pending: int = 0
    stepped: bool = False
    weight: Any = None
    held: dict[Tensor, Tensor] = field(default_factory=dict)

    def hold(self) -> None:
        """Take the gradients out of the parameters and keep them, where no ``zero_grad`` of the user's gets at them.

        Gradients that other losses leave in these parameters are cleared by the user as ever, and do not mix in.
        """
        fresh = {p: p.grad.detach() for p in self._parameters() if p.grad is not None}
        self._add_held(fresh)
        self.held.update(fresh)
        for parameter in fresh:
            parameter.grad = None
        self.pending += 1

    def release(self, factor: float) -> None:
        """Put the gradients that were kept back, together with those that are there, times ``factor``."""
        total = {p: p.grad.detach() for p in self._parameters() if p.grad is not None}
        self._add_held(total)
        total = {**self.held, **total}
        if factor != 1:
            torch._foreach_mul_(list(total.values()), factor)
        for parameter, gradient in total.items():
            parameter.grad = gradient
        self.forget()

    def forget(self) -> None:
        """End the window."""
        self.pending = 0
        self.held = {}

    def _parameters(self) -> Iterator[Any]:
        return (p for group in self.optimizer.param_groups for p in group["params"])

    def _add_held(self, gradients: dict[Tensor, Tensor]) -> None:
        both = [p for p in gradients if p in self.held]
        if both:
            torch._foreach_add_([gradients[p] for p in both], [self.held[p] for p in both])


def named_turns(returned: Any) -> dict[str, tuple[Any, int]]:
    """Optimizers by name, as ``{"generator": ..., "discriminator": {"optimizer": ..., "every": 5}}``; else nothing.

    Returns:
        For every name what ``uniform`` understands, and ``every``.

    Raises:
        MisconfigurationError: An ``every`` is no whole number from 1.
    """
    if not isinstance(returned, Mapping) or "optimizer" in returned or not returned:
        return {}
    if not all(isinstance(value, Optimizer | Mapping) for value in returned.values()) or not any(
        isinstance(value, Optimizer) or "optimizer" in value for value in returned.values()
    ):
        return {}
    turns = {}
    for name, value in returned.items():
        every = 1
        if isinstance(value, Mapping):
            value = dict(value)
            every = value.pop("every", 1)
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise MisconfigurationError(
                f"configure_optimizers: every={every!r} of {name!r} is not a whole number from 1, of batches."
            )
        turns[str(name)] = (value, every)
    return turns


def uniform(returned: Any) -> tuple[list[Optimizer], list[LRSchedulerConfig]]:
    """The optimizers and schedulers in whatever ``configure_optimizers`` returned.

    Raises:
        MisconfigurationError: It is none of the forms that work.
    """
    optimizers: list[Optimizer] = []
    schedulers: list[LRSchedulerConfig] = []
    if returned is None:
        warn("LD021", "configure_optimizers returned None: nothing will be optimized. Return an optimizer.")
    elif isinstance(returned, Optimizer):
        optimizers = [returned]
    elif isinstance(returned, Mapping):
        _take_dict(returned, optimizers, schedulers)
    elif isinstance(returned, list | tuple) and returned:
        _take_sequence(returned, optimizers, schedulers)
    else:
        raise MisconfigurationError(f"{_FORMS}; got {type(returned).__name__}: {returned!r}.")
    for config in schedulers:
        if lacking := [
            name for name in ("step", "state_dict", "load_state_dict") if not hasattr(config.scheduler, name)
        ]:
            raise TypeError(
                f"The scheduler {type(config.scheduler).__name__} has no {', '.join(lacking)}(), which training and "
                "checkpoints need. Define it, or derive the class from torch.optim.lr_scheduler.LRScheduler."
            )
        bound_to = getattr(config.scheduler, "optimizer", None)
        if isinstance(bound_to, Optimizer) and not any(bound_to is optimizer for optimizer in optimizers):
            raise MisconfigurationError(
                f"The scheduler {type(config.scheduler).__name__} belongs to an optimizer that configure_optimizers "
                "does not return. Return both."
            )
    return optimizers, schedulers


def _take_sequence(returned: Any, optimizers: list[Optimizer], schedulers: list[LRSchedulerConfig]) -> None:
    if all(isinstance(item, Optimizer) for item in returned):
        optimizers.extend(returned)
    elif all(isinstance(item, Mapping) for item in returned):
        for item in returned:
            _take_dict(item, optimizers, schedulers)
    elif len(returned) == 2:
        of_optimizers, of_schedulers = (list(x) if isinstance(x, list | tuple) else [x] for x in returned)
        if not of_optimizers or not all(isinstance(item, Optimizer) for item in of_optimizers):
            raise MisconfigurationError(f"{_FORMS}; got {_kinds(returned)}.")
        optimizers.extend(of_optimizers)
        schedulers.extend(_scheduler(item) for item in of_schedulers)
    else:
        raise MisconfigurationError(f"{_FORMS}; got {_kinds(returned)}.")


def _kinds(returned: Any) -> str:
    """What ``returned`` is made of, since optimizers themselves print at length."""
    if not isinstance(returned, list | tuple):
        return type(returned).__name__
    inside = ", ".join(map(_kinds, returned))
    return f"[{inside}]" if isinstance(returned, list) else f"({inside})"


def _take_dict(returned: Mapping[str, Any], optimizers: list[Optimizer], schedulers: list[LRSchedulerConfig]) -> None:
    allowed = ("optimizer", "lr_scheduler", "monitor")
    _refuse_unknown(returned, allowed, "configure_optimizers")
    if not isinstance(returned.get("optimizer"), Optimizer):
        raise MisconfigurationError(f"{_FORMS}; the dict's 'optimizer' is {returned.get('optimizer')!r}.")
    optimizers.append(returned["optimizer"])
    if (given := returned.get("lr_scheduler")) is not None:
        for item in given if isinstance(given, list | tuple) else [given]:
            schedulers.append(_scheduler(item, monitor=returned.get("monitor")))


def _scheduler(given: Any, monitor: str | None = None) -> LRSchedulerConfig:
    if not isinstance(given, Mapping):
        if not callable(getattr(given, "step", None)):
            raise MisconfigurationError(f"{_FORMS}; {given!r} is not a scheduler.")
        return LRSchedulerConfig(given, monitor=monitor)
    _refuse_unknown(given, [f.name for f in fields(LRSchedulerConfig)], "the lr_scheduler dict")
    if not callable(getattr(given.get("scheduler"), "step", None)):
        raise MisconfigurationError(
            f"The lr_scheduler dict's 'scheduler' is {given.get('scheduler')!r}, not a scheduler."
        )
    return LRSchedulerConfig(**{"monitor": monitor, **given})


def _refuse_unknown(given: Mapping[str, Any], allowed: Iterable[str], where: str) -> None:
    for key in given:
        if key not in allowed:
            raise MisconfigurationError(
                f"{where} has the unknown key {key!r}. Known are: {', '.join(allowed)}.{nearest(key, allowed)}"
            )


def default_scheduler_step(scheduler: Any, metric: Any) -> None:
    """Step ``scheduler``, by ``metric`` when it watches one.

    Raises:
        MisconfigurationError: The scheduler is not torch's, so how to step it is not known.
    """
    if not isinstance(scheduler, LRScheduler | ReduceLROnPlateau) and not hasattr(scheduler, "step"):
        raise MisconfigurationError(f"{type(scheduler).__name__} has no step(). Override lr_scheduler_step.")
    if metric is None:
        scheduler.step()
    else:
        scheduler.step(metric)


def toggle(optimizer: Any, optimizers: Iterable[Any]) -> dict[nn.Parameter, bool]:
    """Switch gradients off for parameters that only other optimizers hold; returns what ``untoggle`` takes."""
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    before: dict[nn.Parameter, bool] = {}
    for other in optimizers:
        for group in other.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in own and parameter not in before:
                    before[parameter] = parameter.requires_grad
                    parameter.requires_grad = False
    return before


def untoggle(before: Mapping[nn.Parameter, bool]) -> None:
    """Put back what ``toggle`` switched off."""
    for parameter, required in before.items():
        parameter.requires_grad = required
