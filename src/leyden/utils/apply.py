"""Lightning's way to map over nested collections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from leyden.utils.tree import tree_map


def apply_to_collection(
    data: Any,
    dtype: Any,
    function: Callable[..., Any],
    *args: Any,
    wrong_dtype: Any = None,
    include_none: bool = True,
    **kwargs: Any,
) -> Any:
    """A copy of ``data`` with ``function(item, *args, **kwargs)`` in the place of every item of type ``dtype``.

    ``leyden.utils.tree.tree_map``, with what Lightning's users know besides. Dataclass instances are copied, frozen
    ones too.

    Args:
        data: An item, or lists, tuples, mappings and dataclass instances of items, nested.
        dtype: A type or several, as ``isinstance`` takes them.
        function: What to do with an item.
        args: More arguments of ``function``.
        wrong_dtype: Types that are left alone though they are of type ``dtype``, such as ``bool`` among ``int``.
        include_none: False leaves out of lists, tuples and mappings what is None in the end.
        kwargs: Keyword arguments of ``function``.
    """
    wanted = dtype if wrong_dtype is None else _ButNot("wanted", (), {"right": dtype, "wrong": wrong_dtype})
    results: dict[int, Any] = {}

    def call(item: Any) -> Any:
        result = function(item, *args, **kwargs)
        results[id(result)] = result
        return result

    mapped = tree_map(call, data, wanted)
    return mapped if include_none else _without_none(mapped, results)


def _without_none(tree: Any, results: Mapping[int, Any]) -> Any:
    """``tree``, whose containers nobody else has, without None; what ``function`` returned stays as it is."""
    if id(tree) in results:
        return tree
    if isinstance(tree, MutableMapping):
        for key in list(tree):
            if tree[key] is None:
                del tree[key]
            else:
                tree[key] = _without_none(tree[key], results)
    elif isinstance(tree, list):
        tree[:] = [_without_none(item, results) for item in tree if item is not None]
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_without_none(item, results) for item in tree))  # it has a place for each
    elif isinstance(tree, tuple):
        return tuple(_without_none(item, results) for item in tree if item is not None)
    return tree


class _ButNot(type):
    """Stands in ``isinstance`` for the types ``right`` that are not among ``wrong``."""

    right: Any
    wrong: Any

    def __instancecheck__(cls, item: object) -> bool:
        return isinstance(item, cls.right) and not isinstance(item, cls.wrong)
