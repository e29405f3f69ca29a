"""The models, the data and the loops written by hand that every framework is measured against: PyTorch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

Batch = tuple[Tensor, Tensor]
Loader = Iterable[Batch]


class Ready:
    """Batches of 16 samples of shape (32,) and their classes that are made already: a loader that costs nothing."""

    def __init__(self, batches: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batches = [
            (torch.randn(16, 32, generator=generator), torch.randint(0, 10, (16,), generator=generator))
            for _ in range(batches)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def images(samples: int, seed: int, flat: bool) -> TensorDataset:
    """Random images of 28 x 28 numbers, as vectors if ``flat``, and their classes, 0 to 9."""
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, 784) if flat else (samples, 1, 28, 28)
    return TensorDataset(torch.rand(shape, generator=generator), torch.randint(0, 10, (samples,), generator=generator))


def image_loaders(samples: int, flat: bool) -> tuple[Loader, Loader]:
    """The loaders of training, shuffled, and of validation, a sixth as many samples; batches of 64."""
    train, held_out = images(samples, 0, flat), images(samples // 6, 1, flat)
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(held_out, batch_size=64)


def tiny() -> nn.Module:
    """The MLP 32-32-10 that shows what a framework adds to a step; always with the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def mlp() -> nn.Module:
    """An MLP 784-128-10 for the images."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def cnn() -> nn.Module:
    """A small CNN for the images."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 5, stride=2), nn.ReLU()),
        *(nn.Conv2d(4, 8, 5, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8 * 4 * 4, 10)),
    )


def train(net: nn.Module, loader: Loader) -> None:
    """One epoch, as everybody writes it."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for x, y in loader:
        loss = cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def train_clipped(net: nn.Module, loader: Loader) -> None:
    """One epoch with the norm of the gradients held below 1."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for x, y in loader:
        loss = cross_entropy(net(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def train_accumulating(net: nn.Module, loader: Loader) -> None:
    """One epoch with an optimizer step after every fourth batch."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for index, (x, y) in enumerate(loader):
        loss = cross_entropy(net(x), y) / 4
        loss.backward()
        if (index + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


def train_and_validate(net: nn.Module, loader: Loader, held_out: Loader) -> float:
    """One epoch of training, then the loss over the held out samples."""
    train(net, loader)
    net.eval()
    with torch.no_grad():
        loss = validate(net, held_out)
    net.train()
    return loss


def validate(net: nn.Module, loader: Loader) -> float:
    """The mean loss over the samples of ``loader``, in the mode and context of the caller."""
    total, samples = 0.0, 0
    for x, y in loader:
        total += cross_entropy(net(x), y).item() * len(y)
        samples += len(y)
    return total / samples


def predict(net: nn.Module, loader: Loader) -> list[Tensor]:
    """What the model says to every batch of ``loader``."""
    return [net(x) for x, _ in loader]


def train_epochs(net: nn.Module, loader: Loader, epochs: int, epoch_ends: Callable[[], None]) -> None:
    """Several epochs; ``epoch_ends`` is called after each."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(epochs):
        for x, y in loader:
            loss = cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        epoch_ends()
