"""reload_dataloaders_every_n_epochs: when loaders are asked for again, and what follows them."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import leyden
from leyden.callbacks.model_checkpoint import ModelCheckpoint
from leyden.utils.errors import LeydenWarning, MisconfigurationError
from models import TinyModel, tiny_data, tiny_loader
from recording import bare


class Asked(TinyModel):
    """Makes its own loaders, of as many batches as ``lengths`` says, and notes when it is asked for them."""

    def __init__(self, lengths=()):
        super().__init__()
        self.lengths = list(lengths)
        self.asked, self.counts, self.validated = [], [], []

    def train_dataloader(self):
        self.asked.append(("train", self.current_epoch))
        length = self.lengths[min(self.current_epoch, len(self.lengths) - 1)] if self.lengths else 2
        return tiny_loader(length, 4)

    def val_dataloader(self):
        self.asked.append(("val", self.current_epoch))
        return tiny_loader(1, 4)

    def on_train_epoch_start(self):
        self.counts.append(self.trainer.num_training_batches)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def on_validation_start(self):
        self.validated.append(self.trainer.state.position.batch_total)


def fitted(model, ckpt_path=None, **options):
    trainer = bare(**{"max_epochs": 5, "num_sanity_val_steps": 0, **options})
    trainer.fit(model, ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize(
    ("every", "options", "train", "val"),
    [
        (0, {}, [0], [0]),
        (1, {}, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        (2, {}, [0, 2, 4], [0, 2, 4]),
        (3, {}, [0, 3], [0, 3]),
        (2, {"check_val_every_n_epoch": 2}, [0, 2, 4], [0, 3]),  # the first validation after epoch 2 began
        (1, {"val_check_interval": 1}, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        (1, {"limit_val_batches": 0}, [0, 1, 2, 3, 4], []),
        (1, {"num_sanity_val_steps": 1}, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
    ],
)
def test_loaders_are_asked_for_in_every_nth_epoch(every, options, train, val):
    model = Asked()
    fitted(model, reload_dataloaders_every_n_epochs=every, **options)
    assert [epoch for kind, epoch in model.asked if kind == "train"] == train
    assert [epoch for kind, epoch in model.asked if kind == "val"] == val


def test_the_number_of_batches_and_the_validations_follow_the_new_loader():
    model = Asked(lengths=(2, 4, 6))
    fitted(model, max_epochs=3, reload_dataloaders_every_n_epochs=1, val_check_interval=0.5)
    assert model.counts == [2, 4, 6]
    assert model.validated == [1, 2, 4, 6, 9, 12]


def test_accumulation_follows_the_new_loader():
    model = Asked(lengths=(2, 3))
    trainer = fitted(model, max_epochs=2, reload_dataloaders_every_n_epochs=1, accumulate_grad_batches=2)
    assert trainer.global_step == 1 + 2


def test_an_interval_that_the_new_loader_does_not_reach_is_refused():
    with pytest.raises(MisconfigurationError, match=r"val_check_interval=4\) is more than the 2 training batches"):
        fitted(Asked(lengths=(4, 2)), reload_dataloaders_every_n_epochs=1, val_check_interval=4)


def test_the_loader_may_grow_with_the_epoch_as_a_curriculum_does():
    seen = []

    class Curriculum(TinyModel):
        def train_dataloader(self):
            return DataLoader(torch.utils.data.Subset(tiny_data(12), range(4 * (self.current_epoch + 1))), 4)

        def on_train_epoch_end(self):
            seen.append(self.trainer.state.position.batch_total)

    bare(max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(Curriculum())
    assert seen == [1, 3, 6]


@pytest.mark.parametrize(("stopped", "train"), [(1, [1, 2, 4]), (2, [2, 4]), (3, [3, 4])])
def test_a_resumed_run_asks_in_the_epochs_of_the_first_run(tmp_path, stopped, train):
    path = tmp_path / "end.ckpt"
    fitted(Asked(), max_epochs=stopped, reload_dataloaders_every_n_epochs=2).save_checkpoint(path)
    model = Asked()
    fitted(model, path, reload_dataloaders_every_n_epochs=2)
    assert [epoch for kind, epoch in model.asked if kind == "train"] == train


class Shuffled(Asked):
    """Every loader draws its order from a generator of its own, seeded by the call's epoch."""

    def __init__(self):
        super().__init__()
        self.order = []

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(7)
        return DataLoader(TensorDataset(torch.arange(6.0)), 1, shuffle=True, generator=generator)

    def training_step(self, batch, batch_idx):
        self.order.append((self.current_epoch, int(batch[0])))
        return self.net(torch.ones(1, 32) * batch[0]).mean()

    def validation_step(self, batch, batch_idx):
        pass


@pytest.mark.parametrize(
    "limit", [{"max_epochs": 1}, {"max_steps": 9}, {"max_epochs": 2}, {"max_steps": 15}, {"max_epochs": 3}]
)
def test_a_resumed_run_sees_the_data_in_the_same_order(tmp_path, limit):
    whole = Shuffled()
    fitted(whole, max_epochs=4, reload_dataloaders_every_n_epochs=2)
    first, second = Shuffled(), Shuffled()
    path = tmp_path / "part.ckpt"
    fitted(first, **limit, reload_dataloaders_every_n_epochs=2).save_checkpoint(path)
    fitted(second, path, max_epochs=4, reload_dataloaders_every_n_epochs=2)
    assert first.order + second.order == whole.order
    by_epoch = [[number for epoch, number in whole.order if epoch == e] for e in range(4)]
    assert by_epoch[0] == by_epoch[2] != by_epoch[1]  # a new loader begins anew


def test_a_loader_asked_for_in_configure_optimizers_is_not_asked_for_twice(tmp_path):
    class Counting(Asked):
        def configure_optimizers(self):
            self.steps = self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

    model = Counting()
    trainer = fitted(model, max_epochs=2, reload_dataloaders_every_n_epochs=1)
    assert model.steps == 4
    assert [epoch for kind, epoch in model.asked if kind == "train"] == [0, 1]
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    model = Counting()
    fitted(model, tmp_path / "end.ckpt", max_epochs=3, reload_dataloaders_every_n_epochs=1)
    assert [epoch for kind, epoch in model.asked if kind == "train"] == [0, 2]  # 0: before the checkpoint was read


def test_loaders_of_a_datamodule_are_asked_for_again_and_its_validation_numbers_go_on():
    class Data(leyden.LightningDataModule):
        calls = 0

        def train_dataloader(self):
            self.calls += 1
            return tiny_loader(1, 4)

    data, model = Data(), TinyModel()
    bare(max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(model, datamodule=data)
    assert data.calls == 3


def test_a_metric_watched_across_new_loaders_keeps_its_ranking(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=2)
    options = {"callbacks": [checkpoint], "enable_checkpointing": True}
    fitted(Asked(), max_epochs=3, reload_dataloaders_every_n_epochs=1, **options)
    assert len(checkpoint.best_k_models) == 2


def test_loaders_passed_to_fit_cannot_be_asked_for_again():
    with pytest.warns(LeydenWarning, match=r"reload_dataloaders_every_n_epochs=1\) does nothing.*LD205"):
        bare(max_epochs=2, reload_dataloaders_every_n_epochs=1).fit(TinyModel(), tiny_loader(1, 4))
