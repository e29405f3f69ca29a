"""Type aliases, and the Trainer's name for annotations (the only upward edge of the import graph)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import Unpack as Unpack  # typing has it from Python 3.11 on

if TYPE_CHECKING:
    from leyden.trainer import Trainer as Trainer

# What a step may return: a loss, a mapping with "loss", or nothing.
StepOutput: TypeAlias = Tensor | Mapping[str, Any] | None


class LRSchedulerConfigType(TypedDict, total=False):
    """A scheduler and when it steps, as ``configure_optimizers`` may return it; ``LRSchedulerConfig`` has defaults."""

    scheduler: LRScheduler
    name: str | None
    interval: str
    frequency: int
    reduce_on_plateau: bool
    monitor: str | None
    strict: bool


class OptimizerConfig(TypedDict):
    """An optimizer, as ``configure_optimizers`` may return it."""

    optimizer: Optimizer


class OptimizerLRSchedulerConfig(OptimizerConfig, total=False):
    """An optimizer and its scheduler, as ``configure_optimizers`` may return them."""

    lr_scheduler: LRScheduler | LRSchedulerConfigType
    monitor: str


# Names that user code written for Lightning annotates with.
STEP_OUTPUT: TypeAlias = StepOutput
TRAIN_DATALOADERS: TypeAlias = Any
EVAL_DATALOADERS: TypeAlias = Any
LRSchedulerTypeUnion: TypeAlias = LRScheduler
OptimizerLRScheduler: TypeAlias = (
    Optimizer
    | Sequence[Optimizer]
    | tuple[Optimizer, LRScheduler]
    | tuple[Sequence[Optimizer], Sequence[LRScheduler | LRSchedulerConfigType]]
    | OptimizerConfig
    | OptimizerLRSchedulerConfig
    | Sequence[OptimizerConfig]
    | Sequence[OptimizerLRSchedulerConfig]
    | None
)


class FormerOfFit(TypedDict, total=False):
    """Keywords that ``trainer.fit`` had in Lightning 1.x."""

    train_dataloader: Any


class FormerOfValidate(TypedDict, total=False):
    """Keywords that ``trainer.validate`` had in Lightning 1.x."""

    val_dataloaders: Any


class FormerOfTest(TypedDict, total=False):
    """Keywords that ``trainer.test`` had in Lightning 1.x."""

    test_dataloaders: Any


class FormerOfPredict(TypedDict, total=False):
    """Keywords that ``trainer.predict`` had in Lightning 1.x: none."""
