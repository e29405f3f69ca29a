"""Callback: every hook, doing nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from leyden.utils.errors import warn

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from leyden.core.module import LightningModule
    from leyden.core.results import Results
    from leyden.core.types import Trainer


class Callback:
    """Something that happens beside training: override the hooks it needs.

    Every hook gets the Trainer and the LightningModule first. Hooks that a class does not override cost nothing. The
    order in which hooks fire is the order of the lines in ``leyden/core/fit.py`` and ``leyden/core/evaluate.py``;
    at each of them callbacks come first, in the order of ``Trainer(callbacks=)``, then the module.

    Hooks that see batches also get ``dataloader_idx``, the loader's place among several; a subclass may leave that
    parameter out.
    """

    # The Trainer puts the run's results here, so that log() works in a callback too.
    _results: Results | None = None

    @property
    def state_key(self) -> str:
        """The name under which this callback's state is kept in checkpoints; one for each instance of a class."""
        return type(self).__qualname__

    def _generate_state_key(self, **kwargs: Any) -> str:
        """A state key that tells instances apart by what they were made with."""
        return f"{type(self).__qualname__}{kwargs!r}"

    def log(self, name: str, value: Any, **options: Any) -> None:
        """Log a value as ``LightningModule.log`` does, with the same options."""
        if self._results is None:
            warn("LD011", "self.log goes nowhere: there is no run, or it is Trainer(barebones=True).")
            return
        self._results.log(name, value, **options)

    def log_dict(self, dictionary: Mapping[str, Any], **options: Any) -> None:
        """Log several values as ``LightningModule.log_dict`` does, with the same options."""
        if not hasattr(dictionary, "items"):
            raise TypeError(f"self.log_dict takes a dict, got {dictionary!r}. For one value use self.log(name, value).")
        for name, value in dictionary.items():
            self.log(name, value, **options)

    # Around a run.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called first in every run; ``stage`` is ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called last in every run, after a failure too."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Called when the run is ended by ``exception``, which goes on to the caller afterwards."""

    # Training.

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the model is on its device and the optimizers are made."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when fit is done."""

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the few validation batches that are tried before training."""

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the few validation batches that are tried before training."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the first epoch."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the last epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the first batch of an epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the last batch of an epoch, validation included; monitoring callbacks come after the module."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Called before ``training_step``, with the batch on its device."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after the batch is done; ``outputs`` is a dict with the undivided, detached ``"loss"``."""

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Called before gradients are cleared: after the forward pass, before the backward pass."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Called before the backward pass, with the loss as it is propagated."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the backward pass; gradients are not unscaled yet."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Called before the optimizer steps and before clipping; gradients are unscaled."""

    # Validation, test, prediction.

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before validation."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after validation, when its metrics are known."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the first validation batch."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the last validation batch; values logged here count for this validation."""

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called before ``validation_step``."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Called after ``validation_step``, whose result is ``outputs``."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the test."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the test, when its metrics are known."""

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the first test batch."""

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the last test batch; values logged here count for this test."""

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called before ``test_step``."""

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Called after ``test_step``, whose result is ``outputs``."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before prediction."""

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after prediction."""

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before the first batch of prediction."""

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after the last batch of prediction."""

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called before ``predict_step``."""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Called after ``predict_step``, whose result is ``outputs``."""

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """What this callback must remember; kept in checkpoints under ``state_key``."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned when the checkpoint was written."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called before a checkpoint is written; may add keys to it."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called when a checkpoint was read and the weights are loaded."""
