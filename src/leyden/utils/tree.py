"""Map over nested batches; move them to a device; find their size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def tree_map(function: Callable[[Any], Any], tree: Any, kind: type | tuple[type, ...] = Tensor) -> Any:
    """A copy of ``tree`` with ``function`` applied to every leaf of type ``kind``.

    Goes into lists, tuples, named tuples, mappings and dataclass instances; leaves of another type are kept as they
    are. Containers come back as the type they were.
    """
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(function, item, kind) for item in tree))
    if type(tree) in (list, tuple):
        return type(tree)([tree_map(function, item, kind) for item in tree])
    if isinstance(tree, Mapping):
        mapped = {key: tree_map(function, item, kind) for key, item in tree.items()}
        return mapped if type(tree) is dict else _rebuild(tree, mapped)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        changes = {f.name: tree_map(function, getattr(tree, f.name), kind) for f in dataclasses.fields(tree) if f.init}
        return dataclasses.replace(tree, **changes)
    if isinstance(tree, list | tuple):
        return _rebuild(tree, [tree_map(function, item, kind) for item in tree])
    return tree


def _rebuild(original: Any, items: Any) -> Any:
    """``items`` in the container type of ``original``; the plain container where that type cannot be built so."""
    try:
        return type(original)(items)
    except TypeError:
        return items


def tree_leaves(tree: Any) -> Iterator[Any]:
    """Every leaf of ``tree``, in order, of whatever type."""
    if isinstance(tree, Mapping):
        for item in list(tree.values()):  # which may change while it is walked
            yield from tree_leaves(item)
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from tree_leaves(item)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from tree_leaves(getattr(tree, field.name))
    else:
        yield tree


def move_data_to_device(batch: Any, device: torch.device | str) -> Any:
    """``batch`` with every tensor, and every other object that has ``.to(device)``, on ``device``.

    Copies from pinned memory to a GPU do not wait for the GPU.
    """
    device = torch.device(device)

    def move(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to(device, non_blocking=leaf.device.type == "cpu" and device.type == "cuda")
        return leaf.to(device)

    return tree_map(move, batch, HasTo)


class _Movable(type):
    """Types with a ``to`` method, such as tensors, packed sequences and tokenizers' encodings."""

    def __instancecheck__(cls, leaf: object) -> bool:
        return isinstance(leaf, Tensor) or (callable(getattr(leaf, "to", None)) and not isinstance(leaf, type))


class HasTo(metaclass=_Movable):
    """Stands for every movable type in ``isinstance``."""


def batch_size_of(batch: Any) -> int | None:
    """Samples in ``batch``: the first dimension of its first tensor that has one; None when there is no tensor."""
    size: int | None = None
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor):
            if leaf.ndim:
                return leaf.shape[0]
            size = 1
    return size
