"""The table of hooks; resolve() binds those that somebody implements."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from leyden.core.callback import Callback
from leyden.core.former_hooks import FormerHooks
from leyden.core.source import parameters
from leyden.utils.errors import MisconfigurationError

if TYPE_CHECKING:
    from leyden.core.results import Results

# Every event: what its hook is called with, after (trainer, pl_module) in a callback. The docstring of fit.py and of
# evaluate.py say when.
HOOKS: dict[str, tuple[str, ...]] = {
    "on_fit_start": (),
    "on_fit_end": (),
    "on_sanity_check_start": (),
    "on_sanity_check_end": (),
    "on_train_start": (),
    "on_train_end": (),
    "on_train_epoch_start": (),
    "on_train_epoch_end": (),
    "on_train_batch_start": ("batch", "batch_idx"),
    "on_train_batch_end": ("outputs", "batch", "batch_idx"),
    "on_before_zero_grad": ("optimizer",),
    "on_before_backward": ("loss",),
    "on_after_backward": (),
    "on_before_optimizer_step": ("optimizer",),
    **{
        f"on_{stage}_{event}": arguments
        for stage in ("validation", "test", "predict")
        for event, arguments in (
            ("start", ()),
            ("end", ()),
            ("epoch_start", ()),
            ("epoch_end", ()),
            ("batch_start", ("batch", "batch_idx", "dataloader_idx")),
            ("batch_end", ("outputs", "batch", "batch_idx", "dataloader_idx")),
        )
    },
}


class Hooks:
    """One attribute for each event: a function that fires its hooks, or None when nobody implements one.

    A function returns what the module's hook returned; None where the module has not that hook.
    """

    __slots__ = tuple(HOOKS)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Callable[..., Any] | None: ...


def untimed(action: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` as it is: nobody measures how long ``action`` takes."""
    return call


def resolve(
    trainer: Any,
    module: Any,
    callbacks: Sequence[Callback],
    module_base: type,
    results: Results,
    timed: Callable[[str, Callable[..., Any]], Callable[..., Any]] = untimed,
) -> Hooks:
    """Bind each event to its implementers, callbacks first, then the module.

    At the end of a training epoch, callbacks that monitor metrics come after the module, so that they see what it
    logged there. What is called is what ``timed`` makes of a hook, given its name for people.

    Raises:
        MisconfigurationError: A hook cannot take the call it will get.
    """
    hooks, former = Hooks(), FormerHooks(trainer, module, callbacks, results)
    by_callback = [(callback, overridden(callback, HOOKS, Callback)) for callback in callbacks]
    by_module = overridden(module, HOOKS, module_base)
    wanted = {*by_module, *former.events, *(name for _, names in by_callback for name in names)}
    for name, arguments in HOOKS.items():
        if name not in wanted:
            setattr(hooks, name, None)
            continue
        of_callbacks: list[tuple[bool, Callable[..., Any]]] = [
            (
                getattr(callback, "monitors", False),
                timed(action_of(callback, name), partial(adapt(callback, name, 2, arguments, former), trainer, module)),
            )
            for callback, names in by_callback
            if name in names
        ]
        of_module = []
        if name in by_module:
            of_module.append(timed(action_of(module, name), adapt(module, name, 0, arguments, former)))
        if name == "on_train_epoch_end":
            first = [call for monitors, call in of_callbacks if not monitors]
            calls = [*first, *of_module, *(call for monitors, call in of_callbacks if monitors)]
        else:
            calls = [*(call for _, call in of_callbacks), *of_module]
        calls = former.around(name, calls)
        setattr(hooks, name, _fire(name, calls, results, bool(of_module)) if calls else None)
    return hooks


def action_of(owner: object, hook: str) -> str:
    """What a profiler calls the hook of ``owner``, such as ``"[Callback]ModelCheckpoint.on_train_batch_end"``."""
    bases = [base.__name__ for base in type(owner).__mro__]
    kind = next((k for k in ("Callback", "LightningDataModule", "LightningModule") if k in bases), "")
    return f"[{kind}]{type(owner).__name__}.{hook}"


def overrides(owner: object, name: str, base: type) -> bool:
    """True when ``owner`` implements ``name`` itself, on its class or on the instance, rather than inheriting it."""
    method = getattr(owner, name, None)
    return method is not None and getattr(method, "__func__", method) is not getattr(base, name, None)


def overridden(owner: object, names: Iterable[str], base: type) -> list[str]:
    """Those of ``names`` for which ``overrides`` is true."""
    cls, own = type(owner), getattr(owner, "__dict__", {})
    if cls.__getattribute__ is not object.__getattribute__:
        return [name for name in names if overrides(owner, name, base)]
    return [
        name
        for name in names
        # What the class inherits and the instance has not is not overridden, which is quick to see.
        if (name in own or getattr(cls, name, base) is not getattr(base, name, None)) and overrides(owner, name, base)
    ]


def takes(function: Callable[..., Any], arguments: int, by_keyword: Sequence[str] = ()) -> bool:
    """True when ``function`` can be called with that many positional arguments, and those ``by_keyword``."""
    if (plain := parameters(function)) is not None:
        return plain.take(arguments, by_keyword)
    try:
        inspect.signature(function).bind(*[None] * arguments, **dict.fromkeys(by_keyword))
    except TypeError:
        return False
    except ValueError:  # built-ins have no signature
        return True
    return True


def parameters_of(function: Callable[..., Any]) -> str:
    """The parameters of ``function`` for people: without annotations."""
    signature = inspect.signature(function)
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def adapt(
    owner: object, name: str, leading: int, arguments: tuple[str, ...], former: FormerHooks
) -> Callable[..., Any]:
    """The hook ``name`` of ``owner``, ready for the call it will get: ``leading`` arguments, then ``arguments``.

    A hook that leaves the last parameter, ``dataloader_idx``, out is called without it.
    """
    if (call_of_then := former.adapted(owner, name, leading)) is not None:
        return call_of_then
    method: Callable[..., Any] = getattr(owner, name)
    if takes(method, leading + len(arguments)):
        return method
    if arguments[-1:] == ("dataloader_idx",) and takes(method, leading + len(arguments) - 1):
        return lambda *given: method(*given[:-1])
    call = ", ".join([*("trainer", "pl_module")[:leading], *arguments])
    raise MisconfigurationError(
        f"{type(owner).__name__}.{name}{parameters_of(method)} cannot take the call it will get: {name}({call})."
    )


def _fire(name: str, calls: list[Callable[..., Any]], results: Results, has_module: bool) -> Callable[..., Any]:
    def fire(*args: Any) -> Any:
        outer, results.hook = results.hook, name
        for call in calls:
            result = call(*args)
        results.hook = outer
        return result if has_module else None

    return fire
