"""What is said before training about settings that do nothing, and what preflight costs."""

from __future__ import annotations

import importlib
import statistics
import sys
import time
import warnings
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau, StepLR

from leyden.callbacks.early_stopping import EarlyStopping
from leyden.callbacks.model_checkpoint import ModelCheckpoint
from leyden.core.datamodule import LightningDataModule
from leyden.trainer import Trainer
from leyden.utils.errors import LeydenWarning, MisconfigurationError, NotBuiltError
from models import TinyModel, ValidatedModel, tiny_loader

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def fit(model: Any, train: Any = None, val: Any = None, **options: Any) -> Trainer:
    given = {"datamodule": options.pop("datamodule", None)}
    trainer = Trainer(**{**QUIET, "accelerator": "cpu", "max_epochs": 1, **options})
    trainer.fit(model, train if given["datamodule"] else train or tiny_loader(4), val, **given)
    return trainer


def ids_said(model: Any, *args: Any, **options: Any) -> list[str]:
    """The ids of the warnings of a fit, in order."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, *args, **options)
    return [str(one.message)[-6:-1] for one in caught if issubclass(one.category, LeydenWarning)]


def subclass(base: type, **methods: Any) -> Any:
    """An instance of a class ``Net`` that adds ``methods`` to ``base``."""
    return type("Net", (base,), methods)()


# Validation.


def test_validation_data_without_a_step_warns_unless_validation_is_switched_off():
    model = subclass(TinyModel, val_dataloader=lambda self: tiny_loader(1))
    assert ids_said(model) == ["LD050"]
    assert ids_said(model, limit_val_batches=0) == []
    assert ids_said(ValidatedModel()) == ["LD051"]
    assert ids_said(ValidatedModel(), limit_val_batches=0) == []


def test_validation_data_as_an_argument_without_a_step_is_refused():
    message = r"fit\(val_dataloaders=\.\.\.\) is given and TinyModel has no validation_step\(\).*leave val_dataloaders"
    with pytest.raises(MisconfigurationError, match=message):
        fit(TinyModel(), None, tiny_loader(1))
    assert ids_said(TinyModel(), None, tiny_loader(1), limit_val_batches=0) == []


class ForgetsOptimizer(TinyModel):
    def configure_optimizers(self) -> Any:
        SGD(self.parameters(), lr=0.1)


class ForgetsLoss(TinyModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.loss(batch)


class Passes(TinyModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        pass

    def configure_optimizers(self) -> Any:
        return None


def test_a_forgotten_return_is_refused():
    with pytest.raises(MisconfigurationError, match=r"Optimizer\.configure_optimizers\(\) has no return"):
        fit(ForgetsOptimizer())
    with pytest.raises(MisconfigurationError, match=r"ForgetsLoss\.training_step\(\) has no return .*automatic_"):
        fit(ForgetsLoss())


def test_what_returns_none_on_purpose_is_let_be():
    assert ids_said(Passes()) == ["LD021", "LD033"]


@pytest.mark.parametrize("step", ["training_step", "validation_step"])
def test_a_step_that_asks_for_the_loaders_iterator_is_not_built(step):
    model = subclass(ValidatedModel, **{step: lambda self, dataloader_iter: None})
    message = rf"Net\.{step}\(dataloader_iter\).* not built yet.*Take batches: {step}\(self, batch, batch_idx\)"
    with pytest.raises(NotBuiltError, match=message):
        fit(model, None, tiny_loader(1))


# Hooks.


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return tiny_loader(4)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


def test_a_transfer_hook_of_both_datamodule_and_module_warns():
    model = subclass(TinyModel, on_after_batch_transfer=lambda self, batch, dataloader_idx: batch)
    with pytest.warns(LeydenWarning, match=r"Data and Net both have on_after_batch_transfer\(\): Data's is.*LD289"):
        fit(model, datamodule=Data())
    assert ids_said(TinyModel(), datamodule=Data()) == []
    assert ids_said(model) == []


def own_step(self: Any, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
    optimizer.step(closure=optimizer_closure)


def own_zero_grad(self: Any, epoch: int, batch_idx: int, optimizer: Any) -> None:
    optimizer.zero_grad()


@pytest.mark.parametrize(("name", "method"), [("optimizer_step", own_step), ("optimizer_zero_grad", own_zero_grad)])
def test_accumulation_with_an_overridden_step_warns_that_it_is_called_once_a_window(name, method):
    model = subclass(TinyModel, **{name: method})
    message = rf"accumulate_grad_batches=2\) and Net\.{name}\(\): it is called once for every 2 batches.*LD290"
    with pytest.warns(LeydenWarning, match=message):
        fit(model, accumulate_grad_batches=2)
    assert ids_said(model) == []


# Manual optimization.


class ByHand(TinyModel):
    """Steps its optimizer by hand; what else it configures is ``options`` of its scheduler."""

    automatic_optimization = False

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.optimizers().zero_grad()
        self.manual_backward(self.loss(batch))
        self.optimizers().step()

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": StepLR(optimizer, 1), **self.options}}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"interval": "step"}, "'interval' of StepLR does nothing"),
        ({"frequency": 2, "interval": "step"}, "'interval', 'frequency' of StepLR do nothing"),
        ({"monitor": "val_loss", "strict": False}, "'monitor', 'strict' of StepLR do nothing"),
    ],
)
def test_keys_of_a_scheduler_that_is_stepped_by_hand_warn(options, told):
    with pytest.warns(LeydenWarning, match=rf"{told} in manual optimization.*lr_schedulers\(\)\.step\(\).*LD291"):
        fit(ByHand(**options))


def test_a_scheduler_by_hand_without_such_keys_is_fine():
    assert ids_said(ByHand(name="rate", interval="epoch")) == []


def test_the_monitor_that_a_plateau_needs_is_fine_by_hand():
    class Plateau(ByHand):
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=0.1)
            scheduler = {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "val_loss"}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

    assert ids_said(Plateau()) == []


class Agent:
    """Owns the step, outside of the module."""

    def learn(self, optimizer: Any) -> None:
        optimizer.step()


class WithAgent(TinyModel):
    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.agent = Agent()

    def configure_optimizers(self) -> Any:
        self.agent.optimizer = super().configure_optimizers()
        return self.agent.optimizer

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(self.loss(batch))
        self.agent.learn(self.agent.optimizer)


@pytest.mark.filterwarnings("ignore:.*LD035")  # a bare optimizer's steps are not counted
def test_a_step_that_a_helper_takes_is_found():
    assert ids_said(WithAgent()) == ["LD035"]


def test_a_module_that_hands_itself_on_may_step_elsewhere():
    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        stepped(self, batch)

    def stepped(module: Any, batch: Any) -> None:
        module.manual_backward(module.loss(batch))
        module.optimizers().step()

    assert ids_said(subclass(ByHand, training_step=training_step)) == []


@pytest.mark.parametrize("closure", [3, "loss"])
def test_a_closure_that_cannot_be_called_is_refused(closure):
    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.optimizers().step(closure)

    with pytest.raises(TypeError, match=rf"optimizer\.step\(closure={closure!r}\): a closure is a function"):
        fit(subclass(ByHand, training_step=training_step))


# Schedulers.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda o: OneCycleLR(o, 0.1, total_steps=1000), "OneCycleLR is made to step .*total_steps counts epochs"),
        (lambda o: CyclicLR(o, 0.01, 0.1), "CyclicLR is made to step .*step_size_up counts epochs"),
    ],
)
def test_schedulers_made_for_batches_warn_when_they_step_by_epoch(make, message):
    class Scheduled(TinyModel):
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=0.1, momentum=0.9)
            return [optimizer], [make(optimizer)]

    with pytest.warns(LeydenWarning, match=rf"{message}\..*LD020"):
        fit(Scheduled())


# self.log


def test_a_batch_whose_size_is_a_guess_warns():
    class Graphs(TinyModel):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.log("x", 1.0, on_epoch=True, **self.given)
            return self.net(batch[1]).sum() * 0.0

    batches = [(torch.zeros(2, 9), torch.zeros(5, 32))] * 2
    model = Graphs()
    model.given = {}
    with pytest.warns(LeydenWarning, match=r"self\.log\('x', on_epoch=True\).* differ.*, 2, 5, .*the first, 2,.*LD285"):
        fit(model, batches)
    model.given = {"batch_size": 5}
    assert ids_said(model, batches) == []


class Broken(TinyModel):
    """Logs a ``val_loss`` that is NaN from the second validation on."""

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", float("nan") if self.current_epoch else 1.0)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


def test_a_monitored_metric_that_becomes_nan_warns_once():
    checkpoint = ModelCheckpoint(monitor="val_loss", save_top_k=1)
    options = {"callbacks": [checkpoint], "enable_checkpointing": True, "max_epochs": 4}
    with pytest.warns(LeydenWarning, match=r"ModelCheckpoint\(monitor='val_loss'\): val_loss is nan at step 8.*LD292"):
        fit(Broken(), None, tiny_loader(1), **options)
    assert checkpoint.best_model_score == 1.0


def test_what_stops_at_nan_needs_no_warning():
    assert ids_said(Broken(), None, tiny_loader(1), callbacks=[EarlyStopping("val_loss")], max_epochs=4) == []


# What it costs.


CHECKS = {
    "leyden.core.preflight": ("check_run", "check_optimization", "check_schedules", "check_loaders_of_monitors"),
    "leyden.core.loader_checks": ("warn_of_training_loader", "warn_of_evaluation_loaders"),
    "leyden.core.first_step": ("_check_gradients", "_check_hidden_layers", "_warn_of_what_is_logged"),
}


def test_all_checks_of_a_fit_take_less_than_50_ms_for_a_small_model(monkeypatch):
    spent: list[float] = []

    def timed(check: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            began = time.process_time()
            result = check(*args, **options)
            spent.append(time.process_time() - began)
            return result

        return call

    ours = [module for name, module in sys.modules.items() if name.startswith("leyden.")]
    for place, names in CHECKS.items():
        for name in names:
            check = getattr(importlib.import_module(place), name)
            for module in ours:
                if vars(module).get(name) is check:
                    monkeypatch.setattr(module, name, timed(check))
    totals = []
    for _ in range(5):
        spent.clear()

        class Model(ValidatedModel):  # another class each time, whose source is read anew
            def configure_optimizers(self) -> Any:
                optimizer = SGD(self.parameters(), lr=0.1)
                plateau = ReduceLROnPlateau(optimizer)
                return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "val_loss"}

        fit(Model(), None, tiny_loader(1), callbacks=[EarlyStopping("val_loss")])
        assert len(spent) >= 8
        totals.append(sum(spent) * 1000)
    print(f"preflight and first step: {totals[0]:.1f} ms of CPU at first, median {statistics.median(totals):.1f} ms")
    assert statistics.median(totals) < 50
