"""LightningDataModule: the data of a run, apart from the model."""

import copy
from argparse import Namespace

import pytest
import torch
from torch.utils.data import IterableDataset, RandomSampler, SequentialSampler

import leyden
from leyden.core.callback import Callback
from leyden.core.datamodule import LightningDataModule
from leyden.loggers.csv import CSVLogger
from leyden.utils.errors import MisconfigurationError
from leyden.utils.hparams import from_yaml
from models import TinyModel, ValidatedModel, tiny_data, tiny_loader

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def trainer_with(*callbacks, **options):
    return leyden.Trainer(**{"max_epochs": 1, "accelerator": "cpu", "callbacks": list(callbacks), **QUIET} | options)


class Told(LightningDataModule):
    """Remembers what it was asked for."""

    def __init__(self):
        super().__init__()
        self.told = []

    def prepare_data(self):
        self.told.append("prepare_data")

    def setup(self, stage):
        self.told.append(f"setup {stage}")

    def teardown(self, stage):
        self.told.append(f"teardown {stage}")

    def train_dataloader(self):
        self.told.append("train")
        return tiny_loader(1)

    def val_dataloader(self):
        self.told.append("val")
        return tiny_loader(1)

    def test_dataloader(self):
        self.told.append("test")
        return [tiny_loader(1), tiny_loader(2)]

    def predict_dataloader(self):
        self.told.append("predict")
        return tiny_loader(1)

    def on_exception(self, exception):
        self.told.append(str(exception))


class TwoTests(ValidatedModel):
    def test_step(self, batch, batch_idx, dataloader_idx):
        self.log("n", float(dataloader_idx))


# In a run.


def test_it_is_prepared_set_up_asked_and_torn_down():
    data = Told()
    trainer_with().fit(ValidatedModel(), datamodule=data)
    assert data.told == ["prepare_data", "setup fit", "val", "train", "teardown fit"]


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_every_method_asks_for_its_own_loaders(method):
    data, model = Told(), TwoTests()
    options = {} if method == "predict" else {"verbose": False}
    getattr(trainer_with(), method)(model, datamodule=data, **options)
    loader = {"validate": "val"}.get(method, method)
    assert data.told == ["prepare_data", f"setup {method}", loader, f"teardown {method}"]


def test_it_may_be_given_in_the_place_of_loaders():
    data = Told()
    trainer = trainer_with()
    trainer.fit(ValidatedModel(), data)
    assert "train" in data.told
    assert trainer.datamodule is data and data.trainer is trainer
    assert trainer.test(TwoTests(), data, verbose=False) == [{"n/dataloader_idx_0": 0.0}, {"n/dataloader_idx_1": 1.0}]


def test_the_next_method_uses_it_again():
    data, trainer = Told(), trainer_with()
    trainer.fit(ValidatedModel(), data)
    assert len(trainer.validate(verbose=False)) == 1
    assert data.told[-3:] == ["setup validate", "val", "teardown validate"]


def test_loaders_and_a_datamodule_are_too_many():
    with pytest.raises(MisconfigurationError, match="Both train_dataloaders or val_dataloaders and a datamodule"):
        trainer_with().fit(TinyModel(), tiny_loader(1), datamodule=Told())
    with pytest.raises(MisconfigurationError, match="Two datamodules"):
        trainer_with().fit(TinyModel(), Told(), datamodule=Told())


def test_something_else_is_refused():
    with pytest.raises(TypeError, match=r"is not a LightningDataModule\. Pass loaders as train_dataloaders="):
        trainer_with().fit(TinyModel(), datamodule=[tiny_loader(1)])


def test_a_loader_it_has_not_may_be_the_modules():
    class Half(LightningDataModule):
        def train_dataloader(self):
            return tiny_loader(1)

    class Validates(ValidatedModel):
        def val_dataloader(self):
            return tiny_loader(2)

    trainer = trainer_with()
    trainer.fit(Validates(), datamodule=Half())
    assert trainer.num_val_batches == [2]


def test_where_nobody_has_the_loader_the_error_says_where_to_define_it():
    with pytest.raises(MisconfigurationError, match=r"trainer.fit\(\) has no data.*datamodule"):
        trainer_with().fit(TinyModel(), datamodule=LightningDataModule())


@pytest.mark.parametrize("kind", ["train", "val", "test", "predict"])
def test_a_loader_that_is_not_defined_says_so_when_called(kind):
    with pytest.raises(MisconfigurationError, match=rf"LightningDataModule has no {kind}_dataloader\(\)"):
        getattr(LightningDataModule(), f"{kind}_dataloader")()


def test_an_exception_is_told_and_it_is_torn_down_all_the_same():
    class Fails(ValidatedModel):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("no more")

    data = Told()
    with pytest.raises(RuntimeError, match="no more"):
        trainer_with(limit_val_batches=0).fit(Fails(), data)
    assert data.told == ["prepare_data", "setup fit", "train", "no more", "teardown fit"]


def test_it_is_set_up_before_callbacks_and_module_and_torn_down_before_them():
    order = []

    class Data(Told):
        def setup(self, stage):
            order.append("datamodule")

        def teardown(self, stage):
            order.append("datamodule")

    class Looks(Callback):
        def setup(self, trainer, pl_module, stage):
            order.append("callback")

        def teardown(self, trainer, pl_module, stage):
            order.append("callback")

    class Model(ValidatedModel):
        def setup(self, stage):
            order.append("module")

        def teardown(self, stage):
            order.append("module")

    trainer_with(Looks(), limit_val_batches=0).fit(Model(), Data())
    assert order == ["datamodule", "callback", "module"] * 2


def test_setup_may_have_a_default_stage_and_datasets_made_there_are_used():
    class Data(LightningDataModule):
        def setup(self, stage=None):
            self.data = tiny_data(32)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(self.data, 16)

    trainer = trainer_with()
    trainer.fit(TinyModel(), Data())
    assert trainer.num_training_batches == 2


def test_it_may_need_no_init_and_no_super_init():
    class Data(LightningDataModule):
        def __init__(self):
            self.size = 2

        def train_dataloader(self):
            return tiny_loader(self.size)

    data = Data()
    assert data.hparams == {}
    trainer = trainer_with()
    trainer.fit(TinyModel(), data)
    assert trainer.global_step == 2


# A batch on its way.


@pytest.mark.filterwarnings("ignore:.*LD289")
@pytest.mark.filterwarnings("ignore:.*LD289")
def test_its_transfer_hooks_come_before_the_modules():
    class Data(LightningDataModule):
        def predict_dataloader(self):
            return [torch.ones(1, 32)]

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch + 1

    class Model(TinyModel):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return batch * 10

        def on_after_batch_transfer(self, batch, dataloader_idx):
            raise AssertionError

        def predict_step(self, batch, batch_idx):
            return batch

    found = trainer_with().predict(Model(), datamodule=Data())
    assert found[0].unique().tolist() == [11.0]


def test_a_transfer_hook_that_cannot_take_its_call_is_refused():
    class Data(Told):
        def transfer_batch_to_device(self, batch, device):
            return batch

    with pytest.raises(
        MisconfigurationError,
        match=r"Data.transfer_batch_to_device(\(batch, device\))? (must take|cannot take).*dataloader_idx",
    ):
        trainer_with(limit_val_batches=0).fit(ValidatedModel(), Data())


def test_by_default_every_tensor_is_moved():
    moved = LightningDataModule().transfer_batch_to_device({"x": [torch.ones(1)], "name": "a"}, torch.device("meta"), 0)
    assert moved["x"][0].device.type == "meta"
    assert moved["name"] == "a"


# From datasets.


class Numbers(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(6.0))


def test_ready_datasets_make_a_datamodule():
    data = LightningDataModule.from_datasets(tiny_data(32), tiny_data(8), [tiny_data(4), tiny_data(6)], batch_size=4)
    train, val, test = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    assert isinstance(train.sampler, RandomSampler) and isinstance(val.sampler, SequentialSampler)
    assert (len(train), len(val), [len(loader) for loader in test]) == (8, 2, [1, 2])
    with pytest.raises(MisconfigurationError, match="has no predict_dataloader"):
        data.predict_dataloader()


def test_an_iterable_dataset_is_not_shuffled():
    data = LightningDataModule.from_datasets(Numbers(), batch_size=3)
    assert [batch.tolist() for batch in data.train_dataloader()] == [[0, 1, 2], [3, 4, 5]]


def test_datasets_may_have_names():
    data = LightningDataModule.from_datasets(val_dataset={"a": tiny_data(4), "b": tiny_data(2)})
    assert {name: len(loader) for name, loader in data.val_dataloader().items()} == {"a": 4, "b": 2}


def test_it_can_be_fitted_on():
    data = LightningDataModule.from_datasets(tiny_data(32), tiny_data(32), batch_size=8)
    trainer = trainer_with()
    trainer.fit(ValidatedModel(), datamodule=data)
    assert trainer.global_step == 4
    assert "val_loss" in trainer.callback_metrics


def test_further_arguments_are_the_classes_own():
    class Named(LightningDataModule):
        def __init__(self, label):
            super().__init__()
            self.label = label

    assert Named.from_datasets(tiny_data(2), label="x").label == "x"


# Hyper-parameters.


class Takes(LightningDataModule):
    def __init__(self, conf, size=1):
        super().__init__()
        self.hparams = conf

    def train_dataloader(self):
        return tiny_loader(1)


@pytest.mark.parametrize("conf", [{"folder": "x"}, Namespace(folder="x")])
def test_hyperparameters_may_be_set_as_in_lightning_1(conf):
    data = Takes(conf)
    assert data.hparams == data.hparams_initial == {"folder": "x"}
    assert data.hparams.folder == "x"
    assert data._hparams_name == "conf"


class Saves(LightningDataModule):
    def __init__(self, batch_size=4, lr=0.1, logs=True):
        super().__init__()
        self.save_hyperparameters(ignore="logs", logger=logs)

    def train_dataloader(self):
        return tiny_loader(1, batch_size=self.hparams.batch_size)


class SavesToo(TinyModel):
    def __init__(self, lr=0.1):
        super().__init__()
        self.save_hyperparameters()


def test_arguments_are_saved():
    data = Saves(batch_size=8)
    assert data.hparams == {"batch_size": 8, "lr": 0.1}
    data.hparams.batch_size = 2
    assert data.hparams_initial.batch_size == 8
    assert copy.deepcopy(data).hparams.batch_size == 2


def test_loggers_get_the_modules_and_the_datamodules_together():
    logger = CSVLogger(".")
    trainer_with(logger=logger).fit(SavesToo(), Saves())
    assert from_yaml(f"{logger.log_dir}/hparams.yaml") == {"batch_size": 4, "lr": 0.1}


def test_two_values_for_one_name_are_refused():
    logger = CSVLogger(".")
    with pytest.raises(MisconfigurationError, match=r"'lr' is 0.5 in the datamodule and 0.1 in the module"):
        trainer_with(logger=logger).fit(SavesToo(), Saves(lr=0.5))
    trainer_with(logger=logger).fit(SavesToo(), Saves(lr=0.5, logs=False))


# Sizes.


def test_as_text_it_tells_the_sizes_of_its_loaders():
    class Data(Told):
        def val_dataloader(self):
            return {"easy": tiny_loader(2), "hard": tiny_loader(1, batch_size=8)}

    assert str(Data()) == (
        "Data:\n"
        "    train: 16 samples in 1 batches\n"
        "    val: {'easy': 32 samples in 2 batches, 'hard': 8 samples in 1 batches}\n"
        "    test: [16 samples in 1 batches, 32 samples in 2 batches]\n"
        "    predict: 16 samples in 1 batches"
    )


def test_a_size_that_is_not_known_is_called_so():
    class Endless(IterableDataset):
        def __iter__(self):
            yield torch.zeros(2)

    assert str(LightningDataModule.from_datasets(Endless())).endswith("train: unknown samples in unknown batches")


def test_a_combination_of_loaders_tells_the_size_of_each():
    class Data(LightningDataModule):
        def train_dataloader(self):
            return leyden.CombinedLoader([tiny_loader(1), [None] * 3], "min_size")

    assert (
        str(Data()) == "Data:\n    train: [16 samples in 1 batches, [" + "unknown batches, " * 2 + "unknown batches]]"
    )


def test_loaders_that_need_setup_say_so():
    class Data(LightningDataModule):
        def setup(self, stage):
            self.data = tiny_data(3)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(self.data)

    data = Data()
    assert "train: not to be had yet (AttributeError: 'Data' object has no attribute 'data')" in str(data)
    data.setup("fit")
    assert str(data) == "Data:\n    train: 3 samples in 3 batches"
    assert str(LightningDataModule()) == "LightningDataModule:\n    no loaders"


# The name of its state.


class Counting(LightningDataModule):
    """Counts the epochs it has seen, over resumed runs."""

    seen = 0

    def train_dataloader(self):
        self.seen += 1
        return tiny_loader(1)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state_dict):
        self.seen = state_dict["seen"]


def test_its_state_is_found_under_the_name_of_its_class():
    data = Counting()
    assert data.state_key == "Counting"
    assert data.state_in({"Counting": {"seen": 2}}) == {"seen": 2}
    assert data.state_in({"Other": {"seen": 2}}) is None


def test_a_name_of_its_own_comes_first_and_that_of_its_class_is_read_still():
    class Named(Counting):
        state_key = "data"

    data, old = Named(), Named.__qualname__
    assert data.state_in({"data": {"seen": 1}, old: {"seen": 2}}) == {"seen": 1}
    assert data.state_in({old: {"seen": 2}}) == {"seen": 2}


def test_load_from_checkpoint_finds_the_state_under_both():
    trainer = trainer_with()
    trainer.fit(TinyModel(), Counting())
    trainer.save_checkpoint("a.ckpt")
    Renamed = type("Renamed", (Counting,), {"state_key": "Counting"})
    assert Renamed.load_from_checkpoint("a.ckpt").seen == Counting.load_from_checkpoint("a.ckpt").seen == 1


# Initialisation.


def test_it_may_stand_beside_other_classes():
    class Mixin:
        def __init__(self, size):
            self.size = size

    class Data(LightningDataModule, Mixin):
        def __init__(self):
            super().__init__(size=3)

    assert Data().size == 3
    with pytest.raises(TypeError):
        LightningDataModule("surprise")
