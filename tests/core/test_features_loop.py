"""What the loops leave alone: the data that is not due yet, random numbers, gradients, worker processes."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

import leyden
from leyden.core.callback import Callback
from leyden.loggers.logger import Logger
from leyden.trainer import Trainer
from recording import Plain, bare, ones


def alone(**options: Any) -> Trainer:
    """A bare Trainer that does not validate."""
    return bare(limit_val_batches=0, **options)


class Notes(Plain):
    """Notes in ``events`` when it trains."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def training_step(self, batch, batch_idx):
        self.events.append(f"trains {batch_idx}")
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


# What is read, and when.


def test_a_batch_is_read_when_the_one_before_it_is_done():
    events: list[str] = []

    class Reads(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            events.append(f"reads {index}")
            return torch.ones(4)

    alone().fit(Notes(events), DataLoader(Reads(), batch_size=1))
    assert events == ["reads 0", "trains 0", "reads 1", "trains 1", "reads 2", "trains 2"]


def test_where_the_length_is_unknown_one_batch_is_read_ahead_to_know_the_last():
    events: list[str] = []

    class Streams(IterableDataset):
        def __iter__(self):
            for index in range(3):
                events.append(f"reads {index}")
                yield torch.ones(2, 4)

    class Looks(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.is_last_batch:
                events.append("the last")

    alone(callbacks=[Looks()]).fit(Notes(events), DataLoader(Streams(), batch_size=None))
    assert events == ["reads 0", "reads 1", "trains 0", "reads 2", "trains 1", "the last", "trains 2"]


def test_persistent_workers_are_kept_from_epoch_to_epoch():
    workers: list[int] = []

    class Looks(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            workers.extend(child.pid for child in multiprocessing.active_children())

    loader = DataLoader(torch.ones(2, 4), batch_size=2, num_workers=1, persistent_workers=True)
    alone(callbacks=[Looks()], max_epochs=2).fit(Plain(), loader)
    assert len(workers) == 2 and len(set(workers)) == 1


# What the sanity check leaves.


@pytest.mark.filterwarnings("ignore:.*LD286")
def test_the_sanity_check_changes_neither_the_order_of_the_data_nor_other_random_numbers():
    class Draws(Plain):
        def __init__(self):
            super().__init__()
            self.drawn = []

        def on_train_start(self):
            self.drawn.append(torch.rand(()).item())

        def training_step(self, batch, batch_idx):
            self.drawn.append(batch[0, 0].item())
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            torch.rand(3)

    def drawn(steps: int) -> list[float]:
        torch.manual_seed(1)
        model = Draws()
        train = DataLoader(torch.arange(64.0).reshape(16, 4), shuffle=True)
        val = DataLoader(torch.ones(6, 4), sampler=torch.utils.data.RandomSampler(range(6)))
        bare(num_sanity_val_steps=steps).fit(model, train, val)
        return model.drawn

    assert drawn(0) == drawn(2) == drawn(-1)


# Gradients.


def test_gradients_from_before_the_run_are_cleared():
    class Adds(Plain):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(self.layer(batch).mean())
            self.gradient = self.layer.bias.grad.item()
            self.optimizers().step()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model = Adds()
    (model.layer(torch.ones(2, 4)).mean() * 50).backward()
    alone().fit(model, ones(1))
    assert model.gradient == 1.0


# What the loggers get.


class Memory(Logger):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics, step=None):
        self.sent.append((step, dict(metrics)))


def test_values_that_are_not_due_are_not_sent_when_training_stops_between():
    class Logs(Notes):
        def training_step(self, batch, batch_idx):
            self.log("by_step", float(batch_idx))
            self.log("by_epoch", float(batch_idx), on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    class Stops(leyden.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = batch_idx == 2

    alone(logger=(logger := Memory()), log_every_n_steps=2, callbacks=[Stops()]).fit(Logs([]), ones(9))
    assert logger.sent == [(1, {"by_step": 1.0, "epoch": 0}), (2, {"by_epoch": 1.0, "epoch": 0})]


@pytest.mark.parametrize("kept", [True, False])
def test_the_sanity_check_sends_nothing(kept):
    class Logs(Plain):
        def validation_step(self, batch, batch_idx):
            self.log("v", 1.0, on_step=kept, on_epoch=True)

    logger = Memory()
    bare(logger=logger, num_sanity_val_steps=2, limit_train_batches=0).fit(Logs(), ones(1), ones(2))
    assert logger.sent == []
