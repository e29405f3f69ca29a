"""val_check_interval as a time: after which batch validation runs."""

import time
from datetime import timedelta

import pytest
import torch

from leyden.callbacks.model_checkpoint import ModelCheckpoint
from models import TinyModel, tiny_loader
from recording import bare


class Clocked(TinyModel):
    """Every batch takes ``seconds`` by the clock, and every validation ``validation_seconds``."""

    def __init__(self, clock, seconds=1.0, validation_seconds=0.0):
        super().__init__()
        self.clock, self.seconds, self.validation_seconds = clock, seconds, validation_seconds
        self.validated, self.ends = [], []

    def training_step(self, batch, batch_idx):
        self.clock.now += self.seconds
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.clock.now += self.validation_seconds
        self.log("val_loss", self.loss(batch))

    def on_validation_end(self):
        if not self.trainer.sanity_checking:
            self.validated.append(self.trainer.state.position.batch_total)

    def on_train_epoch_end(self):
        self.ends.append(self.trainer.state.position.batch_total)


class Clock:
    now = 1000.0


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


def fitted(model, ckpt_path=None, batches=4, **options):
    trainer = bare(**{"max_epochs": 3, **options})
    trainer.fit(model, tiny_loader(batches, 4), tiny_loader(1, 4), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("interval", ["00:00:00:03", timedelta(seconds=3), {"seconds": 3}])
def test_validation_runs_after_the_batch_in_which_the_time_is_over(clock, interval):
    model = Clocked(clock)
    fitted(model, val_check_interval=interval)
    assert model.validated == [3, 6, 9, 12]  # epochs end after 4, 8 and 12 batches, and do not matter


def test_a_batch_that_takes_longer_is_not_made_up_for(clock):
    model = Clocked(clock, seconds=2.5)
    fitted(model, val_check_interval={"seconds": 4})
    assert model.validated == [2, 4, 6, 8, 10, 12]


def test_the_time_that_validation_takes_does_not_count(clock):
    model = Clocked(clock, validation_seconds=10.0)
    fitted(model, val_check_interval={"seconds": 4})
    assert model.validated == [4, 8, 12]


def test_only_every_nth_epoch_validates_and_the_clock_goes_on(clock):
    model = Clocked(clock)
    fitted(model, max_epochs=4, val_check_interval={"seconds": 3}, check_val_every_n_epoch=2)
    assert model.validated == [5, 8, 13, 16]


def test_across_epochs_every_epoch_validates(clock):
    model = Clocked(clock)
    fitted(model, val_check_interval={"seconds": 5}, check_val_every_n_epoch=None)
    assert model.validated == [5, 10]


def test_less_time_than_a_batch_validates_after_every_batch(clock):
    model = Clocked(clock)
    fitted(model, max_epochs=1, val_check_interval=timedelta(milliseconds=10))
    assert model.validated == [1, 2, 3, 4]


def test_a_stop_in_mid_epoch_is_followed_by_a_last_validation(clock):
    class Stops(Clocked):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.trainer.should_stop = batch_idx == 1

    model = Stops(clock)
    fitted(model, val_check_interval={"hours": 1})
    assert model.validated == [2]


def test_validation_is_not_once_an_epoch(clock):
    class Looks(Clocked):
        def on_train_epoch_start(self):
            self.once = self.trainer.validate_once_per_epoch

    model = Looks(clock)
    trainer = fitted(model, val_check_interval={"seconds": 3})
    assert model.once is False
    assert trainer.val_check_interval == {"seconds": 3}
    fitted(model)
    assert model.once is True


def test_checkpoints_are_saved_when_validation_ends(clock, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, filename="{step}", monitor="val_loss", save_top_k=-1)
    options = {"callbacks": [checkpoint], "enable_checkpointing": True}
    fitted(Clocked(clock), val_check_interval={"seconds": 3}, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step={step}.ckpt" for step in (12, 3, 6, 9)]


def test_a_loader_without_length_is_validated_by_time(clock):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(tiny_loader(4, 4).dataset)

    model = Clocked(clock)
    trainer = bare(max_epochs=2, val_check_interval={"seconds": 3})
    trainer.fit(model, torch.utils.data.DataLoader(Stream(), 4), tiny_loader(1, 4))
    assert model.validated == [3, 6]


def test_a_resumed_run_goes_on_counting_where_the_first_one_was(clock, tmp_path):
    first, second = Clocked(clock), Clocked(clock)
    trainer = fitted(first, max_epochs=1, val_check_interval={"seconds": 3})
    assert first.validated == [3]
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    clock.now += 500.0
    fitted(second, tmp_path / "end.ckpt", val_check_interval={"seconds": 3})
    assert second.validated == [6, 9, 12]


def test_without_a_time_nobody_looks_at_the_clock_between_batches(monkeypatch):
    looks, now = [], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: looks.append("look") or now())

    class Model(TinyModel):
        def on_train_batch_start(self, batch, batch_idx):
            looks.append(batch_idx)

        def validation_step(self, batch, batch_idx):
            pass

    fitted(Model(), max_epochs=1)
    assert looks[looks.index(0) : looks.index(3) + 1] == [0, 1, 2, 3]
