"""Types for annotations, where Lightning's users look for them."""

from leyden.core.optimizers import LRSchedulerConfig as LRSchedulerConfig
from leyden.core.types import EVAL_DATALOADERS as EVAL_DATALOADERS
from leyden.core.types import STEP_OUTPUT as STEP_OUTPUT
from leyden.core.types import TRAIN_DATALOADERS as TRAIN_DATALOADERS
from leyden.core.types import LRSchedulerConfigType as LRSchedulerConfigType
from leyden.core.types import LRSchedulerTypeUnion as LRSchedulerTypeUnion
from leyden.core.types import OptimizerConfig as OptimizerConfig
from leyden.core.types import OptimizerLRScheduler as OptimizerLRScheduler
from leyden.core.types import OptimizerLRSchedulerConfig as OptimizerLRSchedulerConfig
