"""The Trainer as Lightning's users know it: what it takes, what comes by default, and what can be read from it."""

from __future__ import annotations

import inspect
import math
import os
import sys
from importlib.metadata import entry_points
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import leyden
from leyden.callbacks import EarlyStopping, ModelCheckpoint, ModelSummary, ProgressBar
from leyden.core.combined import CombinedLoader
from leyden.core.state import Fn, Stage, Status
from leyden.fabric.accelerators import Accelerator
from leyden.fabric.precision import MixedPrecision
from leyden.fabric.strategies.strategy import Strategy
from leyden.loggers.csv import CSVLogger
from leyden.loggers.logger import Logger
from leyden.loggers.tensorboard import TensorBoardLogger
from leyden.trainer import Trainer
from recording import Plain, bare, ones


class Heard(Logger):
    """Keeps the names of the calls that it gets, in order."""

    def __init__(self, folder: str | None = None) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.folder = folder

    @property
    def log_dir(self) -> str | None:
        return self.folder

    def log_hyperparams(self, params, *args, **kwargs):
        self.calls.append("log_hyperparams")

    def log_graph(self, model, input_array=None):
        self.calls.append("log_graph")

    def log_metrics(self, metrics, step=None):
        self.calls.append("log_metrics")

    def save(self):
        self.calls.append("save")

    def after_save_checkpoint(self, checkpoint_callback):
        self.calls.append("after_save_checkpoint")

    def finalize(self, status):
        self.calls.append(f"finalize {status}")


class Stops(leyden.Callback):
    """Asks for the end of training after the first batch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = True


def alone(**options: Any) -> Trainer:
    """A bare Trainer that does not validate."""
    return bare(limit_val_batches=0, **options)


# What it takes.


def test_arguments_are_taken_by_keyword_alone():
    with pytest.raises(TypeError, match="positional argument"):
        Trainer("cpu")


def parameters(method: str) -> list[str]:
    return list(inspect.signature(getattr(Trainer, method)).parameters)[1:]


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("fit", "model train_dataloaders val_dataloaders datamodule ckpt_path weights_only"),
        ("validate", "model dataloaders ckpt_path verbose datamodule weights_only"),
        ("test", "model dataloaders ckpt_path verbose datamodule weights_only"),
        ("predict", "model dataloaders datamodule return_predictions ckpt_path weights_only"),
        ("save_checkpoint", "filepath weights_only storage_options"),
    ],
)
def test_methods_take_lightnings_arguments_in_lightnings_order(method, names):
    assert parameters(method)[: len(names.split())] == names.split()


def test_fit_returns_nothing():
    assert bare().fit(Plain(), ones(1), ones(1)) is None


# What comes by default.


def test_a_checkpoint_a_bar_and_a_summary_come_by_default_and_can_be_left_out():
    assert {type(callback) for callback in Trainer(logger=False).callbacks} == {
        ModelCheckpoint,
        ProgressBar,
        ModelSummary,
    }
    off = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    assert Trainer(logger=False, **off).callbacks == []


def test_ones_own_take_the_place_of_those_that_come_by_default():
    own = [ProgressBar(), ModelSummary(max_depth=2), ModelCheckpoint(monitor="v")]
    assert Trainer(logger=False, callbacks=own).callbacks == own


def test_callbacks_are_called_in_their_order_then_those_that_come_by_default_then_those_that_save():
    class First(leyden.Callback):
        pass

    class Second(leyden.Callback):
        pass

    kinds = [
        type(callback) for callback in Trainer(logger=False, callbacks=[ModelCheckpoint(), Second(), First()]).callbacks
    ]
    assert kinds == [Second, First, ProgressBar, ModelSummary, ModelCheckpoint]


def test_packages_that_are_installed_add_no_callback(tmp_path, monkeypatch):
    """Lightning calls every entry point of this group."""
    (tmp_path / "adds.py").write_text("def callbacks():\n    raise SystemExit('called')\n")
    information, group = tmp_path / "adds-1.0.dist-info", "lightning.pytorch.callbacks_factory"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: adds\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{group}]\nadds = adds:callbacks\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert [point.name for point in entry_points(group=group)] == ["adds"]
    assert len(Trainer(logger=False).callbacks) == 3


def test_without_tensorboard_the_default_logger_writes_csv(monkeypatch):
    assert type(Trainer().logger) is TensorBoardLogger
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    assert type(Trainer().logger) is CSVLogger


@pytest.mark.parametrize("nothing", [False, []])
def test_there_may_be_no_logger(nothing):
    trainer = bare(logger=nothing)
    assert trainer.logger is None and trainer.loggers == []
    assert trainer.log_dir == trainer.default_root_dir == os.getcwd()


def test_the_first_logger_decides_log_dir():
    first, second = Heard("first"), Heard("second")
    trainer = bare(logger=[first, second])
    assert (trainer.logger, trainer.loggers, trainer.log_dir) == (first, [first, second], "first")


def test_loggers_can_be_replaced():
    first, second = Heard("first"), Heard("second")
    trainer = alone(logger=first)
    trainer.logger = second
    assert trainer.loggers == [second] and trainer.log_dir == "second"
    trainer.loggers = [first, second]
    assert trainer.logger is first
    trainer.fit(Plain(), ones(1))
    assert first.calls == second.calls != []
    trainer.logger = None
    assert trainer.loggers == []


def test_a_logger_hears_of_hyperparameters_graph_checkpoints_and_the_end(tmp_path):
    class Saves(Plain):
        def __init__(self, width=3):
            super().__init__()
            self.save_hyperparameters()

        def training_step(self, batch, batch_idx):
            self.log("loss", 1.0, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    logger = Heard()
    saver = ModelCheckpoint(tmp_path)
    alone(logger=logger, callbacks=[saver], enable_checkpointing=True).fit(Saves(), ones(1))
    begins, ends = ["log_hyperparams", "log_graph", "save"], ["after_save_checkpoint", "finalize success"]
    assert logger.calls == [*begins, "log_metrics", *ends]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_logger_hears_that_a_run_has_failed(error):
    class Fails(Plain):
        def training_step(self, batch, batch_idx):
            raise error

    logger = Heard()
    trainer = alone(logger=logger)
    with pytest.raises(error):
        trainer.fit(Fails(), ones(1))
    assert logger.calls[-1] == "finalize failed"
    assert trainer.interrupted


def test_a_url_can_be_the_default_folder():
    fsspec = pytest.importorskip("fsspec")
    url = "memory://default-root"
    trainer = alone(default_root_dir=url, enable_checkpointing=True)
    trainer.fit(Plain(), ones(2))
    assert trainer.checkpoint_callback.best_model_path == f"{url}/checkpoints/epoch=0-step=2.ckpt"
    assert fsspec.filesystem("memory").exists("/default-root/checkpoints/epoch=0-step=2.ckpt")


def test_deterministic_gives_cublas_its_workspace(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        bare(deterministic=False)
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        bare(deterministic=True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_gradients_are_unscaled_before_they_are_seen_and_clipped():
    seen: dict[str, float] = {}

    class Looks(Plain):
        def on_after_backward(self):
            seen["scaled"] = self.layer.bias.grad.item()

        def on_before_optimizer_step(self, optimizer):
            seen["unscaled"] = self.layer.bias.grad.item()

        def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            seen["clipped"] = self.layer.bias.grad.item()

    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))
    clipping = {"gradient_clip_val": 0.25, "gradient_clip_algorithm": "value"}
    trainer = alone(plugins=scaled, **clipping)
    trainer.fit(Looks(), ones(1))
    assert seen == {"scaled": 256.0, "unscaled": 1.0, "clipped": 0.25}
    assert trainer.scaler is scaled.scaler and trainer.precision == "16-mixed"


# What can be read from it.


def test_options_can_be_read_by_their_names():
    options = {
        "max_epochs": 3,
        "min_epochs": 2,
        "max_steps": 9,
        "min_steps": 4,
        "limit_train_batches": 5,
        "limit_val_batches": 0.5,
        "limit_test_batches": 6,
        "limit_predict_batches": 7,
        "val_check_interval": 2,
        "check_val_every_n_epoch": 2,
        "log_every_n_steps": 8,
        "accumulate_grad_batches": 3,
        "gradient_clip_val": 0.5,
        "gradient_clip_algorithm": "value",
        "default_root_dir": "runs",
        "num_nodes": 1,
    }
    trainer = bare(**options)
    assert {name: getattr(trainer, name) for name in options} == options
    assert bare(fast_dev_run=2).fast_dev_run == 2
    assert bare(overfit_batches=2).overfit_batches == 2
    assert bare().log_every_n_steps == 50


def test_its_parts_can_be_read():
    trainer = bare(precision="bf16-mixed")
    assert type(trainer.accelerator) is Accelerator and trainer.accelerator.name == "cpu"
    assert type(trainer.strategy) is Strategy and trainer.strategy.device == torch.device("cpu")
    assert type(trainer.precision_plugin) is MixedPrecision and trainer.precision == "bf16-mixed"
    assert trainer.scaler is None


class Nowhere(Accelerator):
    """A device whose tensors have no values, so that nothing can be moved away from it."""

    name = "meta"

    def device(self, index):
        return torch.device("meta")


def test_after_a_run_the_module_goes_back_to_where_it_was():
    def fit(model: Plain) -> torch.device:
        alone(accelerator=Nowhere(), limit_train_batches=0).fit(model, ones(1))
        return model.device

    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        fit(Plain())  # which was on the CPU
    assert fit(Plain().to("meta")) == torch.device("meta")


def test_the_module_the_datamodule_and_the_schedulers_can_be_read_during_the_run_and_after_it():
    class Data(leyden.LightningDataModule):
        def train_dataloader(self):
            return ones(1)

    class Looks(leyden.Callback):
        def on_train_start(self, trainer, pl_module):
            assert trainer.lightning_module is trainer.model is pl_module
            assert trainer.datamodule is data

    trainer, model, data = alone(callbacks=[Looks()]), Plain(), Data()
    trainer.fit(model, data)
    assert trainer.lightning_module is trainer.model is model
    assert trainer.datamodule is data and data.trainer is trainer
    assert [config.interval for config in trainer.lr_scheduler_configs] == ["epoch", "step"]
    assert trainer.lr_scheduler_configs[0].scheduler.optimizer is trainer.optimizers[0]


def test_the_state_says_which_method_and_loop_run_and_how_the_last_one_ended():
    seen = []

    class Looks(Plain):
        def note(self):
            seen.append((self.trainer.state.fn, self.trainer.state.stage, self.trainer.state.status))

        def training_step(self, batch, batch_idx):
            self.note()
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.note()

        test_step = predict_step = validation_step

    trainer, model = bare(num_sanity_val_steps=1), Looks()
    assert (trainer.state.fn, trainer.state.stage, trainer.state.status) == (None, None, Status.INITIALIZING)
    trainer.fit(model, ones(1), ones(1))
    for method in ("validate", "test", "predict"):
        getattr(trainer, method)(model, ones(1))
    assert seen == [
        (Fn.FIT, Stage.SANITY_CHECK, Status.RUNNING),
        (Fn.FIT, Stage.TRAIN, Status.RUNNING),
        (Fn.FIT, Stage.VALIDATE, Status.RUNNING),
        (Fn.VALIDATE, Stage.VALIDATE, Status.RUNNING),
        (Fn.TEST, Stage.TEST, Status.RUNNING),
        (Fn.PREDICT, Stage.PREDICT, Status.RUNNING),
    ]
    assert [str(name) for name in seen[0]] == ["fit", "sanity_check", "running"]  # Lightning's values
    assert (trainer.state.stage, trainer.state.status, trainer.state.finished) == (None, Status.FINISHED, True)


def test_ckpt_path_is_that_of_the_run(tmp_path):
    trainer, path = alone(), tmp_path / "saved.ckpt"
    trainer.fit(Plain(), ones(1))
    assert trainer.ckpt_path is None
    trainer.save_checkpoint(path)
    trainer.test(Plain(), ones(1), ckpt_path=path)
    assert trainer.ckpt_path == str(path)


def test_a_url_can_be_gone_on_from_and_tested(tmp_path):
    pytest.importorskip("fsspec")
    url, trainer, model = "memory://ckpt-path/saved.ckpt", alone(), Plain()
    trainer.fit(model, ones(2))
    trainer.save_checkpoint(url)
    longer, other = alone(max_epochs=2), Plain()
    longer.fit(other, ones(2), ckpt_path=url)
    assert longer.global_step == 4
    longer.test(other, ones(1), ckpt_path=url)
    assert torch.equal(other.layer.weight, model.layer.weight)


def test_loaders_and_counts_of_prediction_and_of_the_sanity_check_can_be_read():
    trainer, model, loaders = bare(num_sanity_val_steps=2), Plain(), [ones(1), ones(3)]
    trainer.fit(model, ones(1), loaders)
    assert trainer.num_sanity_val_batches == [1, 2]
    assert trainer.num_predict_batches == [] and trainer.predict_dataloaders is None
    trainer.predict(model, loaders)
    assert trainer.num_predict_batches == [1, 3] and trainer.predict_dataloaders is loaders


def test_a_loader_without_length_has_no_number_of_batches():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([torch.ones(2, 4)] * 3)

    trainer, loader = bare(), DataLoader(Stream(), batch_size=None)
    trainer.fit(Plain(), loader, loader)
    assert trainer.num_training_batches == math.inf and trainer.num_val_batches == [math.inf]


def test_the_last_batch_of_an_epoch_is_told():
    seen = []

    class Looks(leyden.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(trainer.is_last_batch)

    alone(callbacks=[Looks()], max_epochs=2, limit_train_batches=2).fit(Plain(), ones(3))
    assert seen == [False, True] * 2


def test_an_epoch_counts_when_the_hooks_of_its_end_have_been_called():
    seen = []

    class Looks(Plain):
        def on_train_epoch_end(self):
            seen.append(self.current_epoch)

        def on_train_end(self):
            seen.append(self.current_epoch)

    trainer = alone(max_epochs=2)
    trainer.fit(Looks(), ones(1))
    assert (seen, trainer.current_epoch) == ([0, 1, 2], 2)


def test_a_stop_that_was_asked_for_holds_for_one_fit():
    trainer, model = alone(max_epochs=2, callbacks=[Stops()]), Plain()
    trainer.fit(model, ones(3))
    assert (trainer.global_step, trainer.should_stop) == (1, True)
    trainer.callbacks.clear()
    trainer.fit(model, ones(3))
    assert (trainer.global_step, trainer.should_stop) == (6, False)


def test_early_stopping_can_be_found():
    stop = EarlyStopping("v")
    trainer = bare(callbacks=[stop])
    assert trainer.early_stopping_callback is stop and trainer.early_stopping_callbacks == [stop]
    assert trainer.checkpoint_callback is None and trainer.progress_bar_callback is None


# Prediction.


class Returns(Plain):
    """Predicts the first number of every sample."""

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return batch[:, 0]


class Positional(Returns):
    def predict_dataloader(self) -> Any:
        return DataLoader(torch.arange(12.0).reshape(3, 4), 2)


def test_a_loader_made_with_positional_arguments_in_a_hook_predicts():
    found = bare().predict(Positional())  # Lightning fails to build such a loader again
    assert [batch.tolist() for batch in found] == [[0.0, 4.0], [8.0]]


def test_predictions_are_moved_to_the_cpu_where_they_are_kept():
    class Elsewhere(Returns):
        def predict_step(self, batch, batch_idx):
            return {"y": [torch.ones(1, device="meta")]}  # which has no values to move

    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        bare().predict(Elsewhere(), ones(1))
    assert bare().predict(Elsewhere(), ones(1), return_predictions=False) is None


def test_a_combination_that_is_read_in_sequence_predicts_loader_by_loader():
    found = bare().predict(Returns(), CombinedLoader([ones(1), ones(2)], "sequential"))
    assert [len(loader) for loader in found] == [1, 2]
