"""Recognise handwritten digits with a training loop of your own; Fabric adds device and precision.

python examples/fabric_loop.py
python examples/fabric_loop.py --accelerator gpu --precision bf16-mixed
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from leyden import Fabric


def digits() -> tuple[DataLoader, DataLoader]:
    """1,797 images of 8 x 8 pixels that come with scikit-learn, a fifth of them for the test."""
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
    train, test = random_split(data, [0.8, 0.2])
    return DataLoader(train, batch_size=32, shuffle=True), DataLoader(test, batch_size=256)


def main(accelerator: str = "auto", precision: str = "32-true", epochs: int = 15) -> float:
    """Train, save, load and test; returns the share of test images that were recognised."""
    fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
    fabric.launch()
    fabric.seed_everything(7)

    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    model, optimizer = fabric.setup(model, optimizer)
    train_loader, test_loader = fabric.setup_dataloaders(*digits())

    for epoch in range(epochs):
        model.train()
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            fabric.backward(loss)
            optimizer.step()
        fabric.print(f"epoch {epoch}: train loss {loss:.4f}")

    fabric.save("checkpoints/digits.ckpt", {"model": model, "optimizer": optimizer, "epochs": epochs})
    fabric.load("checkpoints/digits.ckpt", {"model": model})

    model.eval()
    with torch.no_grad():
        hits = sum((model(images).argmax(1) == labels).sum() for images, labels in test_loader)
    accuracy = float(hits) / len(test_loader.dataset)
    fabric.print(f"test accuracy {accuracy:.4f}")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--epochs", type=int, default=15)
    main(**vars(parser.parse_args()))
