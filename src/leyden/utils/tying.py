"""Parameters that several modules share: find them, and share them again after they were copied apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from torch import nn


def find_shared_parameters(module: nn.Module) -> list[list[str]]:
    """The names of every parameter that has several, such as ``[["embed.weight", "head.weight"]]``."""
    names: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names[parameter].append(name)
    return [group for group in names.values() if len(group) > 1]


def set_shared_parameters(module: nn.Module, shared_params: Iterable[Sequence[str]]) -> nn.Module:
    """Make every group of names in ``shared_params`` one parameter again: the first one.

    Args:
        module: Changed in place.
        shared_params: What ``find_shared_parameters`` returned.

    Returns:
        ``module``.

    Raises:
        AttributeError: The module has no parameter of that name.
    """
    for first, *others in shared_params:
        parameter = module.get_parameter(first)
        for other in others:
            path, _, name = other.rpartition(".")
            setattr(module.get_submodule(path), name, parameter)
    return module
