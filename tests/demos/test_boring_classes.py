"""The boring models and data: what they give, and that each runs through every stage."""

from __future__ import annotations

import pytest
import torch

from leyden.demos.boring_classes import (
    BoringDataModule,
    BoringDataModuleNoLen,
    BoringModel,
    DemoModel,
    ManualOptimBoringModel,
    RandomDataset,
    RandomDictDataset,
    RandomIterableDataset,
    RandomIterableDatasetWithLen,
)
from leyden.trainer import Trainer


def quick() -> Trainer:
    return Trainer(
        fast_dev_run=True, accelerator="cpu", devices=1, enable_progress_bar=False, enable_model_summary=False
    )


@pytest.mark.parametrize("model", [BoringModel, ManualOptimBoringModel])
@pytest.mark.parametrize("datamodule", [None, BoringDataModule, BoringDataModuleNoLen])
def test_every_stage_runs(model, datamodule):
    trainer, model, data = quick(), model(), datamodule() if datamodule else None
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 1
    assert trainer.validate(model, datamodule=data) == [{}]
    assert trainer.test(model, datamodule=data) == [{}]
    [prediction] = trainer.predict(model, datamodule=data)
    assert prediction.shape == (1, 2)


def test_the_demo_model_trains():
    model = DemoModel(out_dim=3)
    before = model.l1.weight.clone()
    quick().fit(model, torch.utils.data.DataLoader(RandomDataset(32, 4), batch_size=2))
    assert model.l1.out_features == 3
    assert not torch.equal(model.l1.weight, before)


@pytest.mark.parametrize("model", [BoringModel, ManualOptimBoringModel])
def test_the_boring_model_learns_to_answer_one(model):
    model = model()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batch = torch.randn(64, 32)
    before = model.step(batch).item()
    trainer.fit(model)
    assert model.step(batch).item() < before / 2


def test_the_boring_models_weights_have_lightnings_names():
    assert {name: tuple(value.shape) for name, value in BoringModel().state_dict().items()} == {
        "layer.weight": (2, 32),
        "layer.bias": (2,),
    }


def test_datasets_have_the_size_and_length_asked_for():
    assert (len(RandomDataset(3, 4)), RandomDataset(3, 4)[0].shape) == (4, (3,))
    sample = RandomDictDataset(3, 4)[1]
    assert torch.equal(sample["a"] + 2, sample["b"])
    assert [x.shape for x in RandomIterableDataset(3, 2)] == [(3,), (3,)]
    assert not hasattr(RandomIterableDataset(3, 2), "__len__")
    assert len(RandomIterableDatasetWithLen(3, 2)) == 2


def test_the_stages_of_the_datamodule_have_their_own_samples():
    data = BoringDataModule()
    data.setup("fit")
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader())
    samples = torch.cat([batch for loader in loaders for batch in loader])
    assert torch.equal(samples, data.random_full.data)
    assert [len(loader) for loader in loaders] == [64] * 4
