"""Loaders that work, and probably not as meant."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, SubsetRandomSampler, get_worker_info

from leyden.core.datamodule import LightningDataModule
from leyden.core.loader_checks import _data_loaders
from leyden.trainer import Trainer
from leyden.utils.errors import LeydenWarning
from models import TinyModel, ValidatedModel, tiny_data, tiny_loader

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def trainer_of(**options: Any) -> Trainer:
    return Trainer(**{**QUIET, "accelerator": "cpu", "max_epochs": 1, **options})


def said(call: Any) -> list[str]:
    """The ids of the warnings that ``call`` gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(one.message)[-6:-1] for one in caught if issubclass(one.category, LeydenWarning)]


# Shuffling.


@pytest.mark.parametrize("several", [False, True])
def test_a_shuffled_validation_loader_warns_once(several):
    loader = tiny_loader(1, shuffle=True)
    model = ValidatedModel()
    if several:
        model.validation_step = lambda batch, batch_idx, dataloader_idx: None
    with pytest.warns(LeydenWarning, match=r"fit\(val_dataloaders=\.\.\.\) shuffles: .*Give shuffle=False.*LD286"):
        trainer_of().fit(model, tiny_loader(), [loader, tiny_loader(1)] if several else loader)


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("validate", "validation does not depend on the order"),
        ("test", "test does not depend on the order"),
        ("predict", "predictions come in another order than the samples"),
    ],
)
def test_a_shuffled_loader_of_an_evaluation_warns(method, why):
    message = rf"{method}\(dataloaders=\.\.\.\) shuffles: {why}"
    with pytest.warns(LeydenWarning, match=message):
        getattr(trainer_of(), method)(ValidatedModel(), tiny_loader(2, shuffle=True))
    sampler = SubsetRandomSampler(range(8))
    with pytest.warns(LeydenWarning, match=message):
        getattr(trainer_of(), method)(ValidatedModel(), DataLoader(tiny_data(32), 4, sampler=sampler))
    assert said(lambda: getattr(trainer_of(), method)(ValidatedModel(), tiny_loader(2))) == []


def test_a_shuffled_training_loader_is_fine_and_overfit_batches_has_its_own_say():
    shuffled = {name: tiny_loader(2, shuffle=True) for name in ("train", "val")}
    assert said(lambda: trainer_of().fit(TinyModel(), shuffled["train"])) == []
    run = trainer_of(overfit_batches=1).fit
    assert said(lambda: run(ValidatedModel(), shuffled["train"], shuffled["val"])) == ["LD030"]


def test_what_is_no_dataloader_is_not_looked_into():
    batches = [(torch.zeros(2, 32), torch.zeros(2, dtype=torch.long))] * 3
    assert said(lambda: trainer_of().fit(ValidatedModel(), batches, batches)) == []


# Shares of several processes.


def shares(count: int, samples: int = 32, drop_last: bool = False) -> DataLoader[Any]:
    data = tiny_data(samples)
    return DataLoader(data, 4, sampler=DistributedSampler(data, count, rank=0, shuffle=False, drop_last=drop_last))


def test_a_sampler_for_more_processes_than_there_are_warns():
    message = r"DistributedSampler\(num_replicas=4\), and 1 process runs: only 1 of 4 shares of the samples.*LD287"
    with pytest.warns(LeydenWarning, match=message):
        trainer_of().fit(TinyModel(), shares(4))
    with pytest.warns(LeydenWarning, match=message):
        trainer_of().test(ValidatedModel(), shares(4))


def test_a_sampler_for_the_processes_that_there_are_is_fine():
    assert said(lambda: trainer_of().test(ValidatedModel(), shares(1))) == []


# Workers.


class Stream(IterableDataset[Any]):
    """Four samples, and says so."""

    def __iter__(self) -> Iterator[Any]:
        return iter(tiny_data(4))

    def __len__(self) -> int:
        return 4


class Shared(Stream):
    """The same four, shared out among the workers."""

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        return iter(
            [sample for i, sample in enumerate(tiny_data(4)) if info is None or i % info.num_workers == info.id]
        )


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")  # torch's own, when the epoch is over
def test_a_stream_that_every_worker_reads_as_a_whole_warns():
    message = r"each of its 2 workers reads the whole Stream, .*get_worker_info\(\).*LD288"
    with pytest.warns(LeydenWarning, match=message):
        trainer_of().fit(TinyModel(), DataLoader(Stream(), 2, num_workers=2))


def test_a_stream_that_is_shared_out_or_read_by_one_is_fine():
    assert said(lambda: trainer_of().fit(TinyModel(), DataLoader(Shared(), 2, num_workers=2))) == []
    assert said(lambda: trainer_of().fit(TinyModel(), DataLoader(Stream(), 2))) == []


def test_workers_that_are_spawned_anew_in_every_epoch_warn():
    loader = tiny_loader(1, num_workers=1, multiprocessing_context="spawn")
    message = r"starts 1 workers anew in every epoch, by 'spawn'.*persistent_workers=True.*LD293"
    with pytest.warns(LeydenWarning, match=message):
        trainer_of(max_epochs=2, limit_train_batches=1).fit(TinyModel(), loader)


def test_workers_that_persist_or_are_forked_are_fine():
    for options in (
        {"multiprocessing_context": "fork"},
        {"multiprocessing_context": "spawn", "persistent_workers": True},
    ):
        loader = tiny_loader(1, num_workers=1, **options)
        assert said(lambda loader=loader: trainer_of(max_epochs=2).fit(TinyModel(), loader)) == []


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return tiny_loader(1, num_workers=1, persistent_workers=True, multiprocessing_context="fork")


def test_persistent_workers_of_loaders_that_are_made_anew_in_every_epoch_warn():
    with pytest.warns(LeydenWarning, match=r"persistent_workers=True does nothing with reload_dataloaders.*LD295"):
        trainer_of(reload_dataloaders_every_n_epochs=1).fit(TinyModel(), Data())
    assert said(lambda: trainer_of(reload_dataloaders_every_n_epochs=2).fit(TinyModel(), Data())) == []


def test_ready_batches_are_not_all_looked_at():
    class Counting(list):
        def __iter__(self):
            for batch in super().__iter__():
                looked.append(batch)
                yield batch

    looked: list[object] = []
    batches = Counting(list(tiny_loader(4)) * 250)
    assert list(_data_loaders(batches)) == []
    assert len(looked) < 20
    assert [type(loader) for loader in _data_loaders({"a": tiny_loader(2), "b": batches, "c": tiny_loader(2)})] == [
        DataLoader,
        DataLoader,
    ]
