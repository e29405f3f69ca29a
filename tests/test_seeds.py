"""Code as courses and guides write it for Lightning runs after its import is changed, and what is not built says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from torch.optim import Adam
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional import accuracy

import leyden as pl
from leyden import LightningDataModule, Trainer
from leyden.callbacks import EarlyStopping, ModelCheckpoint
from leyden.loggers import TensorBoardLogger
from leyden.utils.errors import LeydenWarning, MisconfigurationError, NotBuiltError
from scripted import files

# MNIST's shape, and as many samples as are quickly trained on.


def digits(samples: int = 64, flat: bool = False) -> TensorDataset:
    """Random images ``(1, 28, 28)``, or ``(784,)``, of the classes 0 to 9."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(samples, *([784] if flat else [1, 28, 28]), generator=generator)
    return TensorDataset(images, torch.randint(10, (samples,), generator=generator))


def flat_loader(samples: int = 64) -> DataLoader[Any]:
    return DataLoader(digits(samples, flat=True), batch_size=16)


# As in the guides. Only the data and the numbers of epochs are ours.


class MyModel(pl.LightningModule):
    def __init__(self, hidden_size=256):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(784, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 10))
        self.loss_fn = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        loss = self.loss_fn(logits, y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class MyEvaluatedModel(MyModel):
    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        loss = self.loss_fn(logits, y)
        self.log("val_loss", loss, on_epoch=True)
        return loss

    def test_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        acc = (logits.argmax(dim=1) == y).float().mean()
        self.log("test_acc", acc)


class WithLoaders(MyEvaluatedModel):
    def train_dataloader(self):
        return DataLoader(digits(flat=True), batch_size=32)

    def val_dataloader(self):
        return DataLoader(digits(flat=True), batch_size=32)


class MyDataModule(pl.LightningDataModule):
    def setup(self, stage):
        self.train_data = digits(flat=True)
        self.val_data = digits(32, flat=True)

    def train_dataloader(self):
        return DataLoader(self.train_data, batch_size=16)

    def val_dataloader(self):
        return DataLoader(self.val_data, batch_size=16)


class LitModel(pl.LightningModule):
    def __init__(self):
        super(LitModel, self).__init__()  # noqa: UP008
        self.layer = nn.Linear(28 * 28, 10)  # Example for MNIST

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.forward(x)
        loss = nn.functional.cross_entropy(logits, y)
        return loss

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=0.001)


class LitValidatedModel(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(28 * 28, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x.view(x.size(0), -1))
        loss = nn.functional.cross_entropy(logits, y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x.view(x.size(0), -1))
        val_loss = nn.functional.cross_entropy(logits, y)
        self.log("val_loss", val_loss)

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=0.001)


class MNISTDataModule(LightningDataModule):
    def __init__(self, batch_size=64):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage=None):
        self.train_dataset = digits()
        self.val_dataset = digits(32)

    def train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=self.batch_size)

    def val_dataloader(self):
        return DataLoader(self.val_dataset, batch_size=self.batch_size)


class LitClassifier(pl.LightningModule):
    def __init__(self, model: torch.nn.Module, learning_rate: float = 1e-3):
        super().__init__()
        self.model = model
        self.learning_rate = learning_rate

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        y_hat = self(x)
        loss = F.cross_entropy(y_hat, y)
        acc = accuracy(y_hat, y, task="multiclass", num_classes=10)

        self.log("train_loss", loss, prog_bar=True)
        self.log("train_acc", acc, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        y_hat = self(x)
        loss = F.cross_entropy(y_hat, y)
        acc = accuracy(y_hat, y, task="multiclass", num_classes=10)

        self.log("val_loss", loss, prog_bar=True)
        self.log("val_acc", acc, prog_bar=True)

    def test_step(self, batch, batch_idx):
        x, y = batch
        y_hat = self(x)
        loss = F.cross_entropy(y_hat, y)
        acc = accuracy(y_hat, y, task="multiclass", num_classes=10)

        self.log("test_loss", loss)
        self.log("test_acc", acc)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        return optimizer


class Scheduled(LitClassifier):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.1)
        return [optimizer], [scheduler]


class ScheduledByTuple(LitClassifier):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.1)
        return optimizer, scheduler


class Corrupted(pl.LightningModule):
    """Its steps leave ``batch_idx`` out."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(784, 10)
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.backbone(x)

    def training_step(self, batch):
        data, target = batch
        preds = self(data)
        loss = self.criterion(preds, target)
        acc = (target == preds.argmax(dim=-1)).float().mean()
        self.log("train_loss", loss)
        self.log("train_acc", acc)
        return loss

    def validation_step(self, batch) -> None:
        data, target = batch
        preds = self(data)
        loss = self.criterion(preds, target)
        acc = (target == preds.argmax(dim=-1)).float().mean()
        self.log("val_loss", loss, on_epoch=True)
        self.log("val_acc", acc, on_epoch=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


class MyLightningModule(pl.LightningModule):
    """Forgets ``super().__init__()``."""

    def __init__(self, model):
        self.model = model
        self.loss = nn.CrossEntropyLoss()

    def training_step(self, batch, batch_idx):
        x, y = batch
        y_pred = self.model(x)
        loss = self.loss(y_pred, y)
        stage = "train"
        self.log(f"loss/{stage}", loss, on_step=False, on_epoch=True)
        return {"loss": loss, "y": y, "y_pred": y_pred}

    def configure_optimizers(self):
        return Adam(self.parameters(), lr=1e-3)


class MetricsCallback(pl.Callback):
    def __init__(self):
        self.right: list[torch.Tensor] = []
        self.losses: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"])
        self.right.append((outputs["y_pred"].argmax(1) == outputs["y"]).float())

    def on_train_epoch_end(self, trainer, pl_module):
        self.log("acc/train", torch.cat(self.right).mean())


class MetricsOfEveryBatch(pl.Callback):
    """Ours, to compare with."""

    def __init__(self):
        self.seen: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(outputs["loss"])


class CustomModel(MyModel):
    def training_epoch_end(self, outputs):
        avg_loss = torch.stack([x["loss"] for x in outputs]).mean()
        self.log("avg_train_loss", avg_loss)


def quiet(**options: Any) -> Trainer:
    """A Trainer that prints no bar and no summary, on one CPU unless told."""
    return Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        }
    )


def events(folder: str) -> dict[str, list[float]]:
    """What TensorBoard shows of ``folder``."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(folder)
    found.Reload()
    return {tag: [event.value for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


# Modules and data.


@pytest.mark.filterwarnings("ignore:.*LD283")
def test_the_first_example_runs_with_all_that_comes_by_default():
    trainer = Trainer(max_epochs=2, accelerator="cpu")
    trainer.fit(MyModel(), flat_loader())
    assert trainer.global_step == 8
    assert files("lightning_logs/version_0/checkpoints") == ["epoch=1-step=8.ckpt"]


def test_loaders_may_be_methods_of_the_module_arguments_or_a_datamodule():
    for given in ((), (flat_loader(),), (flat_loader(), flat_loader(32)), (MyDataModule(),)):
        trainer = quiet(logger=False, enable_checkpointing=False)
        trainer.fit(WithLoaders(), *given)
        assert trainer.global_step == (2 if not given else 4)
        assert "val_loss" in trainer.callback_metrics


def test_super_may_be_called_as_in_python_2():
    trainer = quiet(logger=False, max_epochs=5)
    trainer.fit(LitModel(), flat_loader())
    assert trainer.global_step == 20


def test_setup_may_give_stage_a_default():
    model, data_module = LitValidatedModel(), MNISTDataModule(batch_size=32)
    trainer = quiet(logger=False, max_epochs=2)
    trainer.fit(model, data_module)
    assert trainer.global_step == 4
    assert trainer.datamodule is data_module


def test_steps_may_leave_batch_idx_out():
    trainer = quiet(logger=False)
    trainer.fit(Corrupted(), flat_loader(), flat_loader(32))
    assert set(trainer.callback_metrics) == {"train_loss", "train_acc", "val_loss", "val_acc"}


def test_a_module_that_forgets_super_init_trains():
    model = MyLightningModule(nn.Linear(784, 10))
    before = model.model.weight.clone()
    trainer = quiet(logger=False, callbacks=[MetricsCallback()])
    trainer.fit(model, flat_loader())
    assert not torch.equal(before, model.model.weight)
    assert "loss/train" in trainer.callback_metrics


def test_a_callback_sees_what_training_step_returned_beside_the_loss():
    metrics = MetricsCallback()
    trainer = quiet(logger=False, callbacks=[metrics])
    with pytest.warns(LeydenWarning, match=r"has no validation_step\(\), so validation is left out.*LD050"):
        trainer.fit(MyLightningModule(nn.Linear(784, 10)), MyDataModule())
    assert [right.shape for right in metrics.right] == [(16,)] * 4
    assert not any(loss.requires_grad for loss in metrics.losses)
    assert trainer.callback_metrics["acc/train"] == torch.cat(metrics.right).mean()
    assert trainer.callback_metrics["loss/train"] == pytest.approx(torch.stack(metrics.losses).mean().item())


@pytest.mark.parametrize("model", [Scheduled, ScheduledByTuple])
def test_a_scheduler_may_be_returned_in_lists_or_in_a_tuple(model):
    trainer = quiet(logger=False, max_epochs=6, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(model(nn.Linear(784, 10)), flat_loader())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-4)


def test_metrics_of_torchmetrics_can_be_logged_and_shown():
    trainer = quiet(logger=False)
    trainer.fit(LitClassifier(nn.Linear(784, 10)), train_dataloaders=flat_loader(), val_dataloaders=flat_loader(32))
    assert set(trainer.progress_bar_metrics) == {"train_loss", "train_acc", "val_loss", "val_acc"}
    assert 0 <= trainer.callback_metrics["val_acc"] <= 1


# Arguments of the Trainer.


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, so none is missing")
@pytest.mark.parametrize("gpus", [1, 2])
def test_gpus_is_translated_and_a_missing_gpu_named(gpus):
    with (
        pytest.warns(
            LeydenWarning, match=rf"gpus={gpus}\) is the old spelling of .*accelerator='gpu', devices={gpus}\)"
        ),
        pytest.raises(MisconfigurationError, match=r"accelerator='gpu' finds no such device here\. Available: cpu"),
    ):
        Trainer(max_epochs=5, gpus=gpus)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, so none is missing")
def test_a_missing_gpu_is_named():
    with pytest.raises(MisconfigurationError, match="accelerator='gpu' finds no such device"):
        Trainer(accelerator="gpu", devices=2)


@pytest.mark.gpu
def test_gpus_is_translated_and_trains():
    with pytest.warns(LeydenWarning, match=r"gpus=1\) is the old spelling"):
        trainer = Trainer(max_epochs=1, gpus=1, enable_progress_bar=False, enable_model_summary=False, logger=False)
    trainer.fit(LitModel(), flat_loader())
    assert trainer.strategy.device.type == "cuda"


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "32", 64])
def test_precisions_run_on_the_cpu(precision):
    trainer = quiet(precision=precision, devices=1, logger=False)
    model = LitModel() if precision != 64 else LitModel().double()
    trainer.fit(model, flat_loader())
    assert trainer.global_step == 4


def test_precision_16_on_the_cpu_is_bfloat16_with_a_word():
    with pytest.warns(LeydenWarning, match="bf16-mixed.*LD151"):
        trainer = quiet(precision=16, logger=False)
    trainer.fit(LitModel(), flat_loader())
    assert trainer.precision == "bf16-mixed"


def test_fast_dev_run_runs_one_batch_and_writes_nothing():
    trainer = quiet(fast_dev_run=True, callbacks=[ModelCheckpoint(monitor="val_loss")])
    trainer.fit(MyEvaluatedModel(), flat_loader(), flat_loader())
    assert trainer.global_step == 1
    assert files(".") == []


def test_overfit_batches_1_trains_on_one_batch_over_and_over():
    seen = []

    class Sees(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch[0])

    trainer = quiet(overfit_batches=1, max_epochs=3, logger=False, callbacks=[Sees()])
    trainer.fit(MyModel(), flat_loader())
    assert trainer.global_step == len(seen) == 3
    assert all(torch.equal(batch, seen[0]) for batch in seen)


def test_limit_train_batches_is_a_share_of_the_batches():
    trainer = quiet(limit_train_batches=0.2, logger=False)
    trainer.fit(MyModel(), flat_loader(160))
    assert trainer.num_training_batches == trainer.global_step == 2


def test_accumulate_grad_batches_steps_after_so_many():
    trainer = quiet(accumulate_grad_batches=4, max_epochs=2, logger=False)
    trainer.fit(MyModel(), flat_loader(128))
    assert trainer.global_step == 4


# Loggers and checkpoints.


def test_the_tensorboard_logger_lays_out_its_folder():
    logger = TensorBoardLogger("logs", name="my_experiment")
    trainer = quiet(max_epochs=2, logger=logger, log_every_n_steps=1)
    trainer.fit(LitClassifier(nn.Linear(784, 10)), flat_loader(), flat_loader(32))
    checkpoint, log = files("logs/my_experiment/version_0")
    assert checkpoint == "checkpoints/epoch=1-step=8.ckpt"
    assert log.startswith("events.out.tfevents.")
    shown = events("logs/my_experiment/version_0")
    assert len(shown["train_loss"]) == 8
    assert len(shown["val_acc"]) == 2


def test_logger_true_is_tensorboard():
    trainer = quiet(logger=True, log_every_n_steps=2)
    trainer.fit(MyModel(), flat_loader())
    assert len(events("lightning_logs/version_0")["train_loss"]) == 2


@pytest.mark.filterwarnings("ignore:.*LD283")
def test_a_logger_shows_what_it_is_made_of():
    class Draws(MyModel):
        def on_train_epoch_end(self):
            self.logger.experiment.add_scalar("drawn", 1.5, self.global_step)

    trainer = quiet(logger=TensorBoardLogger("logs/", name="my_model"))
    trainer.fit(Draws(), flat_loader())
    assert trainer.logger.experiment is trainer.lightning_module.logger.experiment
    trainer.logger.experiment.flush()
    assert events("logs/my_model/version_0")["drawn"] == [1.5]


def test_a_checkpoint_is_named_after_its_metrics():
    checkpoint = ModelCheckpoint(monitor="val_acc", mode="max", save_top_k=1, filename="best-{epoch}-{val_acc:.2f}")
    early_stop = EarlyStopping(monitor="val_loss", mode="min", patience=3)
    trainer = quiet(max_epochs=2, callbacks=[checkpoint, early_stop], logger=False)
    trainer.fit(LitClassifier(nn.Linear(784, 10)), flat_loader(), flat_loader(32))
    (name,) = files()
    assert name.startswith("best-epoch=")
    assert name.endswith(f"-val_acc={float(checkpoint.best_model_score):.2f}.ckpt")
    assert checkpoint.best_model_path.endswith(name)


def test_a_checkpoint_may_have_a_fixed_name_and_folder():
    checkpoint_callback = ModelCheckpoint(
        monitor="val_loss", dirpath="checkpoints/", filename="best-checkpoint", save_top_k=1, mode="min"
    )
    early_stopping_callback = EarlyStopping(monitor="val_loss", patience=3, verbose=True, mode="min")
    trainer = quiet(max_epochs=2, callbacks=[checkpoint_callback, early_stopping_callback], logger=False)
    trainer.fit(LitValidatedModel(), MNISTDataModule(batch_size=32))
    assert files() == ["best-checkpoint.ckpt"]


def test_training_is_resumed_by_the_old_keyword():
    first = quiet(logger=False)
    first.fit(MyModel(), flat_loader())
    with pytest.warns(LeydenWarning, match=r"is the old spelling of trainer\.fit\(ckpt_path='checkpoints"):
        second = quiet(max_epochs=2, logger=False, resume_from_checkpoint="checkpoints/epoch=0-step=4.ckpt")
    second.fit(MyModel(), flat_loader())
    assert (first.global_step, second.global_step) == (4, 8)


def test_test_uses_the_best_checkpoint(capsys):
    best = ModelCheckpoint(monitor="val_loss", filename="best")
    model = LitClassifier(nn.Linear(784, 10), learning_rate=10.0)  # which gets worse and worse
    trainer = quiet(max_epochs=3, callbacks=[best], logger=False)
    trainer.fit(model, flat_loader(), flat_loader(32))
    last = model.model.weight.clone()
    (of_best,) = trainer.test(model, dataloaders=flat_loader())
    assert not torch.equal(model.model.weight, last)
    assert "trainer.test() uses the best checkpoint" in "".join(capsys.readouterr())
    saved = LitClassifier.load_from_checkpoint("checkpoints/best.ckpt", model=nn.Linear(784, 10))
    assert of_best == trainer.test(saved, dataloaders=flat_loader(), ckpt_path=None)[0]
    assert set(of_best) == {"test_loss", "test_acc"}


def test_training_epoch_end_runs_as_written():
    trainer, losses = quiet(logger=False, enable_checkpointing=False), MetricsOfEveryBatch()
    trainer.callbacks.append(losses)
    with pytest.warns(LeydenWarning, match=r"CustomModel\.training_epoch_end\(\) is a hook of Lightning 1\.x.*LD176"):
        trainer.fit(CustomModel(), flat_loader())
    assert len(losses.seen) == 4
    assert trainer.callback_metrics["avg_train_loss"] == torch.stack(losses.seen).mean()


# What is not built yet says so, and what to do.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_time": "00:00:01:00"}, r"min_time=.* is not built yet in Leyden\. Use min_epochs or min_steps"),
    ],
)
def test_arguments_that_are_not_built_say_what_to_use(options, message):
    with pytest.raises(NotBuiltError, match=message):
        Trainer(**options)


def test_the_wandb_logger_is_not_built_however_it_is_asked_for():
    message = r"leyden\.loggers\.WandbLogger is not built yet in Leyden\. Use TensorBoardLogger or CSVLogger"
    with pytest.raises(NotBuiltError, match=message):
        Trainer(logger=pl.loggers.WandbLogger(project="dtu_mlops"))
    with pytest.raises(ImportError, match=message):
        from leyden.loggers import WandbLogger  # noqa: F401


@pytest.mark.parametrize(
    ("package", "name"),
    [
        (pl.loggers, "NeptuneLogger"),
        (pl.loggers, "CometLogger"),
        (pl.callbacks, "RichProgressBar"),
        (pl.callbacks, "StochasticWeightAveraging"),
    ],
)
def test_names_that_lightning_has_say_what_to_use(package, name):
    with pytest.raises(NotBuiltError, match=rf"{package.__name__}\.{name} is not built yet in Leyden\. \w+"):
        getattr(package, name)
    assert name not in dir(package)


def test_names_that_nobody_has_are_plain_attribute_errors():
    assert not hasattr(pl.loggers, "PaperLogger")
    with pytest.raises(AttributeError, match="Did you mean 'TensorBoardLogger'"):
        _ = pl.loggers.TensorboardLoger
