"""What a checkpoint may hold, so that it can be read without running code."""

from __future__ import annotations

from collections import Counter, OrderedDict
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

# What torch.load(weights_only=True) reads, found by an experiment that tests/fabric/test_unsafe.py repeats.
# Types count exactly: a str-Enum, a named tuple or a defaultdict is pickled by way of its own class, and refused.
_PLAIN = {
    *(str, float, bool, complex, type(None), bytearray),
    *(torch.device, torch.dtype, torch.layout, torch.qscheme, torch.UntypedStorage, torch.TypedStorage),
}
_DICTS = (dict, OrderedDict, Counter)
_SEQUENCES = (list, tuple, set, torch.Size)
_TENSORS = (Tensor, nn.Parameter)
# Pickle names these before their content, so they may contain themselves; the others may not.
_MAY_CONTAIN_ITSELF = (list, dict, OrderedDict)
# As values themselves, not as the types of values.
_NAMED = {OrderedDict, Counter, Tensor, nn.Parameter, torch.Size, torch.device, set, complex, bytearray}
_INT_BITS = 255 * 8 - 1  # what pickle's LONG1 holds, beside the sign


def unsafe_places(value: Any, place: str = "checkpoint") -> list[str]:
    """Where ``value`` holds what ``torch.load(weights_only=True)`` could not read back.

    Types and functions that were given to ``torch.serialization.add_safe_globals`` count as readable.

    Args:
        value: A checkpoint, or a part of one.
        place: What to call ``value``. By default the entries begin with its own keys.

    Returns:
        Entries such as ``"hyper_parameters['cfg']: __main__.Cfg"``; none when all can be read.
    """
    found: list[str] = []
    walk = _Walk(found)
    if place == "checkpoint" and type(value) is dict and all(type(key) is str for key in value):
        walk.under_way.add(id(value))
        for key, item in value.items():
            walk.visit(item, key)
    else:
        walk.visit(value, place)
    return found


class _Walk:
    """One walk over nested values, visiting each container once."""

    def __init__(self, found: list[str]) -> None:
        self.found = found
        self.under_way: set[int] = set()
        self.done: set[int] = set()
        self.allowed = {
            entry[0] if isinstance(entry, tuple) else entry for entry in torch.serialization.get_safe_globals()
        }

    def visit(self, value: Any, place: str) -> None:
        kind = type(value)
        if kind in _PLAIN or kind in self.allowed:
            return
        if kind is int:
            if max(value, ~value).bit_length() > _INT_BITS:
                self.found.append(f"{place}: an int of {value.bit_length()} bits")
        elif kind is bytes:
            if not value:  # pickled as a call of bytes()
                self.found.append(f"{place}: empty bytes")
        elif kind in _DICTS or kind in _SEQUENCES or kind in _TENSORS:
            self.visit_once(value, place)
        elif isinstance(value, type | FunctionType | BuiltinFunctionType):
            if value not in _NAMED and value not in self.allowed:
                what = "class" if isinstance(value, type) else "function"
                self.found.append(f"{place}: {what} {_full_name(value)}")
        else:
            self.found.append(f"{place}: {_full_name(kind)}")

    def visit_once(self, value: Any, place: str) -> None:
        identity = id(value)
        if identity in self.done:
            return
        if identity in self.under_way:
            if type(value) not in _MAY_CONTAIN_ITSELF:
                self.found.append(f"{place}: a {type(value).__name__} that contains itself")
            return
        self.under_way.add(identity)
        self.visit_content(value, place)
        self.under_way.remove(identity)
        self.done.add(identity)

    def visit_content(self, value: Any, place: str) -> None:
        if type(value) in _DICTS:
            for key, item in value.items():
                self.visit(key, f"{place}, key {key!r}")
                self.visit(item, f"{place}[{key!r}]")
        elif type(value) is set:
            for item in value:
                self.visit(item, f"{place}, element")
        elif type(value) in _SEQUENCES:
            for index, item in enumerate(value):
                self.visit(item, f"{place}[{index}]")
        if type(value) is OrderedDict or type(value) in _TENSORS:  # whose attributes are pickled too
            for name, item in vars(value).items():
                self.visit(item, f"{place}.{name}")


def _full_name(what: Any) -> str:
    module = getattr(what, "__module__", None)
    name = str(getattr(what, "__qualname__", what))
    return name if module in (None, "builtins") else f"{module}.{name}"
