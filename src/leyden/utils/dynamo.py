"""torch's compiler, which takes a second to import, is not imported before somebody compiles."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch.optim import Optimizer

COMPILER = "torch._dynamo"
# Where torch's wrapper looks for the function that it made of the one within, once the compiler is there.
_MADE = "__dynamo_disable"
_METHODS = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


@contextmanager
def compiler_put_off() -> Iterator[None]:
    """Inside, to make an optimizer, or to save or load its state, does not import the compiler.

    torch keeps the compiler from tracing these methods, and imports it for that. While it is not imported, nobody
    traces, so they are called as they are; as soon as it is, they are torch's own again. Nothing is left behind.
    """
    found = () if COMPILER in sys.modules else _functions()
    ours: dict[FunctionType, Callable[..., Any]] = {}
    for function in found:
        if _MADE not in vars(function):
            vars(function)[_MADE] = ours[function] = partial(_call, function)
    try:
        yield
    finally:
        for function, made in ours.items():
            if vars(function).get(_MADE) is made:
                del vars(function)[_MADE]


def _call(function: FunctionType, *args: Any, **options: Any) -> Any:
    if COMPILER not in sys.modules:
        return function(*args, **options)
    vars(function).pop(_MADE, None)
    return getattr(Optimizer, function.__name__)(*args, **options)


def _functions() -> list[FunctionType]:
    """What torch's wrapper is around, of each method that has it and nothing else."""
    found = []
    for name in _METHODS:
        outer = getattr(Optimizer, name, None)
        inner = getattr(outer, "__wrapped__", None)
        is_torchs = _WRAPPER is not None and getattr(outer, "__code__", None) is _WRAPPER
        if is_torchs and isinstance(inner, FunctionType) and inner.__name__ == name and _MADE in _WRAPPER.co_consts:
            found.append(inner)
    return found


_disable: Any = getattr(torch, "_disable_dynamo", None)
_WRAPPER: Any = None if _disable is None else getattr(_disable(lambda: None), "__code__", None)
