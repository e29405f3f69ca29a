"""Type aliases, and the Trainer's name for annotations (the only upward edge of the import graph)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from leyden.trainer import Trainer as Trainer

# What a step may return: a loss, a mapping with "loss", or nothing.
StepOutput: TypeAlias = Tensor | Mapping[str, Any] | None
