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
    not_built={
        "BackboneFinetuning": "Set requires_grad_ in on_train_epoch_start.",
        "BaseFinetuning": "Set requires_grad_ in on_train_epoch_start.",
        "BasePredictionWriter": "Write in on_predict_batch_end.",
        "BatchSizeFinder": "Give the DataLoader its batch_size.",
        "DeviceStatsMonitor": "Log torch.cuda.memory_stats() in on_train_batch_end.",
        "EMAWeightAveraging": "Use torch.optim.swa_utils.AveragedModel in hooks.",
        "GPUStatsMonitor": "Log torch.cuda.memory_stats() in on_train_batch_end.",
        "GradientAccumulationScheduler": "Set trainer.accumulate_grad_batches in on_train_epoch_start.",
        "LambdaCallback": "Derive from leyden.Callback.",
        "LearningRateFinder": "Give the optimizer its learning rate.",
        "ModelPruning": "Use torch.nn.utils.prune in hooks.",
        "OnExceptionCheckpoint": "Use ModelCheckpoint(save_on_exception=True).",
        "ProgressBarBase": "Derive from ProgressBar.",
        "QuantizationAwareTraining": "Use torch.ao.quantization in hooks.",
        "RichModelSummary": "Use ModelSummary.",
        "RichProgressBar": "Use ProgressBar.",
        "StochasticWeightAveraging": "Use torch.optim.swa_utils.AveragedModel in hooks.",
        "TQDMProgressBar": "Use ProgressBar.",
        "ThroughputMonitor": "Measure time in on_train_batch_end.",
        "WeightAveraging": "Use torch.optim.swa_utils.AveragedModel in hooks.",
    },
)
__all__ = __dir__()
