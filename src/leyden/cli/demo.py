"""``leyden demo``: train a small CNN on scikit-learn's scanned digits, and test it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from leyden.callbacks.early_stopping import EarlyStopping
from leyden.callbacks.model_checkpoint import ModelCheckpoint
from leyden.core.datamodule import LightningDataModule
from leyden.core.module import LightningModule
from leyden.loggers.tensorboard import TensorBoardLogger
from leyden.trainer import Trainer
from leyden.utils.optional import require
from leyden.utils.paths import shown
from leyden.utils.seed import seed_everything

Batch = tuple[Tensor, Tensor]


class Digits(LightningDataModule):
    """1,797 scanned handwritten digits, 8 x 8 grey, that come with scikit-learn: 1,257 / 180 / 360."""

    def __init__(self, batch_size: int = 32) -> None:
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Split always in the same way, whatever the run's seed."""
        digits = require("sklearn.datasets", "leyden demo", pip="scikit-learn").load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        dataset = TensorDataset(images, torch.tensor(digits.target))
        self.train, self.val, self.test = random_split(
            dataset, [1257, 180, 360], generator=torch.Generator().manual_seed(0)
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled."""
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """In order."""
        return DataLoader(self.val, 180)

    def test_dataloader(self) -> DataLoader[Any]:
        """In order."""
        return DataLoader(self.test, 180)


class SmallCNN(LightningModule):
    """Three convolutions and a linear layer: images of shape ``(N, 1, 8, 8)`` to logits of shape ``(N, 10)``."""

    def __init__(self, channels: int = 32, lr: float = 2e-3, dropout: float = 0.3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classify = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(8 * channels, 10))
        self.example_input_array = torch.zeros(1, 1, 8, 8)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the ten digits."""
        logits: Tensor = self.classify(self.features(images))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross entropy."""
        images, digits = batch
        loss = nn.functional.cross_entropy(self(images), digits)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and accuracy."""
        self._log_quality(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and accuracy."""
        self._log_quality(batch, "test")

    def _log_quality(self, batch: Batch, stage: str) -> None:
        images, digits = batch
        logits = self(images)
        self.log(f"{stage}_loss", nn.functional.cross_entropy(logits, digits), prog_bar=True)
        self.log(f"{stage}_acc", (logits.argmax(1) == digits).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def run_demo(folder: str, max_epochs: int, seed: int, accelerator: str) -> int:
    """Train, test, and say where everything is; returns the exit status."""
    seed_everything(seed)
    logger = TensorBoardLogger(folder, name="digits")
    best = ModelCheckpoint(monitor="val_acc", mode="max", filename="best-{epoch}-{val_acc:.3f}")
    trainer = Trainer(
        accelerator=accelerator,
        max_epochs=max_epochs,
        logger=logger,
        callbacks=[EarlyStopping(monitor="val_loss", patience=5), best],
        log_every_n_steps=10,
    )
    model, digits = SmallCNN(), Digits()
    trainer.fit(model, datamodule=digits)
    [metrics] = trainer.test(model, datamodule=digits)

    print(f"\nTest accuracy    {metrics['test_acc']:.4f}")
    print(f"Best checkpoint  {shown(best.best_model_path)}")
    print(f"Logs             {shown(logger.log_dir)}")
    print(f"See the curves   tensorboard --logdir {shown(folder)}")
    return 0
