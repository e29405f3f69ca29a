"""Callbacks: what happens beside training."""

from typing import TYPE_CHECKING

from leyden.utils.lazy import lazy_names

if TYPE_CHECKING:
    from leyden.callbacks.early_stopping import EarlyStopping as EarlyStopping
    from leyden.callbacks.early_stopping import EarlyStoppingReason as EarlyStoppingReason
    from leyden.callbacks.lr_monitor import LearningRateMonitor as LearningRateMonitor
    from leyden.callbacks.model_checkpoint import Checkpoint as Checkpoint
    from leyden.callbacks.model_checkpoint import ModelCheckpoint as ModelCheckpoint
    from leyden.callbacks.model_summary import ModelSummary as ModelSummary
    from leyden.callbacks.progress import ProgressBar as ProgressBar
    from leyden.callbacks.timer import Timer as Timer
    from leyden.core.callback import Callback as Callback

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Callback": "leyden.core.callback",
        "Checkpoint": "leyden.callbacks.model_checkpoint",
        "EarlyStopping": "leyden.callbacks.early_stopping",
        "EarlyStoppingReason": "leyden.callbacks.early_stopping",
        "LearningRateMonitor": "leyden.callbacks.lr_monitor",
        "ModelCheckpoint": "leyden.callbacks.model_checkpoint",
        "ModelSummary": "leyden.callbacks.model_summary",
        "ProgressBar": "leyden.callbacks.progress",
        "Timer": "leyden.callbacks.timer",
    },
)
