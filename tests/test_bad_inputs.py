"""Bad input to a run: refused by a message that says what is wrong, before any weight has changed."""

from __future__ import annotations

import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, IterableDataset, Subset
from torchmetrics import MeanMetric

import leyden
from leyden.callbacks.early_stopping import EarlyStopping
from leyden.callbacks.model_checkpoint import Checkpoint, ModelCheckpoint
from leyden.core.callback import Callback
from leyden.core.datamodule import LightningDataModule
from leyden.core.hooks import overrides
from leyden.core.module import LightningModule
from leyden.trainer import Trainer
from leyden.utils.errors import CheckpointError, LeydenWarning, MisconfigurationError, NotBuiltError
from models import FEATURES, TinyModel, ValidatedModel, tiny_data, tiny_loader

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
TINY = object()  # for loaders of tiny_data
OURS = str(Path(leyden.__file__).parent)


def trainer_of(*callbacks: Callback, **options: Any) -> Trainer:
    saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
    return Trainer(**{**QUIET, "callbacks": list(callbacks), "enable_checkpointing": saves, "max_epochs": 2, **options})


def fit(model: Any, *callbacks: Callback, train: Any = TINY, val: Any = TINY, **options: Any) -> Trainer:
    """Fit ``model`` on 4 batches an epoch, and validate it on 1 if it has the step for it."""
    given = {name: options.pop(name) for name in ("datamodule", "ckpt_path") if name in options}
    trainer = trainer_of(*callbacks, **options)
    if val is TINY:
        validates = hasattr(model, "validation_step") and overrides(model, "validation_step", LightningModule)
        val = tiny_loader(1) if validates and "datamodule" not in given else None
    trainer.fit(model, tiny_loader(4) if train is TINY else train, val, **given)
    return trainer


def refused(error: type[Exception], message: str, model: Any, *callbacks: Callback, **options: Any) -> None:
    """See that ``fit`` raises ``error`` with ``message`` and leaves the weights as they were."""
    before = weights(model)
    with pytest.raises(error, match=message):
        fit(model, *callbacks, **options)
    assert weights(model) == before


def weights(model: Any) -> list[Any]:
    return [value.tolist() for value in model.state_dict().values()] if isinstance(model, nn.Module) else []


def subclass(base: type, **methods: Any) -> Any:
    """An instance of a class ``Net`` that adds ``methods`` to ``base``."""
    return type("Net", (base,), methods)()


# What is missing.


class Layer(LightningModule):
    """Weights, and nothing about training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 10)


class Misspelt(Layer):
    def training_step(self, batch: Any) -> torch.Tensor:
        return self.layer(batch[0]).sum()

    def configuer_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)


class TrainLoader(LightningDataModule):
    def train_loader(self) -> Any:
        return tiny_loader()


def test_training_needs_a_training_step():
    refused(MisconfigurationError, r"Layer has no training_step\(\)\. Define training_step\(self, batch, ba", Layer())


def test_training_needs_optimizers_and_a_method_of_nearly_that_name_is_pointed_at():
    refused(MisconfigurationError, r"no configure_optimizers\(\).*There is configuer_optimizers\(\)", Misspelt())


def test_training_needs_data():
    message = r"trainer\.fit\(\) has no data\. Pass train_dataloaders=, or a datamodule, or define train_dataloader\(\)"
    refused(MisconfigurationError, message, TinyModel(), train=None)


def test_a_loader_method_of_nearly_the_right_name_is_pointed_at():
    refused(MisconfigurationError, r"There is train_loader\(\)", TinyModel(), train=None, datamodule=TrainLoader())


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("validate", r"Layer has no validation_step\(\).*to call trainer\.validate\(\)"),
        ("test", r"Layer has no test_step\(\).*to call trainer\.test\(\)"),
        ("predict", r"Layer has neither predict_step\(\) nor forward\(\)"),
    ],
)
def test_evaluation_needs_its_step(method, message):
    with pytest.raises(MisconfigurationError, match=message):
        getattr(trainer_of(), method)(Layer(), tiny_loader(1))


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_evaluation_needs_data_and_a_model(method):
    with pytest.raises(MisconfigurationError, match=rf"trainer\.{method}\(\) has no data\. Pass dataloaders="):
        getattr(trainer_of(), method)(ValidatedModel())
    with pytest.raises(TypeError, match=rf"trainer\.{method}\(\) needs a model"):
        getattr(trainer_of(), method)(dataloaders=tiny_loader(1))


# What is given in the model's or the data's place.


class Loaders(LightningDataModule):
    def train_dataloader(self) -> Any:
        return tiny_loader()


def of_lightning(name: str, *bases: type) -> Any:
    """An object whose class derives from Lightning's ``name``."""
    base = type(name, bases, {"__module__": "lightning.pytorch.core.module"})
    return type("Net", (base,), {})()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (TinyModel, r"got the class TinyModel\. Make an instance: TinyModel\(\.\.\.\)"),
        (nn.Linear(2, 2), "needs a LightningModule, got Linear. Make it an attribute of a LightningModule"),
        (tiny_loader(1), "needs a LightningModule, got DataLoader"),
        (None, "needs a LightningModule, got NoneType"),
        (types.SimpleNamespace(_orig_mod=TinyModel()), "needs a LightningModule, got SimpleNamespace"),
        (of_lightning("LightningModule", nn.Module), "It is one of Lightning's: import LightningModule from leyden"),
    ],
)
def test_what_is_no_module_is_refused(model, message):
    refused(TypeError, message, model)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"datamodule": Loaders()}, MisconfigurationError, "Both train_dataloaders .* and a datamodule were given"),
        ({"train": Loaders(), "datamodule": Loaders()}, MisconfigurationError, "Two datamodules were given"),
        ({"train": Loaders}, TypeError, r"gave the class Loaders\. Make an instance: Loaders\(\.\.\.\)"),
        ({"train": None, "datamodule": Loaders}, TypeError, r"Make an instance: Loaders\(\.\.\.\)"),
        ({"train": None, "datamodule": tiny_loader(1)}, TypeError, "Pass loaders as train_dataloaders="),
        ({"train": None, "datamodule": of_lightning("LightningDataModule")}, TypeError, "one of Lightning's"),
    ],
)
def test_what_is_no_datamodule_is_refused(given, error, message):
    refused(error, message, TinyModel(), **given)


# Loaders.


class Nothing(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


class Pages:
    """Read as Hugging Face's datasets are: torch's own protocol for several samples at once."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return []

    def __iter__(self) -> Iterator[Any]:
        return iter(tiny_data(8))


LOADERS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "an empty dataset": (lambda: DataLoader(tiny_data(0)), MisconfigurationError, "is empty.*Check its dataset"),
    "drop_last": (lambda: DataLoader(tiny_data(3), 8, drop_last=True), MisconfigurationError, "is empty.*drop_last"),
    "an empty list": (list, MisconfigurationError, "empty"),
    "an empty stream": (lambda: DataLoader(Nothing()), MisconfigurationError, "gave no batch at all"),
    "a number": (lambda: 3, TypeError, "gave 3, of type int, which cannot be iterated over. Give a DataLoader"),
    "a path": (lambda: "mnist", TypeError, "gave a str, 'mnist', which is no loader"),
    "a tensor": (lambda: torch.zeros(8, 32), TypeError, r"a Tensor of shape \(8, 32\), which is no loader"),
    "an array": (lambda: np.zeros((8, 32)), TypeError, r"a ndarray of shape \(8, 32\), which is no loader"),
    "a class": (lambda: DataLoader, TypeError, r"gave the class DataLoader\. Make an instance: DataLoader\(\.\.\.\)"),
    "a function": (lambda: tiny_loader, TypeError, "of type function, which cannot be iterated over"),
    "a dataset": (
        lambda: tiny_data(8),
        TypeError,
        r"a TensorDataset, which is a Dataset.*DataLoader\(dataset, batch_si",
    ),
    "a subset": (lambda: Subset(tiny_data(8), range(4)), TypeError, "gave a Subset, which is a Dataset"),
    "a foreign dataset": (Pages, TypeError, "gave a Pages, which is a Dataset"),
}


@pytest.mark.parametrize(("make", "error", "message"), LOADERS.values(), ids=LOADERS)
def test_what_is_no_loader_is_refused_before_training(make, error, message):
    refused(error, rf"fit\(train_dataloaders=\.\.\.\).*{message}", ValidatedModel(), train=make())
    for sanity_steps in (0, 2):
        if sanity_steps or message != "gave no batch at all":  # which is seen when it is read
            where = rf"fit\(val_dataloaders=\.\.\.\).*{message}"
            refused(error, where, ValidatedModel(), val=make(), num_sanity_val_steps=sanity_steps)
    with pytest.raises(error, match=rf"test\(dataloaders=\.\.\.\).*{message}"):
        trainer_of().test(ValidatedModel(), make())


def test_a_list_of_datasets_is_refused_for_what_it_is():
    refused(TypeError, "which is a Dataset", ValidatedModel(), val=[tiny_data(8), tiny_data(8)])
    refused(TypeError, "which is a Dataset", TinyModel(), train=[tiny_data(8), tiny_data(8)])


@pytest.mark.parametrize("kind", ["train", "val"])
def test_a_loader_method_that_returns_nothing_is_named(kind):
    model = subclass(ValidatedModel, **{f"{kind}_dataloader": lambda self: None})
    message = rf"Net\.{kind}_dataloader\(\) returned None\. Return a DataLoader"
    refused(MisconfigurationError, message, model, **{kind: None})


def test_an_iterator_that_is_used_up_ends_the_run_rather_than_spinning():
    with pytest.raises(MisconfigurationError, match=r"gave no batch at all\. An iterator, such as a generator"):
        fit(TinyModel(), train=(batch for batch in tiny_loader(2)), max_epochs=-1, max_steps=5)


def test_a_generator_cannot_validate_because_it_can_be_read_only_once():
    batches = (batch for batch in tiny_loader(2))
    refused(TypeError, r"can be read only once.*list\(generator\)", ValidatedModel(), val=batches)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(tiny_data(64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit_train_batches": 0.01}, r"limit_train_batches=0\.01\) of the 4 .* less than one.*at least 0\.25"),
        ({"limit_val_batches": 0.1}, r"limit_val_batches=0\.1\) of the 1 batches"),
        ({"val_check_interval": 100}, "val_check_interval=100.*more than the 4 training batches"),
        ({"train": Stream(), "limit_train_batches": 0.5}, "is a fraction, and .* does not know its length"),
        ({"val": Stream(), "limit_val_batches": 0.5}, "is a fraction, and .* does not know its length"),
        ({"train": Stream(), "val_check_interval": 0.5}, "is a fraction, and .* does not know its length"),
    ],
)
def test_limits_that_leave_nothing_are_refused(options, message):
    refused(MisconfigurationError, message, ValidatedModel(), **options)


# What training_step returns.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda loss: (loss, 1), r"training_step returned tuple: .*It may return the loss"),
        (lambda loss: [loss], "training_step returned list: "),
        (lambda loss: "loss", "training_step returned str: loss"),
        (lambda loss: loss.item(), r"training_step returned float: 2\.\d+"),
        (lambda loss: {"log": loss}, r"a dict without a tensor under 'loss'; its keys are \['log'\]"),
        (lambda loss: {"loss": loss.item()}, "a dict without a tensor under 'loss'"),
        (lambda loss: loss.detach(), r"a loss without grad.*Look for \.detach\(\)"),
        (lambda loss: torch.tensor(3), "a loss without grad"),
        (lambda loss: loss * torch.ones(3), r"a loss of shape \(3,\); it must have one element.*\.mean\(\)"),
        (lambda loss: loss * torch.ones(0), r"a loss of shape \(0,\)"),
    ],
)
def test_what_training_step_may_not_return(change, message):
    model = subclass(TinyModel, training_step=lambda self, batch, batch_idx: change(self.loss(batch)))
    refused(MisconfigurationError, message, model)


def test_a_model_of_frozen_layers_has_a_loss_without_grad():
    refused(MisconfigurationError, "requires_grad=False", TinyModel().requires_grad_(False))


# Names of hooks.

MISSPELT = {
    "on_train_epoch_ends": "on_train_epoch_end",
    "on_training_epoch_end": "on_train_epoch_end",
    "on_train_epoch_finish": "on_train_epoch_end",
    "on_val_batch_end": "on_validation_batch_end",
    "on_validation_epoch_ended": "on_validation_epoch_end",
    "on_fit_begin": "on_fit_start",
    "on_before_zero_grads": "on_before_zero_grad",
    "on_load_checkpoints": "on_load_checkpoint",
    "set_up": "setup",
    "tear_down": "teardown",
}
MISSPELT_BY_MODULE = {
    "train_step": "training_step",
    "val_step": "validation_step",
    "validation_steps": "validation_step",
    "configure_optimizer": "configure_optimizers",
    "configure_optimisers": "configure_optimizers",
    "optimizer_steps": "optimizer_step",
    "transfer_batch_to_devices": "transfer_batch_to_device",
    "val_dataloaders": "val_dataloader",
    "validation_dataloader": "val_dataloader",
}


@pytest.mark.parametrize(("name", "right"), (MISSPELT | MISSPELT_BY_MODULE).items())
def test_a_misspelt_hook_of_the_module_is_refused(name, right):
    message = rf"Net\.{name}\(\) is not a hook, so it would never be called\. Did you mean '{right}'\?"
    refused(MisconfigurationError, message, subclass(TinyModel, **{name: lambda self, *args: None}))


@pytest.mark.parametrize(("name", "right"), MISSPELT.items())
def test_a_misspelt_hook_of_a_callback_is_refused(name, right):
    callback = subclass(Callback, **{name: lambda self, *args: None})
    refused(MisconfigurationError, rf"Net\.{name}\(\) is not a hook.*'{right}'", TinyModel(), callback)


@pytest.mark.parametrize(
    ("name", "right"),
    [("val_dataloaders", "val_dataloader"), ("prepare_datas", "prepare_data"), ("setups", "setup")],
)
def test_a_misspelt_hook_of_the_datamodule_is_refused(name, right):
    data = subclass(Loaders, **{name: lambda self, *args: None})
    refused(MisconfigurationError, rf"Net\.{name}\(\) is not.*'{right}'", TinyModel(), train=None, datamodule=data)


class WithHelpers(ValidatedModel):
    """Names that resemble hooks: two of them are called, the others are far enough from any."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.train_step(batch)

    def train_step(self, batch: Any) -> torch.Tensor:
        return self.training_step_discriminator(batch)

    def training_step_discriminator(self, batch: Any) -> torch.Tensor:
        return self.loss(batch)

    def on_train_epoch_end(self) -> None:
        self.on_epoch_end()

    def on_epoch_end(self) -> None:
        pass

    def on_my_event(self) -> None:
        pass

    def validation_loss(self) -> None:
        pass

    def training_steps_per_epoch(self) -> int:
        return 4

    def test_data(self) -> None:
        pass

    def set_lr(self) -> None:
        pass

    def prepare_dataset(self) -> None:
        pass


def test_helpers_may_resemble_hooks():
    assert fit(WithHelpers()).global_step == 8


def test_a_method_that_makes_loaders_by_another_name_is_fine_where_the_script_calls_it():
    model = subclass(TinyModel, training_dataloader=lambda self: tiny_loader(4))
    assert fit(model, train=model.training_dataloader()).global_step == 8


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("on_epoch_end", r"on_train_epoch_end\(\)"),
        ("on_batch_start", r"on_train_batch_start\(\)"),
        ("on_pretrain_routine_start", r"on_fit_start\(\)"),
        ("configure_sharded_model", r"configure_model\(\)"),
        ("tbptt_split_batch", "split the batch in training_step"),
    ],
)
def test_a_hook_of_lightning_1_says_what_does_its_work_today(name, instead):
    message = rf"Net\.{name}\(\), a hook of Lightning 1\.x, is not built yet in Leyden\. .*{instead}"
    refused(NotBuiltError, message, subclass(TinyModel, **{name: lambda self, *args: None}))


@pytest.mark.parametrize("name", ["on_epoch_end", "on_init_end", "on_keyboard_interrupt", "training_epoch_end"])
def test_a_callbacks_hook_of_lightning_1_says_so_too(name):
    callback = subclass(Callback, **{name: lambda self, *args: None})
    refused(NotBuiltError, rf"Net\.{name}\(\), a hook of Lightning 1\.x", TinyModel(), callback)


# Parameters of hooks.


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("training_step", lambda self: None, r"Net\.training_step\(\) must take \(batch\) or \(batch, batch_idx\)"),
        (
            "training_step",
            lambda self, b, i, optimizer_idx: None,
            r"optimizer_idx\) must take.*step_generator",
        ),
        ("validation_step", lambda self: None, r"Net\.validation_step\(\) must take \(batch\)"),
        ("on_train_batch_end", lambda self: None, r"cannot take the call it will get: .*\(outputs, batch, batch_idx\)"),
        ("on_train_epoch_end", lambda self, trainer: None, r"on_train_epoch_end\(trainer\) cannot take the call"),
        ("training_epoch_end", lambda self: None, r"cannot take the call it will get: training_epoch_end\(outputs\)"),
        ("setup", lambda self: None, r"Net\.setup\(\) cannot take the call it will get: setup\(stage=stage\)"),
        ("teardown", lambda self: None, r"teardown\(stage=stage\)"),
        ("on_save_checkpoint", lambda self: None, r"on_save_checkpoint\(checkpoint\)"),
        ("configure_optimizers", lambda self, lr: None, r"configure_optimizers\(lr\) cannot take"),
        ("lr_scheduler_step", lambda self, optimizer_idx, s, m: None, r"also passed optimizer_idx: leave that out"),
        ("optimizer_step", lambda self, e, b, o, c, on_tpu: None, "also passed on_tpu: leave that out"),
        ("backward", lambda self, loss, optimizer: None, r"it will get: backward\(loss\)"),
        ("configure_gradient_clipping", lambda self, o, i, v, a: None, r"gradient_clip_val=gradient_clip_val"),
        ("transfer_batch_to_device", lambda self, b: b, r"must take \(batch, device, dataloader_idx\)"),
    ],
)
def test_a_method_of_the_module_that_cannot_take_its_call_is_refused(name, method, message):
    model = subclass(ValidatedModel, **{name: method})
    refused(MisconfigurationError, message, model, num_sanity_val_steps=0)


@pytest.mark.parametrize(
    ("name", "method", "call"),
    [
        ("on_train_batch_end", lambda self, batch, i: None, r"\(trainer, pl_module, outputs, batch, batch_idx\)"),
        ("on_train_epoch_end", lambda self: None, r"\(trainer, pl_module\)"),
        ("setup", lambda self, trainer, module: None, r"\(trainer, pl_module, stage=stage\)"),
        ("teardown", lambda self: None, r"\(trainer, pl_module, stage=stage\)"),
        ("on_exception", lambda self, error: None, r"\(trainer, pl_module, exception\)"),
        ("on_save_checkpoint", lambda self, checkpoint: None, r"\(trainer, pl_module, checkpoint\)"),
        ("load_state_dict", lambda self: None, r"\(state_dict\)"),
    ],
)
def test_a_method_of_a_callback_that_cannot_take_its_call_is_refused(name, method, call):
    callback = subclass(Callback, **{name: method})
    refused(
        MisconfigurationError, rf"Net\.{name}.* cannot take the call it will get: {name}{call}", TinyModel(), callback
    )


def test_a_datamodules_setup_without_stage_is_refused():
    data = subclass(Loaders, setup=lambda self: None)
    message = r"Net\.setup\(\) cannot take the call it will get: setup\(stage=stage\)"
    refused(MisconfigurationError, message, TinyModel(), train=None, datamodule=data)


def test_several_validation_loaders_need_a_step_that_takes_their_index():
    message = r"ValidatedModel\.validation_step\(batch, batch_idx\) gets several loaders, so it must take"
    loaders = [tiny_loader(1), tiny_loader(1)]
    refused(MisconfigurationError, message, ValidatedModel(), val=loaders, num_sanity_val_steps=0)


@pytest.mark.parametrize("name", ["automatic_optimisation", "automatic_optimizations", "strict_loadings"])
def test_a_misspelt_setting_of_the_module_is_refused(name):
    model = ValidatedModel()
    setattr(model, name, False)
    refused(MisconfigurationError, rf"ValidatedModel\.{name} is not a setting", model)


# Optimizers and schedulers.


class Configured(ValidatedModel):
    """Returns from ``configure_optimizers`` what ``build`` makes of an SGD."""

    def __init__(self, build: Callable[[SGD], Any]) -> None:
        super().__init__()
        self.build = build

    def configure_optimizers(self) -> Any:
        return self.build(SGD(self.parameters(), lr=0.1))


def scheduled(**options: Any) -> Callable[[SGD], Any]:
    return lambda optimizer: {"optimizer": optimizer, "lr_scheduler": {"scheduler": StepLR(optimizer, 1), **options}}


def plateau(**options: Any) -> Callable[[SGD], Any]:
    return lambda optimizer: {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": ReduceLROnPlateau(optimizer), **options},
    }


def twin(optimizer: SGD) -> SGD:
    return SGD(optimizer.param_groups[0]["params"], lr=0.1)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (type, MisconfigurationError, "configure_optimizers may return an optimizer, .*; got type: "),
        (lambda optimizer: "adam", MisconfigurationError, "got str: 'adam'"),
        (lambda optimizer: [], MisconfigurationError, r"got list: \[\]"),
        (lambda optimizer: ([], []), MisconfigurationError, r"got \(\[\], \[\]\)"),
        (lambda optimizer: (optimizer, 3), MisconfigurationError, "3 is not a scheduler"),
        (lambda optimizer: ([optimizer], [], 3), MisconfigurationError, r"got \(\[SGD\], \[\], int\)"),
        (lambda optimizer: StepLR(optimizer, 1), MisconfigurationError, "got StepLR"),
        (lambda optimizer: {"lr_scheduler": None}, MisconfigurationError, "the dict's 'optimizer' is None"),
        (
            lambda optimizer: {"optimizer": optimizer, "lr_schedular": StepLR(optimizer, 1)},
            MisconfigurationError,
            "unknown key 'lr_schedular'.*Did you mean 'lr_scheduler'",
        ),
        (
            lambda optimizer: {"optimizer": optimizer, "lr_scheduler": "cosine"},
            MisconfigurationError,
            "'cosine' is not a scheduler",
        ),
        (scheduled(intervall="step"), MisconfigurationError, "unknown key 'intervall'.*Did you mean 'interval'"),
        (scheduled(interval="batch"), MisconfigurationError, "interval='batch' is unknown. Choose 'epoch' or 'step'"),
        (scheduled(frequency=0), MisconfigurationError, "frequency=0 is not a whole number from 1"),
        (scheduled(scheduler=None), MisconfigurationError, "'scheduler' is None, not a scheduler"),
        (plateau(), MisconfigurationError, "ReduceLROnPlateau needs a metric to watch.*'monitor': 'val_loss'"),
        (plateau(monitor=3), MisconfigurationError, "monitor=3 is not the name of a metric"),
        (
            lambda optimizer: ([optimizer], [StepLR(twin(optimizer), 1)]),
            MisconfigurationError,
            "StepLR belongs to an optimizer that configure_optimizers does not return",
        ),
        (
            lambda optimizer: [optimizer, twin(optimizer)],
            MisconfigurationError,
            r"2 optimizers without names.*self\.automatic_optimization = False",
        ),
    ],
)
def test_what_configure_optimizers_may_not_return(build, error, message):
    refused(error, message, Configured(build))


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_plateau_scheduler_with_a_misspelt_metric_is_refused_before_training(interval):
    message = r"ReduceLROnPlateau\(monitor='val_los'\) matches nothing.*Did you mean 'val_loss'\?"
    model = Configured(plateau(monitor="val_los", interval=interval))
    refused(MisconfigurationError, message, model)


def test_a_plateau_scheduler_without_validation_is_refused_before_training():
    message = "Logged are: train_loss. Validation does not run, as it is left out"
    refused(MisconfigurationError, message, Configured(plateau(monitor="val_loss")), limit_val_batches=0)


def test_a_plateau_scheduler_that_is_not_strict_warns_instead():
    with pytest.warns(LeydenWarning, match="watches 'val_los', which was not logged.*LD034"):
        fit(Configured(plateau(monitor="val_los", strict=False)))


def test_an_optimizer_of_other_parameters_warns_and_is_refused_when_it_is_to_step():
    model = Configured(lambda optimizer: SGD(nn.Linear(2, 2).parameters(), lr=0.1))
    with pytest.warns(LeydenWarning, match="SGD holds no parameter of Configured, which it will not train.*LD053"):
        refused(MisconfigurationError, r"None of the 2 parameters that SGD holds has a gradient", model)


# Manual optimization, and automatic.


class Manual(TinyModel):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def test_manual_optimization_may_not_return_a_tuple():
    model = subclass(Manual, training_step=lambda self, batch, batch_idx: self.optimizers() and (1, 2))
    refused(MisconfigurationError, r"training_step returned tuple: \(1, 2\)", model)


def test_manual_optimization_that_nowhere_steps_is_refused():
    message = r"Manual has automatic_optimization = False and calls no optimizer's step\(\).*opt\.step\(\)"
    refused(MisconfigurationError, message, Manual())


def test_manual_optimization_that_steps_under_a_condition_that_never_holds_warns():
    def step(self: Any, batch: Any, batch_idx: int) -> None:
        self.manual_backward(self.loss(batch))
        if batch_idx > 100:
            self.optimizers().step()

    with pytest.warns(LeydenWarning, match=r"No optimizer has stepped in this epoch.*self\.optimizers\(\).*LD035"):
        fit(subclass(Manual, training_step=step), max_epochs=1)


def test_manual_backward_is_refused_in_automatic_optimization():
    model = subclass(TinyModel, training_step=lambda self, batch, batch_idx: self.manual_backward(self.loss(batch)))
    refused(MisconfigurationError, r"manual_backward works in manual.*automatic_optimization = False", model)


def test_stepping_by_hand_is_refused_in_automatic_optimization():
    model = subclass(TinyModel, training_step=lambda self, batch, batch_idx: self.optimizers().step())
    refused(MisconfigurationError, r"optimizer\.step\(\) was called before there are gradients.*Leyden steps", model)


def test_an_optimizer_step_that_forgets_the_closure_is_refused():
    model = subclass(TinyModel, optimizer_step=lambda self, epoch, batch_idx, optimizer, optimizer_closure: None)
    refused(MisconfigurationError, r"Net\.optimizer_step\(\) did not call optimizer_closure", model)


# self.log


class Logging(ValidatedModel):
    """Does ``action(self)`` in ``training_step``."""

    def __init__(self, action: Callable[[Any], Any]) -> None:
        super().__init__()
        self.metric = MeanMetric()
        self.action = action

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.action(self)
        return self.loss(batch)


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda m: m.log("x", torch.ones(3)), ValueError, r"self\.log\('x', value\).*shape \(3,\).*\.mean\(\)"),
        (lambda m: m.log("x", torch.ones(0)), ValueError, r"shape \(0,\)"),
        (lambda m: m.log("x", np.ones(3)), ValueError, r"a ndarray of shape \(3,\)"),
        (lambda m: m.log("x", torch.tensor(1j)), ValueError, "takes a real number, got torch.complex64"),
        (lambda m: m.log("x", "high"), ValueError, "got str: 'high'"),
        (lambda m: m.log("x", [1, 2]), ValueError, r"got list: \[1, 2\]"),
        (lambda m: m.log("x", None), ValueError, "got NoneType"),
        (lambda m: m.log("x", {"a": 1}), ValueError, r"got a dict\. Use self\.log_dict"),
        (lambda m: m.log_dict({"x": {"a": 1}}), ValueError, r"self\.log\('x', value\).*a number under every name"),
        (lambda m: m.log_dict([1, 2]), TypeError, r"self\.log_dict takes a dict, got \[1, 2\]"),
        (lambda m: m.log_dict("x", 1), TypeError, r"got 'x'\. For one value use self\.log"),
        (lambda m: m.log(1, 2), TypeError, r"takes a name first, got 1\. Write self\.log\('loss', loss\)"),
        (lambda m: m.log(torch.tensor(1.0), "x"), TypeError, "takes a name first, got tensor"),
        (lambda m: m.log("x", 1, on_epochs=True), TypeError, "'on_epochs'"),
        (
            lambda m: (m.log("x", 1.0), m.log("x", 1.0, prog_bar=True)),
            MisconfigurationError,
            r"self\.log\('x'\) was called twice in training_step with different options",
        ),
        (
            lambda m: m.log("x", 1.0, on_step=False),
            MisconfigurationError,
            r"self\.log\('x', on_step=False, on_epoch=False\) would log nothing",
        ),
        (
            lambda m: m.log("x", 1.0, reduce_fx="median"),
            MisconfigurationError,
            "reduce_fx='median'.*choose 'mean', 'sum', 'min' or 'max'",
        ),
        (
            lambda m: m.log("x/dataloader_idx_0", 1.0),
            MisconfigurationError,
            "'/dataloader_idx_' is added by Leyden; pass add_dataloader_idx=False",
        ),
        (
            lambda m: m.log("x", MeanMetric()),
            MisconfigurationError,
            r"the MeanMetric is not an attribute of the module\. Make it in __init__",
        ),
        (
            lambda m: m.log("x", m.metric, metric_attribute="accuracy"),
            MisconfigurationError,
            "metric_attribute='accuracy'.*is the attribute 'metric'",
        ),
        (
            lambda m: (m.metric.update(1.0), m.log("x", m.metric)),
            MisconfigurationError,
            r"on_step=True\) needs the metric's value for this batch.*Call it",
        ),
        (
            lambda m: m.log("x", 1.0, on_epoch=True, batch_size=-3),
            MisconfigurationError,
            "batch_size=-3.*not a number of",
        ),
        (lambda m: m.log("x", 1.0, on_epoch=True, batch_size="3"), MisconfigurationError, "batch_size='3'"),
    ],
)
def test_self_log_refuses_what_it_cannot_log(action, error, message):
    refused(error, message, Logging(action))


def test_self_log_asks_for_the_batch_size_where_it_cannot_be_seen():
    def step(self, batch):
        self.log("x", 1.0, on_epoch=True)
        return self.net(torch.tensor(batch["rows"])).sum()

    message = r"needs the number of samples.*self\.log\('x', value, batch_size=\.\.\.\)"
    refused(
        MisconfigurationError, message, subclass(TinyModel, training_step=step), train=[{"rows": [[1.0] * FEATURES]}]
    )


class LogsAtEpochEnd(TinyModel):
    def on_train_epoch_end(self) -> None:
        self.log("x", 1.0, on_step=True)


class LogsAtTheEnd(TinyModel):
    def on_train_end(self) -> None:
        self.log("x", 1.0)


class LogsAtStart(TinyModel):
    def on_fit_start(self) -> None:
        self.log_dict({"x": 1.0})


class LogsOptimizers(TinyModel):
    def configure_optimizers(self) -> Any:
        self.log("lr", self.lr)
        return super().configure_optimizers()


class LogsIndirectly(TinyModel):
    def on_train_start(self) -> None:
        self.note()

    def on_fit_start(self) -> None:
        self.note()

    def note(self) -> None:
        self.log("x", 1.0)


class AfterValidation(Callback):
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("x", 1.0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (LogsAtEpochEnd(), r"LogsAtEpochEnd\.on_train_epoch_end\(\) calls self\.log with on_step=True"),
        (LogsAtTheEnd(), r"LogsAtTheEnd\.on_train_end\(\) calls self\.log, and no values are collected there"),
        (LogsAtStart(), r"LogsAtStart\.on_fit_start\(\) calls self\.log"),
        (LogsOptimizers(), r"self\.log\('lr'\) cannot be called in configure_optimizers: no values are collected"),
        (LogsIndirectly(), r"self\.log\('x'\) cannot be called in on_fit_start"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_self_log_is_refused_where_nothing_is_collected_before_training(model, message):
    refused(MisconfigurationError, message, model)


def test_a_callback_that_logs_where_nothing_is_collected_is_refused():
    message = r"AfterValidation\.on_validation_end\(\) calls self\.log"
    refused(MisconfigurationError, message, ValidatedModel(), AfterValidation())
    fit(TinyModel(), AfterValidation())  # which never comes there without validation


def test_self_log_is_refused_in_predict_step():
    model = subclass(TinyModel, predict_step=lambda self, batch: self.log("x", 1.0))
    with pytest.raises(MisconfigurationError, match=r"self\.log\('x'\) cannot be called in predict_step"):
        trainer_of().predict(model, tiny_loader(1))


# Monitored names.


class ByStage(TinyModel):
    """Logs ``train_loss`` and ``val_loss`` under a name made of its stage."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.shared(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.shared(batch, "val")

    def shared(self, batch: Any, stage: str) -> torch.Tensor:
        loss = self.loss(batch)
        self.log(f"{stage}_loss", loss)
        return loss


class ByDict(TinyModel):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log_dict({"val_loss": self.loss(batch), "val_acc": 0.5})


class Computed(TinyModel):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        name = "_".join(("val", "loss"))
        self.log(name, self.loss(batch))


class ByLoader(TinyModel):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch))


class Logs(Callback):
    def on_validation_epoch_end(self, trainer: Any, model: Any) -> None:
        model.log("of_callback", 1.0)


class Adds(Callback):
    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.add_callback_metrics({"of_callback": torch.tensor(1.0)})


WATCHERS = [ModelCheckpoint, EarlyStopping]


@pytest.mark.parametrize("watcher", WATCHERS)
@pytest.mark.parametrize(
    ("model", "monitor", "message"),
    [
        (ValidatedModel, "val_los", r"Logged are: train_loss, val_loss\. Did you mean 'val_loss'\?"),
        (ValidatedModel, "accuracy", r"Logged are: train_loss, val_loss\.$"),
        (ValidatedModel, "test_loss", "'test_loss' is logged in a step that fit does not run"),
        (TinyModel, "val_loss", "Logged are: no names at all"),
        (ByDict, "vall_acc", "Did you mean 'val_acc'"),
        (ByStage, "val_accuracy", r"Logged are: \*_loss\."),
    ],
)
def test_a_monitor_that_nothing_logs_is_refused_before_training(watcher, model, monitor, message):
    message = rf"{watcher.__name__}\(monitor='{monitor}'\) matches nothing that is logged in this fit\. .*{message}"
    refused(MisconfigurationError, message, model(), watcher(monitor=monitor))


@pytest.mark.parametrize("watcher", WATCHERS)
@pytest.mark.parametrize(
    ("options", "message"),
    [({"val": None}, "there is no validation loader"), ({"limit_val_batches": 0}, "it is left out")],
)
def test_a_monitor_of_validation_is_refused_where_validation_does_not_run(watcher, options, message):
    message = rf"Logged are: train_loss\. Validation does not run, as {message}"
    refused(MisconfigurationError, message, ValidatedModel(), watcher(monitor="val_loss"), **options)


@pytest.mark.parametrize("watcher", WATCHERS)
@pytest.mark.parametrize(
    ("model", "monitor", "others"),
    [
        (ValidatedModel, "val_loss", []),
        (ValidatedModel, "train_loss", []),
        (ByStage, "val_loss", []),
        (ByDict, "val_acc", []),
        (Computed, "val_loss", []),
        (ValidatedModel, "of_callback", [Logs]),
        (ValidatedModel, "of_callback", [Adds]),
    ],
)
def test_a_monitor_that_is_logged_is_not_refused(watcher, model, monitor, others):
    assert (
        fit(model(), watcher(monitor=monitor), *(o() for o in others), val=tiny_loader(1), max_epochs=1).global_step
        == 4
    )


@pytest.mark.parametrize("watcher", WATCHERS)
def test_a_name_that_only_the_run_can_tell_is_refused_by_the_callback(watcher):
    message = r"\(monitor='val_los'\) matches nothing logged\. Logged so far: val_loss\. Did you mean 'val_loss'\?"
    with pytest.raises((MisconfigurationError, RuntimeError), match=message):
        fit(Computed(), watcher(monitor="val_los"))


def test_a_missing_monitor_is_left_alone_where_it_may_be_missing():
    fit(ValidatedModel(), EarlyStopping("val_los", strict=False), max_epochs=1)


@pytest.mark.parametrize("watcher", WATCHERS)
def test_with_several_validation_loaders_a_monitor_names_one(watcher):
    two, one = [tiny_loader(1), tiny_loader(1)], tiny_loader(1)
    names = "Give 'val_loss/dataloader_idx_0' or 'val_loss/dataloader_idx_1'"
    refused(MisconfigurationError, names, ByLoader(), watcher(monitor="val_loss"), val=two)
    only = "with 1 validation loader. Give 'val_loss'"
    refused(MisconfigurationError, only, ByLoader(), watcher(monitor="val_loss/dataloader_idx_1"), val=one)
    fit(ByLoader(), watcher(monitor="val_loss/dataloader_idx_1"), val=two, max_epochs=1)


# Callbacks.


class Remembers(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"seen": 3}


def test_a_callback_of_the_model_whose_state_would_overwrite_anothers_is_refused():
    other = type("Remembers", (Callback,), {"state_dict": lambda self: {"seen": 4}})
    model = subclass(TinyModel, configure_callbacks=lambda self: [other()])
    message = "Two callbacks would keep their state under the same name, 'Remembers'. Override state_key"
    refused(MisconfigurationError, message, model, Remembers())


def test_configure_callbacks_must_return_callbacks():
    model = subclass(TinyModel, configure_callbacks=lambda self: ["EarlyStopping"])
    refused(TypeError, "'EarlyStopping' among the callbacks is not a Callback", model)


def test_configure_callbacks_may_return_nothing():
    fit(subclass(TinyModel, configure_callbacks=lambda self: None), max_epochs=1)


# Checkpoints.


class Wide(TinyModel):
    def __init__(self) -> None:
        super().__init__()
        self.net[2] = nn.Linear(32, 11)


class Renamed(TinyModel):
    def __init__(self) -> None:
        super().__init__()
        self.layers = self.net
        del self.net


class TwoGroups(TinyModel):
    def configure_optimizers(self) -> Any:
        return SGD([{"params": layer.parameters()} for layer in (self.net[0], self.net[2])], lr=0.1)


class Stepped(TinyModel):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [StepLR(optimizer, 1)]


class Other:
    """Not a plain value."""


@pytest.fixture
def saved(tmp_path: Path) -> Trainer:
    """A Trainer whose fit of 3 epochs is in ``saved.ckpt``."""
    trainer = fit(TinyModel(), max_epochs=3)
    trainer.save_checkpoint("saved.ckpt")
    return trainer


def resume_is_refused(
    error: type[Exception], message: str, model: TinyModel, path: Any = "saved.ckpt", **options: Any
) -> None:
    refused(error, message, model, ckpt_path=path, **{"max_epochs": 5, **options})


def test_a_missing_checkpoint_is_named_with_its_neighbours(saved):
    resume_is_refused(
        FileNotFoundError, r"There is no checkpoint save\.ckpt\. Beside it: saved\.ckpt", TinyModel(), "save.ckpt"
    )


def test_a_folder_and_a_number_are_no_checkpoints(tmp_path):
    resume_is_refused(CheckpointError, "is a folder, and a checkpoint is one file", TinyModel(), tmp_path)
    resume_is_refused(TypeError, r"trainer\.fit\(ckpt_path=3\) is not a path", TinyModel(), 3)


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty"])
def test_a_damaged_checkpoint_is_refused(saved, damage):
    whole = Path("saved.ckpt").read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
    damaged = {"cut": whole[:middle], "flipped": flipped, "text": b"hello", "empty": b""}[damage]
    Path("damaged.ckpt").write_bytes(damaged)
    resume_is_refused(CheckpointError, r"damaged\.ckpt is damaged", TinyModel(), "damaged.ckpt")


def test_bare_weights_and_foreign_objects_are_no_checkpoints():
    torch.save(TinyModel().state_dict(), "bare.ckpt")
    resume_is_refused(CheckpointError, r"bare\.ckpt is not a checkpoint of a Trainer", TinyModel(), "bare.ckpt")
    torch.save({"state_dict": {}, "other": Other()}, "objects.ckpt")
    resume_is_refused(CheckpointError, r"holds .*Other.*pass weights_only=False", TinyModel(), "objects.ckpt")


def test_training_cannot_be_resumed_from_weights_alone(saved):
    saved.save_checkpoint("weights.ckpt", weights_only=True)
    message = r"weights\.ckpt holds weights alone.*TinyModel\.load_from_checkpoint"
    resume_is_refused(CheckpointError, message, TinyModel(), "weights.ckpt")


def test_a_checkpoint_of_more_epochs_than_there_are_to_be_is_refused(saved):
    message = r"saved\.ckpt has completed 3 epochs, more than Trainer\(max_epochs=2\)\. Give a larger max_epochs"
    resume_is_refused(CheckpointError, message, TinyModel(), max_epochs=2)


def test_a_checkpoint_that_leaves_nothing_to_do_warns(saved):
    with pytest.warns(LeydenWarning, match=r"saved\.ckpt: max_epochs=3 reached, so fit has nothing to do.*LD061"):
        assert fit(TinyModel(), ckpt_path="saved.ckpt", max_epochs=3).global_step == 12


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Wide, r"saved\.ckpt do not fit Wide: .*size mismatch for net\.2\.weight"),
        (Renamed, r"saved\.ckpt do not fit Renamed: .*Missing key.*layers\.0\.weight"),
        (lambda: TinyModel("adam"), r"saved\.ckpt has the state of another optimizer than the Adam .*lacks betas, eps"),
        (TwoGroups, r"saved\.ckpt does not fit SGD .*different number of parameter groups"),
        (Stepped, r"has the state of 0 schedulers, and configure_optimizers returned 1"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_before_training(saved, model, message):
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        fit(subclass_that_must_not_train(model()), ckpt_path="saved.ckpt", max_epochs=5)


def subclass_that_must_not_train(model: TinyModel) -> TinyModel:
    def training_step(batch: Any, batch_idx: int) -> None:
        raise AssertionError("training began")

    model.training_step = training_step
    return model


def test_best_needs_a_checkpoint_that_was_saved():
    message = r"trainer\.fit\(ckpt_path='best'\) finds no best checkpoint"
    resume_is_refused(MisconfigurationError, message, TinyModel(), "best")
    message = "'best' cannot be used with fast_dev_run: it saves nothing"
    resume_is_refused(MisconfigurationError, message, TinyModel(), "best", fast_dev_run=True)


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_evaluation_refuses_the_same_checkpoints(saved, method):
    run = getattr(trainer_of(), method)
    with pytest.raises(MisconfigurationError, match=rf"trainer\.{method}\(ckpt_path='best'\) finds no best"):
        run(ValidatedModel(), tiny_loader(1), ckpt_path="best")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint other\.ckpt"):
        run(ValidatedModel(), tiny_loader(1), ckpt_path="other.ckpt")


# Nobody is set up for a run that is refused, and nobody hears of its end.


class Recorded(LightningDataModule):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def train_dataloader(self) -> Any:
        return tiny_loader()

    def setup(self, stage: str) -> None:
        self.heard.append("setup")

    def teardown(self, stage: str) -> None:
        self.heard.append("teardown")


def test_a_refused_run_does_not_begin():
    data = Recorded()
    refused(MisconfigurationError, "no training_step", Layer(), train=None, datamodule=data)
    refused(FileNotFoundError, "no checkpoint", TinyModel(), train=None, datamodule=data, ckpt_path="none.ckpt")
    assert data.heard == []
    fit(TinyModel(), train=None, datamodule=data, max_epochs=1)
    assert data.heard == ["setup", "teardown"]


# An error in the user's own code.


class Raises(ValidatedModel):
    """Raises in one of its methods."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def raise_in(self, method: str) -> None:
        if method == self.where:
            raise ZeroDivisionError("mine")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.raise_in("training_step")
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.raise_in("validation_step")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.raise_in("on_train_batch_end")


@pytest.mark.parametrize("where", ["training_step", "validation_step", "on_train_batch_end"])
def test_an_error_of_the_users_shows_few_frames_of_ours_and_ends_at_the_users_line(where):
    with pytest.raises(ZeroDivisionError, match=r"^mine(\n|$)") as raised:
        fit(Raises(where))
    frames = traceback.extract_tb(raised.value.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(OURS)]
    assert len(ours) <= 8
    assert [frame.name for frame in frames[-2:]] == [where, "raise_in"]
    assert frames[-1].line == 'raise ZeroDivisionError("mine")'
    assert raised.value.__cause__ is None and raised.value.__context__ is None
