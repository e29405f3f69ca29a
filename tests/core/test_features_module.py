"""The LightningModule as Lightning's users know it: what its methods are given, and what may be logged where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import leyden
from leyden.callbacks import EarlyStopping, ModelCheckpoint
from leyden.fabric.precision import MixedPrecision
from leyden.loggers.csv import CSVLogger
from leyden.trainer import Trainer
from leyden.utils.errors import LeydenWarning, MisconfigurationError
from recording import Plain, bare, ones


def alone(**options: Any) -> Trainer:
    """A bare Trainer that does not validate."""
    return bare(limit_val_batches=0, **options)


class OneOptimizer(Plain):
    """Plain without schedulers."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Manual(OneOptimizer):
    """The same in manual optimization."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(self.layer(batch).mean())
        self.optimizers().step()


# What it is given.


def test_setup_and_teardown_get_the_stage_by_keyword():
    stages = []

    class Takes(Plain):
        def setup(self, *, stage):
            stages.append(stage)

        def teardown(self, *, stage=None):
            stages.append(f"end of {stage}")

    trainer, model = bare(), Takes()
    trainer.fit(model, ones(1), ones(1))
    for method in ("validate", "test", "predict"):
        getattr(trainer, method)(model, ones(1))
    names = ("fit", "validate", "test", "predict")
    assert stages == [said for name in names for said in (name, f"end of {name}")]


def test_the_hooks_of_a_step_are_given_the_optimizer_and_the_loss_as_it_is_propagated():
    seen: list[tuple[str, Any]] = []

    class Sees(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 0 + 6

        def on_before_zero_grad(self, optimizer):
            seen.append(("zero_grad", optimizer))

        def on_before_backward(self, loss):
            seen.append(("backward", loss.item()))

        def on_before_optimizer_step(self, optimizer):
            seen.append(("step", optimizer))

    class SeesToo(leyden.Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            seen.append(("callback", loss.item()))

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(("callback", optimizer))

    trainer = alone(callbacks=[SeesToo()], accumulate_grad_batches=2)
    trainer.fit(Sees(), ones(2))
    [optimizer] = trainer.optimizers
    loss = [("callback", 3.0), ("backward", 3.0)]  # 6, divided by the window
    assert seen == [("zero_grad", optimizer), *loss, *loss, ("callback", optimizer), ("step", optimizer)]


def test_before_validation_the_gradients_are_freed_unless_the_module_says_otherwise():
    class Looks(Plain):
        def on_validation_start(self):
            self.freed = self.layer.weight.grad is None

    class Keeps(Looks):
        def on_validation_model_zero_grad(self):
            pass

    freed, kept = Looks(), Keeps()
    for model in (freed, kept):
        bare().fit(model, ones(1), ones(1))
    assert (freed.freed, kept.freed) == (True, False)


def test_in_manual_optimization_the_loss_comes_detached_to_the_hooks():
    seen = []

    class Returns(Manual):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            loss = self.layer(batch).mean()
            return loss if batch_idx == 0 else {"loss": loss, "y": 1}

        def on_train_batch_end(self, outputs, batch, batch_idx):
            seen.append((sorted(outputs), outputs["loss"].requires_grad))

    alone().fit(Returns(), ones(2))
    assert seen == [(["loss"], False), (["loss", "y"], False)]


def test_in_a_run_it_has_the_trainers_loggers():
    class Looks(Plain):
        def on_train_start(self):
            self.seen = (self.logger, self.loggers)

    model, loggers = Looks(), [CSVLogger("a"), CSVLogger("b")]
    alone(logger=loggers).fit(model, ones(1))
    assert model.seen == (loggers[0], loggers)


# What it makes.


def test_configure_model_is_called_in_every_run_and_makes_layers_in_the_trainers_number_type():
    class Late(leyden.LightningModule):
        calls = 0

        def configure_model(self):
            self.calls += 1
            if not hasattr(self, "layer"):
                self.layer = nn.Linear(4, 1)
                self.dtype_there = self.layer.weight.dtype

        def validation_step(self, batch, batch_idx):
            self.layer(batch)

        test_step = predict_step = validation_step

    model, trainer = Late(), bare(precision="bf16-true")
    for method in ("validate", "test", "predict"):
        getattr(trainer, method)(model, ones(1))
    assert (model.calls, model.dtype_there) == (3, torch.bfloat16)


def test_of_the_callbacks_that_a_module_brings_those_that_save_come_last(tmp_path):
    stop, save = EarlyStopping("v", strict=False), ModelCheckpoint(tmp_path)
    replaced = EarlyStopping("w")

    class Given(leyden.Callback):
        pass

    class Brings(Plain):
        def configure_callbacks(self):
            return [save, stop]

    trainer = alone(callbacks=[replaced, given := Given()])
    trainer.fit(Brings(), ones(1))
    assert trainer.callbacks == [given, stop, save]


def test_a_subclass_of_a_callback_takes_its_place_and_a_base_class_does_not():
    class Base(leyden.Callback):
        pass

    class Child(Base):
        pass

    def kept(given, own):
        class Brings(Plain):
            def configure_callbacks(self):
                return own

        trainer = alone(callbacks=[given])
        trainer.fit(Brings(), ones(1))
        return trainer.callbacks

    base, child = Base(), Child()
    assert kept(base, child) == [child]
    assert kept(child, base) == [child, base]


def test_every_optimizer_in_a_list_of_dicts_keeps_its_scheduler_in_manual_optimization():
    class Two(Manual):
        def configure_optimizers(self):
            made = []
            for rate in (1.0, 2.0):
                optimizer = torch.optim.SGD(self.parameters(), lr=rate)
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
                made.append({"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "name": f"rate {rate}"}})
            return tuple(made)

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            self.seen = (first.param_groups[0]["lr"], second.param_groups[0]["lr"], len(self.lr_schedulers()))

    model, trainer = Two(), alone()
    with pytest.warns(LeydenWarning, match="LD035"):
        trainer.fit(model, ones(1))
    assert model.seen == (1.0, 2.0, 2)
    assert [config.name for config in trainer.lr_scheduler_configs] == ["rate 1.0", "rate 2.0"]


def test_manual_backward_passes_its_arguments_on():
    class Twice(Manual):
        def training_step(self, batch, batch_idx):
            loss = self.layer(batch).mean()
            self.manual_backward(loss, retain_graph=True)
            self.manual_backward(loss, None, False)
            self.gradient = self.layer.bias.grad.item()
            self.optimizers().step()

    alone().fit(model := Twice(), ones(1))
    assert model.gradient == 2.0


def test_gradients_clipped_by_hand_are_unscaled_first():
    class Clips(Manual):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            self.manual_backward(self.layer(batch).mean())
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="value")
            self.clipped = self.layer.bias.grad.item()
            optimizer.step()

    model = Clips()
    bias = model.layer.bias.item()
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))
    alone(plugins=scaled).fit(model, ones(1))
    assert model.clipped == 0.5
    assert model.layer.bias.item() == pytest.approx(bias - 0.1 * 0.5)


# self.log.


class Logs(OneOptimizer):
    """Calls ``said(self, batch)`` in its training step."""

    def __init__(self, said: Any) -> None:
        super().__init__()
        self.said = said

    def training_step(self, batch, batch_idx):
        self.said(self, batch)
        return super().training_step(batch, batch_idx)


def logged(said: Any, **options: Any) -> dict[str, float]:
    trainer = alone(**options)
    trainer.fit(Logs(said), ones(2))
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize(
    "options", [{"sync_dist": True}, {"rank_zero_only": True}, {"sync_dist": True, "sync_dist_group": None}]
)
def test_on_one_process_values_are_the_same_however_they_are_reduced_over_processes(options):
    def said(module, batch):
        module.log("x", 3.0, on_step=True, on_epoch=True, **options)

    assert logged(said) == {"x": 3.0, "x_step": 3.0, "x_epoch": 3.0}


def test_a_metric_may_be_named_by_its_attribute():
    class Counts(nn.Module):
        total = 0.0

        def update(self, value):
            self.total += value

        def compute(self):
            return torch.tensor(self.total)

        def reset(self):
            self.total = 0.0

    class Named(OneOptimizer):
        def __init__(self):
            super().__init__()
            self.counts = Counts()

        def training_step(self, batch, batch_idx):
            self.counts.update(2.0)
            self.log("counted", self.counts, on_step=False, on_epoch=True, metric_attribute="counts")
            return super().training_step(batch, batch_idx)

    trainer = alone()
    trainer.fit(Named(), ones(3))
    assert trainer.callback_metrics["counted"] == 6.0


class LogsInTransfer(OneOptimizer):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.log("v", 1.0)
        return batch


class LogsAfterTransfer(OneOptimizer):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.log_dict({"v": 1.0})
        return batch


class LogsInSchedulerStep(Plain):
    def lr_scheduler_step(self, scheduler, metric):
        self.log("v", 1.0)


class LogsInModelEval(OneOptimizer):
    def on_validation_model_eval(self):
        self.log("v", 1.0)


class LogsInModelTrain(OneOptimizer):
    def on_validation_model_train(self):
        self.log("v", 1.0)


class LogsInModelZeroGrad(OneOptimizer):
    def on_validation_model_zero_grad(self):
        self.log("v", 1.0)


class LogsInLoader(OneOptimizer):
    def val_dataloader(self):
        self.log("v", 1.0)
        return ones(1)


class LogsInSetup(OneOptimizer):
    def setup(self, stage):
        self.log("v", 1.0)


class LogsInPrepareData(OneOptimizer):
    def prepare_data(self):
        self.log("v", 1.0)


class LogsInConfigureModel(OneOptimizer):
    def configure_model(self):
        self.log("v", 1.0)


class LogsInTeardown(OneOptimizer):
    def teardown(self, stage):
        self.log("v", 1.0)


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        (LogsInTransfer, "on_before_batch_transfer"),
        (LogsAfterTransfer, "on_after_batch_transfer"),
        (LogsInSchedulerStep, "lr_scheduler_step"),
        (LogsInModelEval, "on_validation_model_eval"),
        (LogsInModelTrain, "on_validation_model_train"),
        (LogsInModelZeroGrad, "on_validation_model_zero_grad"),
        (LogsInLoader, "val_dataloader"),
        (LogsInSetup, "setup"),
        (LogsInPrepareData, "prepare_data"),
        (LogsInConfigureModel, "configure_model"),
        (LogsInTeardown, "teardown"),
    ],
)
def test_methods_on_the_way_from_step_to_step_cannot_log(kind, place):
    val = None if kind is LogsInLoader else ones(1)
    with pytest.raises(MisconfigurationError, match=rf"self\.log\('v'\) cannot be called in {place}: no values are"):
        bare().fit(kind(), ones(2), val)


def test_a_callback_that_logs_without_a_run_is_told_that_it_goes_nowhere():
    with pytest.warns(LeydenWarning, match="goes nowhere.*LD011"):
        leyden.Callback().log("v", 1.0)


# Without a Trainer.


def test_a_step_can_be_called_without_a_trainer():
    class Steps(OneOptimizer):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss)
            self.print("step", batch_idx)
            return loss

    with pytest.warns(LeydenWarning, match="LD011"):
        assert Steps().training_step(torch.ones(2, 4), 0).requires_grad
