"""Hooks that Lightning 1.x had, and parameters that hooks had in it: called as they were then."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim import LBFGS

from leyden.core.source import called_names, parameter_names, user_classes
from leyden.utils.errors import MisconfigurationError, warn
from leyden.utils.tree import tree_map

# The hook at the end of an epoch and the one after a step, by the word in the events of today.
_EPOCH_ENDS = {"train": "training_epoch_end", "validation": "validation_epoch_end", "test": "test_epoch_end"}
_STEP_ENDS = tuple(f"{stage}_step_end" for stage in ("training", "validation", "test"))
FORMER_HOOKS = (*_EPOCH_ENDS.values(), *_STEP_ENDS)

# Arguments of then, after (trainer, pl_module) in a callback; and those that came by keyword.
_CALLS: dict[str, tuple[str, ...]] = {
    **{f"on_{word}_epoch_end": ("outputs",) for word in _EPOCH_ENDS},
    "on_train_batch_start": ("batch", "batch_idx", "dataloader_idx"),
    "on_train_batch_end": ("outputs", "batch", "batch_idx", "dataloader_idx"),
    "on_before_optimizer_step": ("optimizer", "optimizer_idx"),
    "optimizer_step": ("epoch", "batch_idx", "optimizer", "optimizer_idx", "optimizer_closure"),
    "optimizer_zero_grad": ("epoch", "batch_idx", "optimizer", "optimizer_idx"),
    "configure_gradient_clipping": ("optimizer", "optimizer_idx"),
    "lr_scheduler_step": ("scheduler", "optimizer_idx", "metric"),
    "backward": ("loss", "optimizer", "optimizer_idx"),
}
_BY_KEYWORD = {
    "optimizer_step": ("on_tpu", "using_native_amp", "using_lbfgs"),
    "configure_gradient_clipping": ("gradient_clip_val", "gradient_clip_algorithm"),
}
# The argument that tells a call of then from one of today, and how people spell it.
_TELLING = {
    **{f"on_{word}_epoch_end": "outputs" for word in _EPOCH_ENDS},
    "on_train_batch_start": "dataloader_idx",
    "on_train_batch_end": "dataloader_idx",
}
_SPELLINGS = {
    "outputs": r"\w*outputs?",
    "dataloader_idx": r"(data)?loader_(idx|index|i)",
    "optimizer_idx": r"opt(imizer)?_(idx|index|i)",
}


class FormerHooks:
    """What the hooks of 1.x add to the events of today.

    The outputs of an epoch are kept where somebody takes them, and nowhere else. They are in no checkpoint: after a
    resume in mid-epoch only those since are there.

    Attributes:
        events: Those to which ``around`` adds something.
    """

    def __init__(self, trainer: Any, module: Any, callbacks: Iterable[Any], results: Any) -> None:
        self._trainer, self._module, self._results = trainer, module, results
        self._kept = {word: _Outputs() for word, name in _EPOCH_ENDS.items() if _is_hook(module, name)}
        takers = [(module, 0), *((callback, 2) for callback in callbacks)]
        for word in _EPOCH_ENDS:
            if any(_is_of_then(owner, f"on_{word}_epoch_end", leading) for owner, leading in takers):
                self._kept.setdefault(word, _Outputs())
        self.events = [f"on_{word}_{what}" for word in self._kept for what in ("batch_end", "epoch_end")]

    def around(self, event: str, calls: list[Callable[..., Any]]) -> list[Callable[..., Any]]:
        """``calls``, the hooks of today for ``event``, and what comes before and after them."""
        word = event.removeprefix("on_").partition("_")[0]
        if word not in self._kept:
            return calls
        kept = self._kept[word]
        if event == f"on_{word}_batch_end":
            return [kept.add_training if word == "train" else kept.add, *calls]
        if event == f"on_{word}_epoch_end":
            own = [self._epoch_end(word)] if _is_hook(self._module, _EPOCH_ENDS[word]) else []
            return [*own, *calls, kept.by_loader.clear]
        return calls

    def adapted(self, owner: object, name: str, leading: int) -> Callable[..., Any] | None:
        """See ``adapted``."""
        word = name.removeprefix("on_").partition("_")[0]
        return adapted(owner, name, self._trainer, leading, lambda: self._outputs(word))

    def _outputs(self, word: str) -> list[Any]:
        """The outputs of the epoch; a list of them for each of several loaders."""
        by_loader = self._kept[word].by_loader
        counts = {"validation": "num_val_batches", "test": "num_test_batches"}
        loaders = len(getattr(self._trainer, counts[word])) if word in counts else 1
        lists = [by_loader.get(index, []) for index in range(max(loaders, 1))]
        return lists[0] if len(lists) == 1 else lists

    def _epoch_end(self, word: str) -> Callable[[], None]:
        name = _EPOCH_ENDS[word]
        hook, where = getattr(self._module, name), f"{type(self._module).__name__}.{name}()"

        def epoch_end() -> None:
            outer, self._results.hook = self._results.hook, name
            returned = hook(self._outputs(word))
            self._results.hook = outer
            if returned is not None:
                warn("LD179", f"{where} returned a {type(returned).__name__}, which goes nowhere. Use self.log.")

        return epoch_end


class _Outputs:
    """What the steps of an epoch returned, by loader, save None."""

    def __init__(self) -> None:
        self.by_loader: dict[int, list[Any]] = {}

    def add(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if outputs is not None:
            self.by_loader.setdefault(dataloader_idx, []).append(outputs)

    def add_training(self, outputs: dict[str, Any], batch: Any, batch_idx: int) -> None:
        # Detached, since the graphs of a whole epoch would fill the memory.
        self.add(tree_map(Tensor.detach, outputs) or None, batch, batch_idx)


def check_former_hooks(module: Any, stages: Iterable[str]) -> None:
    """Warn of the hooks of 1.x that ``module`` has for ``stages``, such as ``"training"``.

    Raises:
        MisconfigurationError: One cannot take ``outputs``.
    """
    for name in FORMER_HOOKS:
        stage, _, kind = name.partition("_")
        if stage not in stages or not _is_hook(module, name):
            continue
        try:
            inspect.signature(getattr(module, name)).bind(None)
        except TypeError:
            raise MisconfigurationError(
                f"{type(module).__name__}.{name}() cannot take the call it will get: {name}(outputs)."
            ) from None
        where, today = f"{type(module).__name__}.{name}()", f"on_{'train' if stage == 'training' else stage}_epoch_end"
        if kind == "epoch_end":
            warn(
                "LD176",
                f"{where} is a hook of Lightning 1.x. Today: append what {stage}_step returns to a list of your own, "
                f"and use and clear it in {today}().",
                subject=name,
            )
        else:
            warn(
                "LD177",
                f"{where} is a hook of Lightning 1.x. Today: do its work at the end of {stage}_step.",
                subject=name,
            )


def with_step_end(step: Callable[..., Any], module: Any, name: str, results: Any) -> Callable[..., Any]:
    """``step``, and after it the module's hook ``name``, such as ``"training_step_end"``, where it has one.

    What the hook returns takes the place of what the step returned, unless it is None.
    """
    if name not in _STEP_ENDS or not _is_hook(module, name):
        return step
    hook = getattr(module, name)

    def step_and_end(*args: Any) -> Any:
        output = step(*args)
        outer, results.hook = results.hook, name
        replaced = hook(output)
        results.hook = outer
        return output if replaced is None else replaced

    return step_and_end


def adapted(
    owner: object, name: str, trainer: Any, leading: int = 0, outputs: Callable[[], Any] = list
) -> Callable[..., Any] | None:
    """The method ``name`` of ``owner``, which takes the call of 1.x, ready for that of today; None where it does not.

    Args:
        owner: The module, or a callback.
        name: The method.
        trainer: The Trainer, which knows the optimizers.
        leading: Arguments before those of the hook: 2 in a callback.
        outputs: What to pass as the ``outputs`` of on_train_epoch_end and its like.
    """
    if not _is_of_then(owner, name, leading):
        return None
    method: Callable[..., Any] = getattr(owner, name)
    arguments, telling = _CALLS[name], _TELLING.get(name, "optimizer_idx")
    _warn_of_parameters(owner, name, leading)
    place = leading + arguments.index(telling)
    if name == "backward":
        return lambda loss, *args, **options: method(loss, *_optimizer_of_backward(owner, trainer), *args, **options)
    if name == "optimizer_step":
        takes = [keyword for keyword in _BY_KEYWORD[name] if keyword in inspect.signature(method).parameters]

        def optimizer_step(epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> Any:
            known = {
                "on_tpu": False,
                "using_native_amp": trainer.precision.endswith("-mixed"),
                "using_lbfgs": isinstance(optimizer, LBFGS),
            }
            index = _index(optimizer, trainer)
            return method(epoch, batch_idx, optimizer, index, closure, **{keyword: known[keyword] for keyword in takes})

        return optimizer_step

    def value(given: tuple[Any, ...]) -> Any:
        if telling == "outputs":
            return outputs()
        if telling == "dataloader_idx":
            return 0
        if name == "lr_scheduler_step":
            return _index(getattr(given[0], "optimizer", None), trainer)
        return _index(given[leading + arguments.index("optimizer")], trainer)

    return lambda *given, **options: method(*given[:place], value(given), *given[place:], **options)


def _is_hook(module: Any, name: str) -> bool:
    """True when ``module`` has the hook ``name`` of 1.x, and does not call it itself from elsewhere."""
    return callable(getattr(module, name, None)) and name not in called_names(user_classes(module), FORMER_HOOKS)


def _is_of_then(owner: object, name: str, leading: int) -> bool:
    """True when the method ``name`` of ``owner`` can take the call of 1.x, and means that one."""
    arguments, method = _CALLS.get(name), getattr(owner, name, None)
    if arguments is None or not (inspect.ismethod(method) or inspect.isfunction(method)):
        return False
    if str(method.__module__).startswith("leyden.core."):  # inherited from us, who mean the call of today
        return False
    names, telling = parameter_names(method), _TELLING.get(name, "optimizer_idx")
    place = leading + arguments.index(telling)
    if place >= len(names) or not re.fullmatch(_SPELLINGS[telling], names[place]):
        return False
    signature = inspect.signature(method)
    parameters = list(signature.parameters.values())
    if telling != "outputs" and arguments[-1] == telling and parameters[place].default is not inspect.Parameter.empty:
        return False  # the call of today does as well
    by_keyword = [keyword for keyword in _BY_KEYWORD.get(name, ()) if keyword in signature.parameters]
    try:
        signature.bind(*[None] * (leading + len(arguments)), **dict.fromkeys(by_keyword))
    except TypeError:
        return False
    return True


def _warn_of_parameters(owner: object, name: str, leading: int) -> None:
    former = {"optimizer_idx", _TELLING.get(name, "optimizer_idx")} | ({"optimizer"} if name == "backward" else set())
    today = [argument for argument in _CALLS[name] if argument not in former]
    by_keyword = _BY_KEYWORD[name] if name == "configure_gradient_clipping" else ()
    call = ", ".join([*("trainer", "pl_module")[:leading], *today, *by_keyword])
    where = f"{type(owner).__name__}.{name}()"
    warn("LD178", f"{where} has the parameters of Lightning 1.x. Today: {name}({call}).", subject=where)


def _index(optimizer: Any, trainer: Any) -> int:
    """Which of the optimizers this is, as it was made or wrapped."""
    both = zip(trainer.optimizers, trainer._wrapped_optimizers(), strict=True)
    return next((index for index, known in enumerate(both) if any(optimizer is one for one in known)), 0)


def _optimizer_of_backward(module: Any, trainer: Any) -> tuple[Any, int | None]:
    """The optimizer that the gradients are for, and its index; as in 1.x neither, where that is not known."""
    alone = module.automatic_optimization and len(trainer.optimizers) == 1
    return (trainer.optimizers[0], 0) if alone else (None, None)
