"""Leyden: a LightningModule says what to train, a Trainer does the rest."""

from typing import TYPE_CHECKING

from leyden.utils.lazy import lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from leyden.core.callback import Callback as Callback
    from leyden.core.combined import CombinedLoader as CombinedLoader
    from leyden.core.datamodule import LightningDataModule as LightningDataModule
    from leyden.core.module import LightningModule as LightningModule
    from leyden.fabric.fabric import Fabric as Fabric
    from leyden.trainer import Trainer as Trainer
    from leyden.utils.seed import seed_everything as seed_everything

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Callback": "leyden.core.callback",
        "CombinedLoader": "leyden.core.combined",
        "Fabric": "leyden.fabric.fabric",
        "LightningDataModule": "leyden.core.datamodule",
        "LightningModule": "leyden.core.module",
        "Trainer": "leyden.trainer",
        "callbacks": "leyden.callbacks",
        "demos": "leyden.demos",
        "loggers": "leyden.loggers",
        "plugins": "leyden.plugins",
        "profilers": "leyden.profilers",
        "seed_everything": "leyden.utils.seed",
        "utilities": "leyden.utilities",
    },
    not_built={
        "EvalResult": "Call self.log in validation_step or test_step.",
        "LightningLite": "Use leyden.Fabric.",
        "TrainResult": "Call self.log in training_step, and return the loss.",
        "metrics": "Use torchmetrics.",
        "serve": "Serve what module.to_exported_program() makes.",
        "strategies": "One device needs none.",
        "tuner": "Give the optimizer its learning rate and the DataLoader its batch_size.",
    },
)
__all__ = __dir__()
