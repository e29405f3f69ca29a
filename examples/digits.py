"""Train a model on scanned digits, keep the best checkpoint, test it, load it again and predict; some seconds.

python examples/digits.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from leyden import LightningDataModule, LightningModule, Trainer, seed_everything
from leyden.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint


class Digits(LightningDataModule):
    """The digits of scikit-learn: 1,257 to train on, 180 to validate, 360 to test."""

    def __init__(self, batch_size: int = 32) -> None:
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        images, digits = load_digits(return_X_y=True)
        data = TensorDataset(torch.tensor(images).float() / 16, torch.tensor(digits))
        self.train, self.val, self.test = random_split(data, [1257, 180, 360], torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, 180)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, 180)

    predict_dataloader = test_dataloader


class Classifier(LightningModule):
    """A perceptron with one hidden layer."""

    def __init__(self, hidden: int = 128, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, digits = batch
        loss = nn.functional.cross_entropy(self(images), digits)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log_quality(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log_quality(batch, "test")

    def log_quality(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        images, digits = batch
        logits = self(images)
        self.log(f"{stage}_loss", nn.functional.cross_entropy(logits, digits))
        self.log(f"{stage}_acc", (logits.argmax(1) == digits).float().mean(), prog_bar=True)

    def predict_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self(batch[0]).argmax(1)

    def configure_optimizers(self) -> tuple:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.hparams.lr, total_steps=self.trainer.estimated_stepping_batches
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def main() -> None:
    """Train, test, load, predict."""
    seed_everything(0)
    best = ModelCheckpoint(monitor="val_acc", mode="max")
    trainer = Trainer(
        max_epochs=20,
        callbacks=[best, EarlyStopping("val_loss", patience=5), LearningRateMonitor()],
        log_every_n_steps=10,
        gradient_clip_val=1.0,
    )
    data = Digits()
    trainer.fit(Classifier(), data)
    [metrics] = trainer.test(datamodule=data)

    again = Classifier.load_from_checkpoint(best.best_model_path)
    predicted = torch.cat(trainer.predict(again, data))
    digits = torch.tensor([data.test[index][1] for index in range(len(data.test))])
    print(
        f"test accuracy {metrics['test_acc']:.4f}, of the loaded checkpoint {(predicted == digits).float().mean():.4f}"
    )


if __name__ == "__main__":
    main()
