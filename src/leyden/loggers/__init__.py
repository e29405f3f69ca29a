"""Loggers: where the values of a run go."""

from typing import TYPE_CHECKING

from leyden.utils.lazy import lazy_names

if TYPE_CHECKING:
    from leyden.loggers.csv import CSVLogger as CSVLogger
    from leyden.loggers.logger import Logger as Logger
    from leyden.loggers.tensorboard import TensorBoardLogger as TensorBoardLogger

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CSVLogger": "leyden.loggers.csv",
        "Logger": "leyden.loggers.logger",
        "TensorBoardLogger": "leyden.loggers.tensorboard",
        "media": "leyden.loggers.media",
    },
    not_built={
        **dict.fromkeys(
            ("CometLogger", "LitLogger", "MLFlowLogger", "NeptuneLogger", "TestTubeLogger", "WandbLogger"),
            "Use TensorBoardLogger or CSVLogger; or derive from leyden.loggers.Logger.",
        ),
        "LightningLoggerBase": "Derive from leyden.loggers.Logger.",
        "LoggerCollection": "Give Trainer(logger=[...]) a list; trainer.loggers is one.",
    },
)
__all__ = __dir__()
