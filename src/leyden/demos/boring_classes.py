"""The smallest models and data that exercise everything, for bug reports and tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from leyden.core.datamodule import LightningDataModule
from leyden.core.module import LightningModule
from leyden.core.types import STEP_OUTPUT


class RandomDataset(Dataset[Tensor]):
    """``length`` random samples of shape ``(size,)``, drawn once from torch's generator."""

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __getitem__(self, index: int) -> Tensor:
        return self.data[index]

    def __len__(self) -> int:
        return self.len


class RandomDictDataset(Dataset[dict[str, Tensor]]):
    """``length`` samples ``{"a": x, "b": x + 2}`` of random ``x`` of shape ``(size,)``."""

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"a": self.data[index], "b": self.data[index] + 2}

    def __len__(self) -> int:
        return self.len


class RandomIterableDataset(IterableDataset[Tensor]):
    """``count`` random samples of shape ``(size,)``, drawn anew in every pass; its length is not known."""

    def __init__(self, size: int, count: int) -> None:
        self.size = size
        self.count = count

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.count):
            yield torch.randn(self.size)


class RandomIterableDatasetWithLen(RandomIterableDataset):
    """The same, and its length is known."""

    def __len__(self) -> int:
        return self.count


class BoringModel(LightningModule):
    """One linear layer, 32 to 2, that learns to answer 1; brings 64 batches of one sample for every stage."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes ``(N, 32)`` to ``(N, 2)``."""
        answers: Tensor = self.layer(x)
        return answers

    def loss(self, preds: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean squared error; ``labels`` are ones if left out."""
        return nn.functional.mse_loss(preds, torch.ones_like(preds) if labels is None else labels)

    def step(self, batch: Any) -> Tensor:
        """The loss of a batch."""
        return self.loss(self(batch))

    def training_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        """The loss, in a dict."""
        return {"loss": self.step(batch)}

    def validation_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        """The loss, as ``"x"``."""
        return {"x": self.step(batch)}

    def test_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        """The loss, as ``"y"``."""
        return {"y": self.step(batch)}

    def configure_optimizers(self) -> Any:
        """SGD, and a StepLR that divides the rate by 10 every epoch."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)  # 0.1 diverges
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)]

    def train_dataloader(self) -> DataLoader[Tensor]:
        """64 random samples."""
        return DataLoader(RandomDataset(32, 64))

    def val_dataloader(self) -> DataLoader[Tensor]:
        """64 random samples."""
        return DataLoader(RandomDataset(32, 64))

    def test_dataloader(self) -> DataLoader[Tensor]:
        """64 random samples."""
        return DataLoader(RandomDataset(32, 64))

    def predict_dataloader(self) -> DataLoader[Tensor]:
        """64 random samples."""
        return DataLoader(RandomDataset(32, 64))


class ManualOptimBoringModel(BoringModel):
    """BoringModel that steps its optimizer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        """Zero, backward, step."""
        optimizer = self.optimizers()
        loss = self.step(batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


class DemoModel(LightningModule):
    """One linear layer, 32 to ``out_dim``, whose loss is the sum of its outputs."""

    def __init__(self, out_dim: int = 10, learning_rate: float = 0.02) -> None:
        super().__init__()
        self.l1 = nn.Linear(32, out_dim)
        self.learning_rate = learning_rate

    def forward(self, x: Tensor) -> Tensor:
        """Shapes ``(N, ...)`` with 32 numbers a sample to ``(N, out_dim)``."""
        return torch.relu(self.l1(x.view(x.size(0), -1)))

    def training_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        """The sum of the outputs."""
        return {"loss": self(batch).sum()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class BoringDataModule(LightningDataModule):
    """64 batches of one random sample of shape ``(32,)`` for every stage, cut from one dataset."""

    def setup(self, stage: str) -> None:
        """Cut the data."""
        self.random_full = RandomDataset(32, 4 * 64)
        self.random_train, self.random_val, self.random_test, self.random_predict = (
            Subset(self.random_full, range(start, start + 64)) for start in range(0, 4 * 64, 64)
        )

    def train_dataloader(self) -> DataLoader[Tensor]:
        """The first quarter."""
        return DataLoader(self.random_train)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """The second quarter."""
        return DataLoader(self.random_val)

    def test_dataloader(self) -> DataLoader[Tensor]:
        """The third quarter."""
        return DataLoader(self.random_test)

    def predict_dataloader(self) -> DataLoader[Tensor]:
        """The last quarter."""
        return DataLoader(self.random_predict)


class BoringDataModuleNoLen(LightningDataModule):
    """512 batches of one random sample of shape ``(32,)`` for every stage, whose number is not known beforehand."""

    def train_dataloader(self) -> DataLoader[Tensor]:
        """512 samples."""
        return DataLoader(RandomIterableDataset(32, 512))

    def val_dataloader(self) -> DataLoader[Tensor]:
        """512 samples."""
        return DataLoader(RandomIterableDataset(32, 512))

    def test_dataloader(self) -> DataLoader[Tensor]:
        """512 samples."""
        return DataLoader(RandomIterableDataset(32, 512))

    def predict_dataloader(self) -> DataLoader[Tensor]:
        """512 samples."""
        return DataLoader(RandomIterableDataset(32, 512))
