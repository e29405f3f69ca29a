"""Plugins: what ``Trainer(plugins=)`` takes, to write checkpoints or to choose number types."""

from typing import TYPE_CHECKING

from leyden.utils.lazy import lazy_names

if TYPE_CHECKING:
    from leyden.fabric.async_checkpoint_io import AsyncCheckpointIO as AsyncCheckpointIO
    from leyden.fabric.checkpoint_io import CheckpointIO as CheckpointIO
    from leyden.fabric.checkpoint_io import TorchCheckpointIO as TorchCheckpointIO
    from leyden.fabric.precision import DoublePrecision as DoublePrecision
    from leyden.fabric.precision import HalfPrecision as HalfPrecision
    from leyden.fabric.precision import MixedPrecision as MixedPrecision
    from leyden.fabric.precision import Precision as Precision

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AsyncCheckpointIO": "leyden.fabric.async_checkpoint_io",
        "CheckpointIO": "leyden.fabric.checkpoint_io",
        "DoublePrecision": "leyden.fabric.precision",
        "HalfPrecision": "leyden.fabric.precision",
        "MixedPrecision": "leyden.fabric.precision",
        "Precision": "leyden.fabric.precision",
        "TorchCheckpointIO": "leyden.fabric.checkpoint_io",
        "io": "leyden.plugins.io",
    },
    not_built={
        "BitsandbytesPrecision": "Use MixedPrecision or HalfPrecision.",
        "FSDPPrecision": "Use MixedPrecision or HalfPrecision.",
        "TorchSyncBatchNorm": "One device needs none.",
        "TransformerEnginePrecision": "Use MixedPrecision or HalfPrecision.",
        "XLACheckpointIO": "TPUs are not supported. Use CheckpointIO.",
    },
)
