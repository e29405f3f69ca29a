"""A small Transformer that learns to say the next word."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from leyden.core.module import LightningModule
from leyden.demos.text import LibraryText


class Transformer(nn.Module):
    """An encoder over the words so far and a decoder over the words to say, both masked to the past.

    Args:
        vocab_size: Different words.
        ninp: Width.
        nhead: Attention heads.
        nhid: Width inside the feed-forward layers.
        nlayers: Layers of the encoder, and of the decoder.
        dropout: Part of the numbers dropped in training.
    """

    def __init__(
        self, vocab_size: int, ninp: int = 200, nhead: int = 2, nhid: int = 200, nlayers: int = 2, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.ninp = ninp
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, ninp)
        self.pos_encoder = PositionalEncoding(ninp, dropout)
        self.transformer = nn.Transformer(ninp, nhead, nlayers, nlayers, nhid, dropout, batch_first=True)
        self.decoder = nn.Linear(ninp, vocab_size)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, inputs: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-probabilities of the next word.

        Args:
            inputs: Words, shape ``(N, T)``.
            target: The same a word later, shape ``(N, T)``; where a word is said, only earlier ones are seen.
            mask: Shape ``(T, T)``, added to attention; None hides what comes later.

        Returns:
            Shape ``(N * T, vocab_size)``.
        """
        causal = mask is None
        if mask is None:
            mask = nn.Transformer.generate_square_subsequent_mask(inputs.shape[1], device=inputs.device)
        # A target's word is to be said, not to be read: the decoder sees it one place later.
        said = torch.cat([inputs[:, :1], target[:, :-1]], dim=1)
        # torch would read each mask to find out whether it is causal, and wait for the device.
        masks = {"src_mask": mask, "tgt_mask": mask, "memory_mask": mask}
        hints = {"src_is_causal": causal, "tgt_is_causal": causal, "memory_is_causal": causal}
        hidden = self.transformer(self._embedded(inputs), self._embedded(said), **masks, **hints)
        return nn.functional.log_softmax(self.decoder(hidden), dim=-1).view(-1, self.vocab_size)

    def _embedded(self, words: Tensor) -> Tensor:
        encoded: Tensor = self.pos_encoder(self.embedding(words) * math.sqrt(self.ninp))
        return encoded


class PositionalEncoding(nn.Module):
    """Adds sines and cosines of the position to words of shape ``(N, T, dim)``, then drops some.

    https://arxiv.org/abs/1706.03762, section 3.5.
    """

    def __init__(self, dim: int, dropout: float = 0.1, max_len: int = 5000) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        angles = torch.arange(max_len).unsqueeze(1) * 10000 ** (-torch.arange(0, dim, 2) / dim)
        table = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :dim]
        self.register_buffer("pe", table.unsqueeze(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        dropped: Tensor = self.dropout(x + self.pe[:, : x.shape[1]])  # type: ignore[index]
        return dropped


class LightningTransformer(LightningModule):
    """The Transformer, trained on LibraryText.

    Args:
        vocab_size: Different words; None is LibraryText's number.
        arguments: Of the Transformer.
    """

    def __init__(self, vocab_size: int | None = None, **arguments: Any) -> None:
        super().__init__()
        self.model = Transformer(LibraryText().vocab_size if vocab_size is None else vocab_size, **arguments)

    def forward(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Log-probabilities of the next word, shape ``(N * T, vocab_size)``."""
        probabilities: Tensor = self.model(inputs, target)
        return probabilities

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Negative log-likelihood."""
        inputs, target = batch
        loss = nn.functional.nll_loss(self(inputs, target), target.reshape(-1))
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Blocks of text, shuffled."""
        return DataLoader(LibraryText(), batch_size=20, shuffle=True)
