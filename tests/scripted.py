"""A model that logs what a test tells it to, and a fit of it with nothing else attached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from leyden.callbacks.model_checkpoint import Checkpoint
from leyden.core.callback import Callback
from leyden.trainer import Trainer
from models import TinyModel, tiny_loader


class Scripted(TinyModel):
    """Logs ``v``, one of ``values`` for each validation, and ``t``, one of ``train_values`` for each batch."""

    def __init__(self, *values: float, train_values: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.values, self.train_values = list(values), list(train_values)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.train_values:
            self.log("t", self.train_values.pop(0))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        if self.values and not self.trainer.sanity_checking:
            self.log("v", self.values.pop(0))


class Computed(Scripted):
    """Logs ``val_loss`` for ``v``, and computes the name, so that nobody can read it off the source beforehand."""

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.log("_".join(("val", "loss")), self.values.pop(0))


def fit(
    model: TinyModel, *callbacks: Callback, ckpt_path: Any = None, validate: bool = True, **options: Any
) -> Trainer:
    """Train ``model`` on 4 batches an epoch, in the current folder, as many epochs as it has values unless told."""
    if isinstance(model, Scripted):
        options.setdefault("max_epochs", len(model.values))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in callbacks)
    if not validate:
        options["limit_val_batches"] = 0
    trainer = Trainer(accelerator="cpu", devices=1, callbacks=list(callbacks), **quiet | options)
    trainer.fit(model, tiny_loader(4), tiny_loader(1) if validate else None, ckpt_path=ckpt_path)
    return trainer


def files(folder: str | Path = "checkpoints") -> list[str]:
    """Names of the files below ``folder``, sorted."""
    root = Path(folder)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())
