"""LearningRateMonitor: which rates are logged, under which names, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR

from leyden.callbacks.lr_monitor import LearningRateMonitor
from leyden.core.callback import Callback
from leyden.loggers.logger import Logger
from leyden.utils.errors import MisconfigurationError
from models import TinyModel
from scripted import fit


class Recorder(Logger):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics, step=None):
        self.got.append((step, dict(metrics)))


class Model(TinyModel):
    """TinyModel with optimizers made by ``make``; trains by hand where there are several."""

    def __init__(self, make: Callable[[Any], Any], manual: bool = False) -> None:
        super().__init__()
        self.make, self.automatic_optimization = make, not manual

    def training_step(self, batch, batch_idx):
        if self.automatic_optimization:
            return self.loss(batch)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        for optimizer in self.optimizers():
            optimizer.step()
        return None

    def configure_optimizers(self):
        return self.make(self)


def recorded(make: Callable[[Any], Any], manual: bool = False, trainer: dict | None = None, **options) -> Any:
    """What a Recorder got of the monitor in 2 epochs of 4 batches, logging every second, and the monitor."""
    monitor, recorder = LearningRateMonitor(**options), Recorder()
    given = {"max_epochs": 2, "log_every_n_steps": 2, "logger": recorder, "validate": False} | (trainer or {})
    fit(Model(make, manual), monitor, **given)
    return recorder.got, monitor


def halving(interval: str, **config) -> Callable[[Any], Any]:
    """SGD from 1.0, halved every step or epoch."""

    def make(model):
        optimizer = SGD(model.parameters(), 1.0, momentum=0.9, weight_decay=0.01)
        scheduler = {"scheduler": StepLR(optimizer, 1, 0.5), "interval": interval, **config}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    return make


def halves(model) -> list[dict[str, Any]]:
    """Two parameter groups."""
    first, *rest = model.parameters()
    return [{"params": [first]}, {"params": rest, "lr": 0.5}]


def test_a_scheduler_by_step_is_followed_by_step():
    got, monitor = recorded(halving("step"))
    assert got == [(1, {"lr-SGD": 0.5}), (3, {"lr-SGD": 0.125}), (5, {"lr-SGD": 1 / 32}), (7, {"lr-SGD": 1 / 128})]
    assert monitor.lrs == {"lr-SGD": [0.5, 0.125, 1 / 32, 1 / 128]}


def test_a_scheduler_by_epoch_is_followed_by_epoch():
    got, _ = recorded(halving("epoch"))
    assert got == [(0, {"lr-SGD": 1.0}), (4, {"lr-SGD": 0.5})]


def test_the_interval_can_be_given():
    got, _ = recorded(halving("epoch"), logging_interval="step")
    assert got == [(1, {"lr-SGD": 1.0}), (3, {"lr-SGD": 1.0}), (5, {"lr-SGD": 0.5}), (7, {"lr-SGD": 0.5})]
    got, _ = recorded(halving("step"), logging_interval="epoch")
    assert got == [(0, {"lr-SGD": 1.0}), (4, {"lr-SGD": 1 / 16})]


def test_an_optimizer_without_a_scheduler_is_logged_at_both():
    got, _ = recorded(lambda model: Adam(model.parameters(), 0.1))
    assert [step for step, _ in got] == [0, 1, 3, 4, 5, 7]
    assert all(values == {"lr-Adam": 0.1} for _, values in got)


def test_momentum_and_weight_decay_come_with_the_rate():
    got, monitor = recorded(halving("epoch", name="mine"), log_momentum=True, log_weight_decay=True)
    assert got[0] == (0, {"mine": 1.0, "mine-momentum": 0.9, "mine-weight_decay": 0.01})
    assert monitor.last_momentum_values == {"mine-momentum": 0.9}
    assert monitor.last_weight_decay_values == {"mine-weight_decay": 0.01}


def test_adams_first_beta_is_its_momentum():
    got, _ = recorded(lambda model: Adam(model.parameters(), 0.1, betas=(0.8, 0.9)), log_momentum=True)
    assert got[0][1] == {"lr-Adam": 0.1, "lr-Adam-momentum": 0.8}


def test_the_prefix_comes_before_every_name():
    got, monitor = recorded(halving("epoch"), log_key_prefix="optim/", log_momentum=True)
    assert got[0][1] == {"optim/lr-SGD": 1.0, "optim/lr-SGD-momentum": 0.9}
    assert list(monitor.lrs) == ["optim/lr-SGD"]


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        ((None, None), ["lr-SGD/pg1", "lr-SGD/pg2"]),
        (("head", None), ["lr-SGD/head", "lr-SGD/pg2"]),
        (("head", "body"), ["lr-SGD/head", "lr-SGD/body"]),
    ],
)
def test_parameter_groups_are_told_apart(names, keys):
    def make(model):
        groups = halves(model)
        for group, name in zip(groups, names, strict=True):
            group.update({"name": name} if name else {})
        return SGD(groups, 1.0)

    got, _ = recorded(make, logging_interval="epoch")
    assert got[0] == (0, dict(zip(keys, [1.0, 0.5], strict=True)))


def test_one_named_parameter_group_keeps_its_name():
    got, _ = recorded(lambda model: SGD([{"params": list(model.parameters()), "name": "all"}], 1.0))
    assert got[0] == (0, {"lr-SGD/all": 1.0})


def test_two_groups_of_the_same_name_are_refused():
    def make(model):
        return SGD([group | {"name": "same"} for group in halves(model)], 1.0)

    with pytest.raises(MisconfigurationError, match="lr-SGD/same"):
        recorded(make)


def test_two_optimizers_of_a_kind_are_told_apart():
    def make(model):
        first, *rest = model.parameters()
        return [SGD([first], 1.0), SGD(rest, 2.0)]

    got, _ = recorded(make, manual=True, logging_interval="epoch")
    assert got[0] == (0, {"lr-SGD": 1.0, "lr-SGD-1": 2.0})


def test_two_schedulers_of_the_same_name_are_told_apart():
    def make(model):
        first, *rest = model.parameters()
        optimizers = [SGD([first], 1.0), SGD(rest, 2.0)]
        return optimizers, [{"scheduler": StepLR(optimizer, 1), "name": "mine"} for optimizer in optimizers]

    got, _ = recorded(make, manual=True)
    assert got[0] == (0, {"mine": 1.0, "mine-1": 2.0})


def test_the_batches_of_one_accumulation_are_logged_once():
    got, _ = recorded(halving("step"), trainer={"accumulate_grad_batches": 2, "log_every_n_steps": 1})
    assert got == [(0, {"lr-SGD": 1.0}), (1, {"lr-SGD": 0.5}), (2, {"lr-SGD": 0.25}), (3, {"lr-SGD": 0.125})]


def test_callbacks_can_see_the_rate():
    class Looks(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(trainer.callback_metrics.get("lr-SGD"))

    seen: list[torch.Tensor | None] = []
    fit(
        Model(halving("step")),
        LearningRateMonitor(),
        Looks(),
        logger=Recorder(),
        log_every_n_steps=1,
        max_epochs=1,
        validate=False,
    )
    assert seen == [1.0, 0.5, 0.25, 0.125]


def test_a_second_fit_begins_a_new_history():
    monitor = LearningRateMonitor()
    for _ in range(2):
        fit(Model(halving("epoch")), monitor, logger=Recorder(), max_epochs=1, validate=False)
    assert monitor.lrs == {"lr-SGD": [1.0]}


def test_a_trainer_without_a_logger_is_refused():
    with pytest.raises(MisconfigurationError, match="no logger"):
        recorded(halving("step"), trainer={"logger": False})


def test_a_trial_run_needs_no_logger():
    recorded(halving("step"), trainer={"fast_dev_run": True})


def test_an_unknown_interval_is_refused_with_the_nearest():
    with pytest.raises(MisconfigurationError, match=r"logging_interval='steps'.*Did you mean 'step'\?"):
        LearningRateMonitor("steps")
