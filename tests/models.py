"""A tiny model and its data, for every test that needs a real fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from leyden.core.module import LightningModule

FEATURES, CLASSES = 32, 10


class TinyModel(LightningModule):
    """An MLP 32-32-10 that trains on cross entropy and logs nothing. Its weights depend on ``seed`` alone."""

    def __init__(self, optimizer: str = "sgd", lr: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, CLASSES))
        self.optimizer, self.lr = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer], lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), lr=self.lr)


class ValidatedModel(TinyModel):
    """TinyModel with the other three steps; logs ``train_loss``, ``val_loss`` and ``test_loss``."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])


def tiny_data(samples: int, seed: int = 0) -> TensorDataset:
    """Random samples ``(32,)`` whose class, 0 to 9, is a function of the sample: the loss can fall."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, FEATURES, generator=generator)
    return TensorDataset(x, x[:, :CLASSES].argmax(1))


def tiny_loader(batches: int = 4, batch_size: int = 16, seed: int = 0, **options: Any) -> DataLoader[Any]:
    """``batches`` full batches of ``tiny_data``, in order unless ``options`` of the DataLoader say otherwise."""
    return DataLoader(tiny_data(batches * batch_size, seed), batch_size=batch_size, **options)


def ready_loader(batches: int = 4, batch_size: int = 16, seed: int = 0) -> DataLoader[Any]:
    """The same batches, collated beforehand: the loader does nothing but hand them out."""
    return DataLoader(list(tiny_loader(batches, batch_size, seed)), batch_size=None)
