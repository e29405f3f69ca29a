"""A short text that tells whether a value, nested as it may be, is the same as before or in another process."""

from __future__ import annotations

import hashlib
import logging
import random
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Reversible, Sequence
from enum import Enum
from functools import partial
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

# What is longer is looked at in places alone, so that a dataset in memory costs little.
_ITEMS = 512
_NUMBERS = 2**24
_DEPTH = 8
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, range, slice)
# What has a state of its own that is not the holder's business, or none.
_OPAQUE = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, partial, Optimizer, LRScheduler, DataLoader)
_HANDLES = (logging.Logger, threading.Thread)


def digest(value: Any, opaque: Sequence[type] = ()) -> str:
    """32 hexadecimal digits that are the same for the same value, in this process and in others.

    Tensors and arrays count bit by bit, containers item by item, other objects by class and attributes; functions,
    classes, loaders and optimizers by their type. Containers of more than 512 items and tensors of more than 16 million
    numbers are sampled.

    Args:
        value: Anything.
        opaque: Types of which an instance counts as any other.
    """
    walk = _Walk((*_OPAQUE, *_HANDLES, *opaque))
    walk.add(value, 0)
    return walk.sum.hexdigest()


def bits(tensor: Tensor) -> Tensor:
    """The bytes of ``tensor`` on the CPU, shape ``(n,)``."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu()
    return plain.contiguous().reshape(-1).view(torch.uint8) if plain.numel() else torch.empty(0, dtype=torch.uint8)


def describe(value: Any) -> str:
    """``value`` in a few words.

    >>> describe(torch.zeros(2, 3)), describe([1, 2]), describe(4)
    ('a tensor of shape (2, 3)', 'a list of 2', '4')
    """
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta:
        return f"tensor({value.item()!r})"
    if isinstance(value, Tensor) or (type(value).__module__ == "numpy" and hasattr(value, "shape") and value.shape):
        return f"{'a tensor' if isinstance(value, Tensor) else 'an array'} of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple | set | frozenset | dict | deque):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, _PLAIN) or type(value).__module__ == "numpy":
        text = repr(value)
        return text if len(text) <= 40 else f"{text[:36]} ..."
    return f"a {type(value).__name__}"


class _Walk:
    def __init__(self, opaque: tuple[type, ...]) -> None:
        self.opaque = opaque
        self.sum = hashlib.blake2b(digest_size=16)
        self.seen: dict[int, int] = {}
        self.alive: list[Any] = []  # so that no id is given twice

    def text(self, *words: object) -> None:
        self.sum.update("\0".join(map(str, words)).encode("utf-8", "surrogatepass") + b"\1")

    def add(self, value: Any, depth: int) -> None:
        kind = type(value)
        self.text(kind.__module__, kind.__qualname__)
        if isinstance(value, Enum):
            self.text(value.name)
        elif isinstance(value, _PLAIN):
            self.text(repr(value))
        elif depth > _DEPTH or isinstance(value, self.opaque):
            return
        elif id(value) in self.seen:
            self.text(self.seen[id(value)])
        else:
            self.seen[id(value)] = len(self.seen)
            self.alive.append(value)
            self.content(value, depth + 1)

    def content(self, value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            self.tensor(value)
        elif isinstance(value, torch.Generator):
            self.tensor(value.get_state())
        elif type(value).__module__.partition(".")[0] == "numpy":
            self.numpy(value, depth)
        elif isinstance(value, random.Random):
            self.text(value.getstate())
        elif isinstance(value, Mapping):
            self.text(len(value))
            for key, item in _some(value.items(), len(value)):
                self.add(key, depth)
                self.add(item, depth)
        elif isinstance(value, list | tuple | deque):
            self.text(len(value))
            for item in _some(value, len(value)):
                self.add(item, depth)
        elif isinstance(value, set | frozenset):
            self.text(len(value), *sorted(digest(item, self.opaque) for item in value if len(value) <= _ITEMS))
        elif isinstance(value, nn.Module):
            for name, tensor in value.state_dict().items():
                self.text(name)
                self.add(tensor, depth)
        else:
            self.object(value, depth)

    def tensor(self, tensor: Tensor) -> None:
        self.text(tensor.dtype, tuple(tensor.shape))
        if tensor.is_meta or tensor.layout is not torch.strided:
            return
        if tensor.numel() > _NUMBERS:
            tensor = tensor.detach().reshape(-1)[:: tensor.numel() // _NUMBERS + 1]
        self.sum.update(bits(tensor).numpy().data)

    def numpy(self, value: Any, depth: int) -> None:
        if hasattr(value, "bit_generator"):
            self.add(value.bit_generator.state, depth)
        elif hasattr(value, "get_state"):
            self.add(value.get_state(), depth)
        elif value.__class__.__name__ == "ndarray" and value.dtype != object:
            self.text(value.dtype, value.shape)
            self.sum.update((value if value.size <= _NUMBERS else value.reshape(-1)[:_NUMBERS]).tobytes())
        else:
            self.text(repr(value))

    def object(self, value: Any, depth: int) -> None:
        slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
        attributes = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(
            value, "__dict__", {}
        )
        for name in sorted(attributes):
            self.text(name)
            self.add(attributes[name], depth)
        if not attributes and " at 0x" not in (text := repr(value)):  # a date, a count, a path
            self.text(text)


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _some(items: Any, count: int) -> Iterator[Any]:
    """All items, or the first and the last where there are many."""
    if count <= _ITEMS:
        yield from items
    else:
        yield from islice(items, _ITEMS // 2)
        if isinstance(items, Reversible):
            yield from islice(reversed(items), _ITEMS // 2)
