"""A whole process that takes one step: ``python one_step.py by-hand``, or the name of a package with a Trainer."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from loops import Batch, Ready, tiny, train


def train_with(framework: Any) -> None:
    class Tiny(framework.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny()

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            x, y = batch
            return cross_entropy(self.net(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    options: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    framework.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **options).fit(Tiny(), Ready(1))


if sys.argv[1] == "by-hand":
    train(tiny(), Ready(1))
else:
    train_with(importlib.import_module(sys.argv[1]))
