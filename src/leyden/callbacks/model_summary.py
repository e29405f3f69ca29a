"""ModelSummary: print the model's layers before training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leyden.core.callback import Callback
from leyden.utils.lazy import LazyModule
from leyden.utils.rank import is_rank_zero

if TYPE_CHECKING:
    from leyden.core.module import LightningModule
    from leyden.core.types import Trainer

_summary = LazyModule("leyden.utils.summary")


class ModelSummary(Callback):
    """Prints name, type, parameters and mode of the model's layers on rank 0 when fit starts.

    With the sizes of inputs and outputs where the model has an ``example_input_array``.

    Args:
        max_depth: Levels of modules to list: 1 for the model's own attributes, -1 for all, 0 for the totals alone.

    Raises:
        TypeError: ``max_depth`` is not a whole number.
        ValueError: ``max_depth`` is less than -1.
    """

    def __init__(self, max_depth: int = 1) -> None:
        _summary.check_max_depth(max_depth)
        self.max_depth = max_depth

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_rank_zero():
            print(_summary.summarize(pl_module, self.max_depth), flush=True)
