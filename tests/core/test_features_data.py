"""The LightningDataModule as Lightning's users know it, and the loaders that it gives."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from leyden.core.datamodule import LightningDataModule
from leyden.core.module import LightningModule
from recording import Plain, bare, ones


class Data(LightningDataModule):
    def train_dataloader(self):
        return ones(2)


def test_it_has_no_name_and_no_trainer_until_it_is_given_one():
    data = Data()
    assert (data.name, data.trainer) == (None, None)
    trainer = bare(limit_val_batches=0)
    trainer.fit(Plain(), data)
    assert data.trainer is trainer


@pytest.mark.parametrize("kind", [LightningModule, LightningDataModule])
def test_what_several_processes_need_to_be_told_is_there_and_means_nothing_to_one(kind):
    assert kind.prepare_data_per_node is True
    assert kind.allow_zero_length_dataloader_with_multiple_devices is False

    class Told(Data):
        prepared = 0
        prepare_data_per_node = False
        allow_zero_length_dataloader_with_multiple_devices = True

        def prepare_data(self):
            self.prepared += 1

    trainer, data = bare(limit_val_batches=0), Told()
    trainer.fit(Plain(), data)
    assert (data.prepared, trainer.global_step) == (1, 2)


def test_datasets_are_read_in_batches_by_so_many_workers():
    dataset = TensorDataset(torch.arange(5))
    loader = LightningDataModule.from_datasets(
        predict_dataset=dataset, batch_size=2, num_workers=1
    ).predict_dataloader()
    assert (loader.batch_size, loader.num_workers, loader.drop_last, len(loader)) == (2, 1, False, 3)


def test_several_training_datasets_are_all_shuffled():
    data = LightningDataModule.from_datasets({"a": TensorDataset(torch.ones(2)), "b": TensorDataset(torch.ones(3))})
    kinds = {name: type(loader.sampler).__name__ for name, loader in data.train_dataloader().items()}
    assert kinds == {"a": "RandomSampler", "b": "RandomSampler"}


def test_torchs_loaders_are_as_ever_while_a_hook_makes_them():
    seen = []

    class Makes(LightningDataModule):
        def train_dataloader(self):
            seen.append(DataLoader.__init__)
            return ones(1)

    bare(limit_val_batches=0).fit(Plain(), Makes())
    assert seen == [DataLoader.__init__]  # which Lightning replaces meanwhile


def test_loaders_are_used_as_they_are():
    class Predicts(Plain):
        def predict_step(self, batch, batch_idx):
            return len(batch)

    loader = DataLoader(torch.ones(5, 4), batch_size=2, drop_last=True)
    trainer = bare()
    assert trainer.predict(Predicts(), loader) == [2, 2]  # Lightning makes another, which drops nothing
    assert trainer.predict_dataloaders is loader
