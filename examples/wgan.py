"""Two optimizers in automatic optimization: a Wasserstein GAN learns a ring of points in the plane; some seconds.

    python examples/wgan.py

After Arjovsky, Chintala and Bottou, "Wasserstein GAN", 2017, https://arxiv.org/abs/1701.07875.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from leyden import LightningModule, Trainer, seed_everything


def network(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))


class WGAN(LightningModule):
    """Each optimizer has a step; while one takes its turn the other's parameters are frozen."""

    def __init__(self, critic_steps: int = 5, clip: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.generator, self.critic = network(2, 2), network(2, 1)

    def forward(self, noise: Tensor) -> Tensor:
        return self.generator(noise)

    def training_step_critic(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        [real] = batch
        loss = self.critic(self(torch.randn_like(real))).mean() - self.critic(real).mean()
        self.log("distance", -loss, prog_bar=True)
        return loss

    def training_step_generator(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return -self.critic(self(torch.randn_like(batch[0]))).mean()

    def on_train_batch_end(self, outputs: dict, batch: list[Tensor], batch_idx: int) -> None:
        with torch.no_grad():  # the critic stays Lipschitz
            for parameter in self.critic.parameters():
                parameter.clamp_(-self.hparams.clip, self.hparams.clip)

    def configure_optimizers(self) -> dict:
        generator = torch.optim.RMSprop(self.generator.parameters(), lr=1e-3)
        return {
            "critic": torch.optim.RMSprop(self.critic.parameters(), lr=1e-3),
            "generator": {"optimizer": generator, "every": self.hparams.critic_steps},
        }


def main() -> None:
    """Train, and say how far from the ring the generated points are."""
    seed_everything(0)
    angle = torch.rand(4096) * 2 * torch.pi
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    model = WGAN()
    with torch.no_grad():
        before = (model(torch.randn(1000, 2)).norm(dim=1) - 1).abs().mean()
    trainer = Trainer(max_epochs=30, logger=False, enable_checkpointing=False)
    trainer.fit(model, DataLoader(TensorDataset(ring), 64, shuffle=True))
    with torch.no_grad():
        after = (model(torch.randn(1000, 2)).norm(dim=1) - 1).abs().mean()
    print(f"mean distance from the ring {before:.3f} before, {after:.3f} after")


if __name__ == "__main__":
    main()
