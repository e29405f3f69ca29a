"""A LightningModule that torch.compile has wrapped: the module itself, and how torch was asked to compile it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from leyden.core.module import LightningModule
from leyden.core.state import Fn
from leyden.utils.errors import MisconfigurationError, NotBuiltError
from leyden.utils.rank import say

# The module's attribute, as in Lightning; a torch.compile that it carries holds for every fit.
_CARRIED = "_compiler_ctx"
_REPLAYS = "triton.cudagraphs"


@dataclasses.dataclass(frozen=True, eq=False)
class CompileOptions:
    """What ``torch.compile(model, ...)`` was given.

    Copies of a module that carries it share it; a pickle leaves it out, since few backends can be pickled.

    Attributes:
        backend: Takes a graph and example inputs, and returns what runs the graph.
        inductor: The options of torch's own backend; None where it is another.
        names: ``name`` for torch's own backend.
        dynamo: What else torch is given for every compilation.
        fullgraph: A step that cannot be compiled ends the run.
    """

    backend: Callable[..., Any]
    inductor: Mapping[str, Any] | None
    names: Mapping[str, str]
    dynamo: Mapping[str, Any]
    fullgraph: bool

    @property
    def asks_for_replays(self) -> bool:
        """CUDA graphs are to be made, as ``mode="reduce-overhead"`` says."""
        return self.inductor is not None and bool(self.inductor.get(_REPLAYS))

    @property
    def lets_replay(self) -> bool:
        """CUDA graphs may be made."""
        return self.inductor is not None and self.inductor.get(_REPLAYS) is not False

    def changed(self, options: Mapping[str, Any], replays: bool) -> dict[str, Any]:
        """``options`` for torch's own backend with these in place of them."""
        # Apart, forward and backward keep gradients and logged values in memory that the next replay writes over.
        own = {name: value for name, value in (self.inductor or {}).items() if replays or name != _REPLAYS}
        return {**options, **own}

    def __deepcopy__(self, memo: dict[int, Any]) -> CompileOptions:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (_nothing, ())


def _nothing() -> None:
    """What a pickle holds in the options' place."""


def from_compiled(model: nn.Module) -> LightningModule:
    """The LightningModule within ``torch.compile(module, ...)``, which fit will train compiled in the same way.

    Raises:
        ValueError: ``model`` is not a compiled LightningModule.
    """
    module = _within(model)
    if module is None:
        raise ValueError(f"from_compiled takes torch.compile(module) of a LightningModule, got {_described(model)}.")
    setattr(module, _CARRIED, _options_of(model))
    return module


def to_uncompiled(model: nn.Module) -> LightningModule:
    """The LightningModule within ``torch.compile(module, ...)``, or of ``from_compiled``; fit will not compile it.

    Raises:
        ValueError: ``model`` is not a compiled LightningModule.
    """
    within = _within(model)
    module = model if within is None else within
    if not isinstance(module, LightningModule) or (within is None and getattr(module, _CARRIED, None) is None):
        raise ValueError(
            "to_uncompiled takes torch.compile(module) of a LightningModule, or what from_compiled gave; got "
            f"{_described(model)}."
        )
    vars(module).pop(_CARRIED, None)
    return module


def for_run(given: nn.Module, module: LightningModule, options: Any, fn: Fn) -> tuple[Any, CompileOptions | None]:
    """The Trainer's options for one run, and how to compile.

    Args:
        given: What the Trainer was given: ``module``, or what torch.compile made of it.
        module: What is to be trained.
        options: The Trainer's; where they say what to compile, that holds.
        fn: Only fit compiles.
    """
    how = getattr(module, _CARRIED, None) if given is module else _options_of(given)
    if how is None:
        return options, None
    if fn is not Fn.FIT:
        say(f"trainer.{fn}: only fit compiles a compiled module's step, so it runs as it is (docs/compile.md).")
        return options, None
    return dataclasses.replace(options, compile=options.compile or "model"), how


def _within(model: Any) -> LightningModule | None:
    """The LightningModule that torch.compile wrapped."""
    module = model._modules.get("_orig_mod") if isinstance(model, nn.Module) else None
    return module if isinstance(module, LightningModule) else None


def _described(model: Any) -> str:
    module = getattr(model, "_orig_mod", None)
    return type(model).__name__ if module is None else f"a compiled {type(module).__name__}"


def _options_of(wrapper: nn.Module) -> CompileOptions | None:
    """How torch was asked to compile; None if it was asked not to.

    Raises:
        MisconfigurationError: This version of torch keeps it elsewhere.
    """
    context = vars(wrapper).get("dynamo_ctx")
    callback = getattr(context, "callback", wrapper)
    if callback is None or callback is False:  # torch.compiler.disable
        return None
    # None of this is public. The innermost is what was given, or a wrapper of torch's around it.
    links = [callback]
    while callable(inner := getattr(links[-1], "_torchdynamo_orig_backend", None)):
        links.append(inner)
    if len(links) == 1:
        raise MisconfigurationError(
            f"torch {torch.__version__} does not say how a module was compiled. Give the module itself, and "
            "Trainer(compile='model')."
        )
    if getattr(context, "_shapes_spec", None) is not None:
        raise NotBuiltError("torch.compile(model, shapes_spec=...)", "Use dynamic=True.")
    limits = [getattr(link, "_recompile_limit", None) for link in links]
    dynamo = {
        "dynamic": getattr(context, "_dynamic", None),
        "guard_filter_fn": getattr(getattr(context, "_hooks", None), "guard_filter_fn", None),
        "recompile_limit": next((limit for limit in limits if limit is not None), None),
    }
    backend = links[-1]
    inductors = type(backend) is getattr(torch, "_TorchCompileInductorWrapper", None)
    name = getattr(backend, "name", None) if inductors else None
    return CompileOptions(
        backend,
        dict(getattr(backend, "config", {})) if inductors else None,
        {} if name is None else {"compile_region_name": name},
        {key: value for key, value in dynamo.items() if value is not None},
        bool(getattr(context, "fullgraph", False)),
    )
