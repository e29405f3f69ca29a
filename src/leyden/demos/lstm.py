"""A small LSTM that learns to say the next word, and remembers from batch to batch."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from leyden.core.module import LightningModule
from leyden.demos.text import LibraryText

Hidden = tuple[Tensor, Tensor]


class SimpleLSTM(nn.Module):
    """Embedding, LSTM, linear layer.

    Args:
        vocab_size: Different words.
        ninp: Width of the embedding.
        nhid: Width of the LSTM.
        nlayers: Layers of the LSTM.
        dropout: Part of the numbers dropped in training.
    """

    def __init__(
        self, vocab_size: int, ninp: int = 512, nhid: int = 512, nlayers: int = 4, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.nlayers = nlayers
        self.nhid = nhid
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(vocab_size, ninp)
        self.rnn = nn.LSTM(ninp, nhid, nlayers, dropout=dropout if nlayers > 1 else 0.0, batch_first=True)
        self.decoder = nn.Linear(nhid, vocab_size)
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, input: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
        """Log-probabilities of the next word, shape ``(N * T, vocab_size)``, and what to remember.

        Args:
            input: Words, shape ``(N, T)``.
            hidden: What is remembered, two tensors of shape ``(nlayers, N, nhid)``.
        """
        output, hidden = self.rnn(self.drop(self.encoder(input)), hidden)
        decoded = self.decoder(self.drop(output)).view(-1, self.vocab_size)
        return nn.functional.log_softmax(decoded, dim=1), hidden

    def init_hidden(self, batch_size: int) -> Hidden:
        """Nothing remembered, on the model's device."""
        nothing = self.decoder.weight.new_zeros(self.nlayers, batch_size, self.nhid)
        return nothing, nothing.clone()


class SequenceSampler(Sampler[list[int]]):
    """Batches in which every place goes on where it was: the data cut into ``batch_size`` parts, read side by side.

    >>> list(SequenceSampler(range(6), 2))
    [[0, 3], [1, 4], [2, 5]]
    """

    def __init__(self, dataset: Sized, batch_size: int) -> None:
        self.batch_size = batch_size
        self.part = len(dataset) // batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for index in range(self.part):
            yield [place * self.part + index for place in range(self.batch_size)]

    def __len__(self) -> int:
        return self.part


class LightningLSTM(LightningModule):
    """The LSTM, trained on LibraryText in order; gradients stop at the batch, memory goes on.

    Args:
        vocab_size: Different words; None is LibraryText's number.
        arguments: Of the LSTM.
    """

    def __init__(self, vocab_size: int | None = None, **arguments: Any) -> None:
        super().__init__()
        self.model = SimpleLSTM(LibraryText().vocab_size if vocab_size is None else vocab_size, **arguments)
        self.hidden: Hidden | None = None

    def on_train_epoch_end(self) -> None:
        """Forget: the next epoch begins at the text's start."""
        self.hidden = None

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Negative log-likelihood."""
        inputs, target = batch
        hidden = self.model.init_hidden(inputs.shape[0]) if self.hidden is None else self.hidden
        output, hidden = self.model(inputs, hidden)
        self.hidden = (hidden[0].detach(), hidden[1].detach())
        loss = nn.functional.nll_loss(output, target.reshape(-1))
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Blocks of text; every place of a batch goes on where it was in the batch before."""
        dataset = LibraryText()
        return DataLoader(dataset, batch_sampler=SequenceSampler(dataset, batch_size=20))
