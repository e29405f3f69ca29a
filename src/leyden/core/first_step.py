"""Which parameters are trained, as far as it shows before the first batch, and by the gradients of the first step."""

from __future__ import annotations

import cmath
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from leyden.core.metrics import is_metric
from leyden.core.module import LightningModule
from leyden.core.results import numbers
from leyden.core.run import Run
from leyden.core.schedules import length_of
from leyden.utils.errors import MisconfigurationError, warn
from leyden.utils.tree import tree_leaves

# An optimizer that has not stepped by then is not waited for any longer.
_LAST_LOOK = 100


def warn_of_untrained_parameters(run: Run) -> None:
    """Say so when an optimizer has nothing of the module's, or a parameter no optimizer."""
    module, name = run.module, type(run.module).__name__
    held = {id(parameter) for optimizer in run.optimizers for parameter in held_by(optimizer)}
    named = list(module.named_parameters())
    own = {id(parameter) for _, parameter in named}
    for optimizer in run.optimizers:
        if own and not any(id(parameter) in own for parameter in held_by(optimizer)):
            warn(
                "LD053",
                f"{type(optimizer).__name__} holds no parameter of {name}, which it will not train. "
                "Make it of self.parameters().",
            )
    left_out = [
        place
        for place, parameter in named
        if parameter.requires_grad and id(parameter) not in held and not _trains_elsewhere(module, place)
    ]
    if left_out and held & own:
        warn(
            "LD280",
            f"{len(left_out)} parameters of {name} require a gradient and are in no optimizer, so they are not "
            f"trained: {some_of(left_out)}. Give them to one in configure_optimizers, or freeze them with "
            "requires_grad_(False).",
        )


def held_by(optimizer: Any) -> Iterator[Any]:
    """The parameters of ``optimizer``."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def some_of(names: list[str], most: int = 4) -> str:
    """The first of ``names``, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _trains_elsewhere(module: nn.Module, place: str) -> bool:
    """True for a parameter of a metric's network or of an average of weights, which no optimizer is to train."""
    parts = place.split(".")[:-1]
    owners = (module.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts) + 1))
    return any(is_metric(owner) or isinstance(owner, AveragedModel) for owner in owners)


def warn_of_hidden_layers(module: LightningModule) -> None:
    """Say so when layers lie where torch does not see them."""
    for where, kind, _ in hidden_parameters(module):
        warn(
            "LD052",
            f"{where} is a {kind} of modules or parameters, which torch does not see: self.parameters(), moving to the "
            f"device and checkpoints leave them out. Use torch.nn.ModuleList, ModuleDict or ParameterList{_OR_FREEZE}.",
            subject=where,
        )


_OR_FREEZE = "; or requires_grad_(False), where they are meant to stay as they are"


def hidden_parameters(module: LightningModule) -> Iterator[tuple[str, str, list[Tensor]]]:
    """Parameters that require a gradient and lie in plain lists, tuples or dicts: where, in what, and which."""
    seen: set[int] | None = None
    for place, part in module.named_modules():
        for name, value in vars(part).items():
            if not isinstance(value, _CONTAINERS) or not value or name in _SEEN_BY_TORCH:
                continue
            if seen is None:
                seen = set(map(id, module.parameters()))
            hidden = [
                parameter
                for item in itertools.islice(tree_leaves(value), 1000)  # a whole dataset may lie in a list
                for parameter in _parameters_of(item)
                if parameter.requires_grad and id(parameter) not in seen
            ]
            if hidden:
                yield ".".join(filter(None, (type(module).__name__, place, name))), type(value).__name__, hidden


_CONTAINERS = (dict, list, tuple)
# The dicts in which torch itself keeps parameters, and modules with theirs.
_SEEN_BY_TORCH = ("_parameters", "_modules")


def _parameters_of(item: Any) -> Iterable[Tensor]:
    if isinstance(item, nn.Module):
        return item.parameters()
    return (item,) if isinstance(item, Tensor) and item.is_leaf else ()


def watch_first_step(run: Run) -> None:
    """Have the first gradients of every optimizer looked at when they come; no later step costs anything.

    They are looked at once, when they are complete and unscaled, behind all ``on_before_optimizer_step`` hooks. That
    waits for the device.

    Raises:
        MisconfigurationError: Raised when the step comes: a gradient is not finite, nothing that the optimizer holds
            has a gradient, or layers that torch does not see have one.
    """
    hooks, event = run.hooks, "on_before_optimizer_step"
    fire: Callable[..., Any] | None = getattr(hooks, event)
    seen: set[int] = set()
    looks = 0

    def look(optimizer: Any) -> None:
        nonlocal looks
        looks += 1
        if fire is not None:
            fire(optimizer)
        if id(optimizer) not in seen:
            seen.add(id(optimizer))
            _check_gradients(optimizer, run, may_be_cleared=fire is not None or hooks.on_after_backward is not None)
            if len(seen) == 1:
                _check_hidden_layers(run)
                _warn_of_what_is_logged(run)
        if (len(seen) >= len(run.optimizers) or looks == _LAST_LOOK) and getattr(hooks, event) is look:
            setattr(hooks, event, fire)
            run.resolve_plain_step()

    setattr(hooks, event, look)


def _check_gradients(optimizer: Any, run: Run, may_be_cleared: bool) -> None:
    """Look at the gradients that ``optimizer`` is about to step by for the first time.

    Args:
        optimizer: The optimizer.
        run: The fit.
        may_be_cleared: Hooks may have cleared all of them on purpose, to leave the step out.
    """
    trained = [parameter for parameter in held_by(optimizer) if parameter.requires_grad]
    without = _names([parameter for parameter in trained if parameter.grad is None], run.module)
    kind = type(optimizer).__name__
    if without and len(without) == len(trained):
        problem = (
            f"None of the {len(trained)} parameters that {kind} holds has a gradient in its first step: "
            f"{some_of(without)}. "
        )
        if not run.module.automatic_optimization:
            warn(
                "LD296",
                f"{problem}Call self.manual_backward(loss) before step(), with a loss that depends on them.",
                subject=kind,
            )
        elif not may_be_cleared:
            raise MisconfigurationError(
                f"{problem}The loss does not depend on them. Look for .detach(), torch.no_grad() or a copy of the "
                "layers on its way, or give the optimizer the parameters that forward uses."
            )
    elif without:
        warn(
            "LD281",
            f"{len(without)} of the {len(trained)} parameters that {kind} holds have no gradient in the first step, "
            f"so they are not trained: {some_of(without)}. forward does not use them, or .detach() or torch.no_grad() "
            "cuts them off from the loss. If that is meant, freeze them with requires_grad_(False).",
            subject=kind,
        )
    if not _may_be_infinite(run) and (broken := _names(_not_finite(trained), run.module)):
        raise MisconfigurationError(
            f"{len(broken)} of the {len(trained)} parameters that {kind} holds have a gradient that is not finite in "
            f"the first step: {some_of(broken)}. The step would make them nan. Look for sqrt(0), norm(0) or a division "
            "by 0; Trainer(detect_anomaly=True) names the operation. To train on: "
            'Trainer(on_nonfinite_loss="ignore").'
        )


def _may_be_infinite(run: Run) -> bool:
    """True where it is asked for, and in float16, where a step whose gradients are not finite is left out."""
    asked = run.options.on_nonfinite_loss == "ignore"
    return asked or getattr(run.precision, "scaler", None) is not None


def _names(parameters: list[Any], module: nn.Module) -> list[str]:
    """What ``parameters`` are called in messages."""
    if not parameters:
        return []
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [names.get(id(parameter), f"one of shape {tuple(parameter.shape)}") for parameter in parameters]


def _not_finite(trained: list[Any]) -> list[Any]:
    """Those whose gradient is not finite; waits for every device."""
    found: list[Any] = []
    by_device: dict[torch.device, list[tuple[Any, Tensor]]] = {}
    for parameter in trained:
        if type(gradient := parameter.grad) is Tensor and gradient.layout is torch.strided:
            by_device.setdefault(gradient.device, []).append((parameter, gradient))
    for device, pairs in by_device.items():
        # What is not finite makes the sum so, and a sum is faster to make than a look at every number.
        sums = [gradient.sum() for _, gradient in pairs]
        if device.type != "cpu":  # where each look would wait
            sums = [torch.stack(sums).sum()]
        if all(cmath.isfinite(total.item()) for total in sums):
            continue
        finite = torch.stack([gradient.isfinite().all() for _, gradient in pairs]).tolist()
        found += [parameter for (parameter, _), is_finite in zip(pairs, finite, strict=True) if not is_finite]
    return found


def _check_hidden_layers(run: Run) -> None:
    """Refuse layers that take part in the loss, and that neither torch nor an optimizer knows of."""
    for where, kind, parameters in hidden_parameters(run.module):
        held = {id(parameter) for optimizer in run.optimizers for parameter in held_by(optimizer)}
        if any(parameter.grad is not None and id(parameter) not in held for parameter in parameters):
            raise MisconfigurationError(
                f"{where} is a {kind} with parameters that the loss depends on, and they are in no optimizer and in no "
                "checkpoint, because torch does not see them there. Use torch.nn.ModuleList, ModuleDict or "
                "ParameterList; or requires_grad_(False), where they are meant to stay as they are."
            )


def _warn_of_what_is_logged(run: Run) -> None:
    """Look at the values that training has logged up to its first step."""
    options, entries = run.options, list(run.results.entries.values())
    shows = options.on_nonfinite_loss != "ignore"
    values = numbers({entry.name: entry.latest for entry in entries if shows and entry.latest is not None})
    for name, value in values.items():
        if not math.isfinite(value):
            warn("LD282", f"self.log({name!r}): the first value is {value}. Look at what it is made of.", subject=name)
    if options.fast_dev_run or options.barebones:
        return
    if not run.loggers and (told := [entry.name for entry in entries if entry.options[1:2] == (True,)]):
        warn(
            "LD284",
            f"self.log({told[0]!r}, logger=True): there is no logger, so it goes to callbacks and the progress bar "
            "alone. Give Trainer(logger=...), or leave logger=True out.",
        )
    by_step = [entry.name for entry in entries if entry.step_name is not None and entry.to_logger]
    if run.loggers and by_step and (steps := length_of(run)[0]) < run.log_every:
        warn(
            "LD283",
            f"Trainer(log_every_n_steps={run.log_every}) is more than the {int(steps)} steps of this run, so no logger "
            f"gets the step values of {some_of(by_step)}. Give a smaller number.",
        )
