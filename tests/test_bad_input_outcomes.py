"""What becomes of bad input, counted: an early and clear error with the weights unchanged, or a warning; never silence.

EARLY-CLEAR: an error before any weight has changed, whose message names what is wrong. EARLY-OBSCURE: one that does
not. LATE: one after weights have changed. WARNED: the run goes on, and a warning names it. SILENT: the rest.
"""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, IterableDataset

from leyden.callbacks.early_stopping import EarlyStopping
from leyden.callbacks.model_checkpoint import Checkpoint, ModelCheckpoint
from leyden.callbacks.timer import Timer
from leyden.core.callback import Callback
from leyden.core.combined import CombinedLoader
from leyden.core.datamodule import LightningDataModule
from leyden.core.module import LightningModule
from leyden.loggers.csv import CSVLogger
from leyden.trainer import Trainer
from leyden.utils.errors import LeydenWarning, forget_warnings
from models import FEATURES, TinyModel, ValidatedModel, tiny_data, tiny_loader

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


@dataclass
class Case:
    """One bad input.

    Attributes:
        name: What is wrong.
        says: What the message must match.
        model: Makes the module.
        options: Of the Trainer and of ``fit``: ``train``, ``val``, ``datamodule``, ``ckpt_path``; or makes them.
        outcome: What is to become of it.
        call: Does it, where it is not a fit.
    """

    name: str
    says: str
    model: Callable[[], Any] = TinyModel
    options: dict[str, Any] | Callable[[], dict[str, Any]] = field(default_factory=dict)
    outcome: str = "EARLY-CLEAR"
    call: Callable[[Trainer, Any], Any] | None = None


def net(base: type = TinyModel, **methods: Any) -> Callable[[], Any]:
    """Makes instances of a class ``Net`` that adds ``methods`` to ``base``."""
    return lambda: type("Net", (base,), methods)()


def stepping(change: Callable[[torch.Tensor], Any]) -> Callable[[], Any]:
    """Makes a module whose training_step returns what ``change`` makes of the loss."""
    return net(training_step=lambda self, batch, batch_idx: change(self.loss(batch)))


def logging(call: Callable[[Any], Any], base: type = ValidatedModel) -> Callable[[], Any]:
    """Makes a module that does ``call(self)`` in training_step."""
    return net(base, training_step=lambda self, batch, batch_idx: (call(self), self.loss(batch))[1])


def optimizing(build: Callable[[Any], Any], base: type = ValidatedModel) -> Callable[[], Any]:
    """Makes a module that returns from configure_optimizers what ``build`` makes of an SGD."""
    return net(base, configure_optimizers=lambda self: build(SGD(self.parameters(), lr=0.1)))


def setting(**attributes: Any) -> Callable[[], Any]:
    """Makes a module with ``attributes``."""

    def make() -> Any:
        model = ValidatedModel()
        for name, value in attributes.items():
            setattr(model, name, value)
        return model

    return make


def trainer_of(options: dict[str, Any]) -> Trainer:
    callbacks = options.get("callbacks", [])
    saves = any(isinstance(callback, Checkpoint) for callback in callbacks if isinstance(callbacks, list))
    return Trainer(**{**QUIET, "enable_checkpointing": saves, "max_epochs": 2, **options})


def weights(model: Any) -> list[Any]:
    return [value.tolist() for value in model.state_dict().values()] if isinstance(model, nn.Module) else []


class Batches(Callback):
    """Counts batches that were trained on."""

    done = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.done += 1


@functools.cache
def outcome(name: str) -> tuple[str, str]:
    """What becomes of a case, and the message."""
    case = CASES[name]
    model, error, batches = case.model(), None, Batches()
    before = weights(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            options = dict(case.options() if callable(case.options) else case.options)
            forget_warnings()
            caught.clear()
            given = {key: options.pop(key) for key in ("train", "val", "datamodule", "ckpt_path") if key in options}
            if "ckpt_path" in given:  # whose weights come before its optimizer is looked at
                options["callbacks"] = [batches]
            trainer = trainer_of(options)
            if case.call is not None:
                case.call(trainer, model)
            else:
                train = given.pop("train", None if "datamodule" in given else tiny_loader(4))
                trainer.fit(model, train, given.pop("val", None), **given)
        except Exception as raised:
            error = raised
    said = " / ".join(str(one.message) for one in caught if issubclass(one.category, LeydenWarning))
    matches = re.search(case.says, said if error is None else str(error)) is not None
    if error is None:
        return ("WARNED" if matches else "SILENT"), said
    if batches.done if isinstance(case.options, Resuming) else weights(model) != before:
        return "LATE", str(error)
    return ("EARLY-CLEAR" if matches else "EARLY-OBSCURE"), f"{type(error).__name__}: {error}"


# The modules, callbacks and data that some cases need.


class Saves(TinyModel):
    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()


class NotPlain:
    """Not a value that a checkpoint may hold."""


class Layer(LightningModule):
    """Weights, and nothing about training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 10)


class Plateaued(ValidatedModel):
    def configure_optimizers(self) -> Any:
        return plateau(monitor="val_los")(SGD(self.parameters(), lr=0.1))


class NanMetric(TinyModel):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", math.nan)


class Hidden(TinyModel):
    """Its head lies in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = [nn.Linear(10, 10)]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.heads[0](self(batch[0])), batch[1])


class Detached(TinyModel):
    """``net`` is cut off from the loss, which depends on ``head`` alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(10, 10)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.head(self(batch[0]).detach()), batch[1])


class ByHand(TinyModel):
    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(self.loss(batch))


class Misspelt(Callback):
    def on_train_epoch_ends(self, trainer: Any, pl_module: Any) -> None:
        pass


class Remembers(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"seen": 3}


class Loaders(LightningDataModule):
    def train_dataloader(self) -> Any:
        return tiny_loader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


class Unsized(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(tiny_data(64))


class Square(TinyModel):
    """Another architecture."""

    def __init__(self) -> None:
        super().__init__()
        self.net[2] = nn.Linear(32, 11)


class Resuming:
    """Saves a fit of 2 epochs, and goes on from it with ``options``."""

    def __init__(self, path: str = "saved.ckpt", **options: Any) -> None:
        self.options = {"ckpt_path": path, "max_epochs": 5, **options}

    def __call__(self) -> dict[str, Any]:
        trainer = trainer_of({})
        trainer.fit(TinyModel(), tiny_loader(4))
        trainer.save_checkpoint("saved.ckpt")
        if self.options["ckpt_path"] == "cut.ckpt":
            whole = Path("saved.ckpt").read_bytes()
            Path("cut.ckpt").write_bytes(whole[: len(whole) // 2])
        return self.options


def scheduled(**options: Any) -> Callable[[Any], Any]:
    return lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": StepLR(o, 1), **options}}


def plateau(**options: Any) -> Callable[[Any], Any]:
    return lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": ReduceLROnPlateau(o), **options}}


def save(trainer: Trainer, model: Any) -> None:
    trainer.fit(model, tiny_loader(4))
    trainer.save_checkpoint("saved.ckpt")


def validated(**options: Any) -> dict[str, Any]:
    return {"val": tiny_loader(1), **options}


def watching(*callbacks: Callback, **options: Any) -> dict[str, Any]:
    return {"val": tiny_loader(1), "callbacks": list(callbacks), **options}


def listed() -> Iterable[Case]:
    """The list by which Lightning was measured, in its order."""
    misspelt = net(on_train_epoch_ends=lambda self: None)
    checkpoint, stopping = ModelCheckpoint, EarlyStopping
    yield Case("nan loss", "loss is nan|not finite", stepping(lambda loss: loss * math.nan))
    yield Case("inf loss", "loss is inf|not finite", stepping(lambda loss: loss * math.inf))
    yield Case("misspelt hook of the module", r"on_train_epoch_ends\(\) is not a hook.*'on_train_epoch_end'", misspelt)
    yield Case("misspelt hook of a callback", "'on_train_epoch_end'", options={"callbacks": [Misspelt()]})
    yield Case(
        "ModelCheckpoint's monitor is nan",
        r"ModelCheckpoint\(monitor='val_loss'\): val_loss is nan.*LD292",
        NanMetric,
        lambda: watching(checkpoint("here", monitor="val_loss")),
        "WARNED",
    )
    yield Case(
        "EarlyStopping's patience is negative", r"patience=-1", options=lambda: watching(stopping("x", patience=-1))
    )
    yield Case("empty validation loader", "is empty", ValidatedModel, lambda: {"val": DataLoader(tiny_data(0))})
    yield Case("dataset in the loader's place", "is a Dataset", options={"train": tiny_data(64)})
    yield Case("min_epochs beyond max_epochs", "min_epochs=5", options={"max_epochs": 1, "min_epochs": 5})
    yield Case("accumulate_grad_batches=1.5", "accumulate_grad_batches=1.5", options={"accumulate_grad_batches": 1.5})
    yield Case("log_every_n_steps=-1", "log_every_n_steps=-1", options={"log_every_n_steps": -1})
    yield Case("checkpoint is finished", "nothing to do.*LD061", options=Resuming(max_epochs=2), outcome="WARNED")
    yield Case("manual optimization forgets to step", r"calls no optimizer's step\(\)", ByHand)
    yield Case("layers in a plain list", r"Hidden\.heads is a list .*ModuleList", Hidden)
    yield Case(
        "training_step takes nothing", r"training_step\(\) must take \(batch\)", net(training_step=lambda self: None)
    )
    yield Case("max_epochs=2.5", "max_epochs=2.5 is not a whole number", options={"max_epochs": 2.5})
    yield Case("callbacks=['checkpoint']", "holds 'checkpoint'", options={"callbacks": ["checkpoint"]})
    yield Case("max_time='tomorrow'", "max_time='tomorrow'", options={"max_time": "tomorrow"})
    yield Case("checkpoint of another optimizer", "another optimizer", lambda: TinyModel("adam"), Resuming())
    yield Case(
        "plateau watches a misspelt name",
        "Did you mean 'val_loss'",
        Plateaued,
        validated,
    )
    yield Case(
        "ModelCheckpoint watches a misspelt name",
        "Did you mean 'val_loss'",
        ValidatedModel,
        lambda: watching(checkpoint("here", monitor="val_los")),
    )
    yield Case(
        "EarlyStopping watches validation, and there is none",
        "Validation does not run",
        ValidatedModel,
        lambda: watching(stopping("val_loss"), val=None),
    )
    yield Case("hyper-parameter is an object", "cfg|config.*LD043", lambda: Saves(NotPlain()), {}, "WARNED", call=save)
    yield Case(
        "configure_optimizers returns None",
        "LD021",
        net(configure_optimizers=lambda self: None),
        outcome="WARNED",
    )
    yield Case(
        "optimizer dict with a misspelt key",
        "unknown key 'lr_schedular'.*Did you mean 'lr_scheduler'",
        optimizing(lambda o: {"optimizer": o, "lr_schedular": StepLR(o, 1)}),
    )
    yield Case("empty training dataset", "is empty", options=lambda: {"train": DataLoader(tiny_data(0))})
    yield Case("validation loader without a step", r"no validation_step\(\)", options=validated)
    yield Case("hyper-parameter cannot be pickled", "config.*LD043", lambda: Saves(lambda: 3), {}, "WARNED", call=save)
    yield Case("loss is no scalar", r"shape \(3,\)", stepping(lambda loss: loss * torch.ones(3)))
    yield Case("training_step returns a tuple", "returned tuple", stepping(lambda loss: (loss, 1)))
    yield Case(
        "no configure_optimizers",
        r"Net has no configure_optimizers\(\)",
        net(Layer, training_step=lambda self, batch: self.layer(batch[0]).sum()),
    )
    yield Case("scheduler with a bad interval", "interval='batch'", optimizing(scheduled(interval="batch")))
    yield Case("removed hook", r"on_epoch_end\(\), a hook of Lightning 1\.x", net(on_epoch_end=lambda self: None))
    yield Case(
        "ModelCheckpoint's mode is bad",
        "mode='minimum'",
        options=lambda: watching(checkpoint(monitor="x", mode="minimum")),
    )
    yield Case("loader is a number", "gave 3, of type int", options={"train": 3})
    yield Case(
        "val_check_interval beyond the epoch",
        "val_check_interval=1000",
        ValidatedModel,
        lambda: validated(val_check_interval=1000),
    )
    yield Case("max_epochs=-5", "max_epochs=-5", options={"max_epochs": -5})
    yield Case("precision='fp17'", "precision='fp17'", options={"precision": "fp17"})
    if not torch.cuda.is_available():
        yield Case("accelerator='gpu' without one", "gpu", options={"accelerator": "gpu"})
    yield Case("devices=0", "devices=0", options={"devices": 0})
    yield Case("gradient_clip_val='1'", "gradient_clip_val='1'", options={"gradient_clip_val": "1"})
    yield Case("limit_train_batches=-1", "limit_train_batches=-1", options={"limit_train_batches": -1})
    yield Case("limit_train_batches=0.0001", r"limit_train_batches=0\.0001", options={"limit_train_batches": 0.0001})
    yield Case("profiler='fast'", "profiler='fast'", options={"profiler": "fast"})
    yield Case("class instead of an instance", "Make an instance", lambda: TinyModel)
    yield Case("checkpoint of another architecture", r"size mismatch for net\.2\.weight", Square, Resuming())
    yield Case("logs a vector", r"shape \(3,\)", logging(lambda m: m.log("x", torch.ones(3))))
    yield Case(
        "two optimizers without names",
        "2 optimizers without names",
        optimizing(lambda o: [o, SGD(o.param_groups[0]["params"], lr=0.1)]),
    )


def others() -> Iterable[Case]:
    """What section 15 of the fact table adds, and more."""
    one = LightningDataModule
    yield Case("no training_step", r"Layer has no training_step\(\)", Layer)
    yield Case("no data", r"trainer\.fit\(\) has no data", options={"train": None})
    yield Case(
        "loaders and a datamodule",
        "Both train_dataloaders",
        options=lambda: {"train": tiny_loader(), "datamodule": Loaders()},
    )
    yield Case("a plain nn.Module", "needs a LightningModule, got Linear", lambda: nn.Linear(2, 2))
    yield Case("optimizer_idx", "step_generator", net(training_step=lambda self, batch, i, optimizer_idx: None))
    yield Case("dataloader_iter", "Take batches", net(training_step=lambda self, dataloader_iter: None))
    yield Case(
        "loader method returns None",
        r"train_dataloader\(\) returned None",
        net(train_dataloader=lambda self: None),
        {"train": None},
    )
    yield Case("datamodule is a class", "Make an instance", options=lambda: {"train": None, "datamodule": Loaders})
    yield Case(
        "datamodule's loader misspelt",
        "Did you mean 'train_dataloader'",
        options=lambda: {"train": None, "datamodule": net(one, train_dataloaders=lambda self: tiny_loader())()},
    )
    yield Case("callbacks='x'", "not a Callback", options={"callbacks": "x"})
    yield Case("logger='x'", "logger='x'", options={"logger": "x"})
    yield Case("max_steps=0.5", r"max_steps=0\.5", options={"max_steps": 0.5})
    yield Case("gpus=1", "accelerator", options={"gpus": 1})
    yield Case("auto_lr_find=True", "auto_lr_find=True", options={"auto_lr_find": True})
    yield Case("max_epoch=3", "Did you mean 'max_epochs'", options={"max_epoch": 3})
    yield Case("accumulate_grad_batches=0", "accumulate_grad_batches=0", options={"accumulate_grad_batches": 0})
    yield Case("num_sanity_val_steps=-5", "num_sanity_val_steps=-5", options={"num_sanity_val_steps": -5})
    yield Case("check_val_every_n_epoch=0", "check_val_every_n_epoch=0", options={"check_val_every_n_epoch": 0})
    yield Case("fast_dev_run=-1", "fast_dev_run=-1", options={"fast_dev_run": -1})
    yield Case("gradient_clip_algorithm='nrom'", "Did you mean 'norm'", options={"gradient_clip_algorithm": "nrom"})
    yield Case("deterministic='wran'", "Did you mean 'warn'", options={"deterministic": "wran"})
    yield Case(
        "reload_dataloaders_every_n_epochs=-1", "every_n_epochs=-1", options={"reload_dataloaders_every_n_epochs": -1}
    )
    yield Case(
        "callback twice", "the same Timer twice", options=lambda: {"callbacks": [timer := Timer("00:01:00:00"), timer]}
    )
    yield Case(
        "two callbacks of one state_key",
        "state_key 'Remembers'",
        options=lambda: {"callbacks": [Remembers(), Remembers()]},
    )
    yield Case(
        "checkpoints switched off and asked for",
        "enable_checkpointing=False",
        options=lambda: {"enable_checkpointing": False, "callbacks": [ModelCheckpoint()]},
    )
    yield Case("barebones with a profiler", "profiler='simple'", options={"barebones": True, "profiler": "simple"})
    yield Case("loss without grad", "a loss without grad", stepping(lambda loss: loss.detach()))
    yield Case("loss is a number", "returned float", stepping(lambda loss: loss.item()))
    yield Case("dict without a loss", "a dict without a tensor under 'loss'", stepping(lambda loss: {"log": loss}))
    yield Case(
        "root of 0 in the loss",
        r"gradient that is not finite.*sqrt\(0\)",
        net(training_step=lambda self, batch, i: self.loss(batch) + (self.net[2].bias * 0).sum().sqrt()),
    )
    yield Case("all layers frozen", "requires_grad=False", lambda: TinyModel().requires_grad_(False))
    yield Case(
        "optimizer of another model's parameters",
        "None of the 2 parameters that SGD holds",
        optimizing(lambda o: SGD(nn.Linear(2, 2).parameters(), lr=0.1)),
    )
    yield Case(
        "parameters in no optimizer",
        r"net\.2\.weight, net\.2\.bias.*LD280",
        net(configure_optimizers=lambda self: SGD(self.net[0].parameters(), lr=0.1)),
        outcome="WARNED",
    )
    yield Case(
        "layers cut off from the loss", r"4 of the 6 parameters.*net\.0\.weight.*LD281", Detached, outcome="WARNED"
    )
    yield Case(
        "closure forgotten in optimizer_step",
        "did not call optimizer_closure",
        net(optimizer_step=lambda self, epoch, i, optimizer, optimizer_closure: None),
    )
    yield Case(
        "optimizer.step() by hand in automatic optimization",
        "Leyden steps",
        net(training_step=lambda self, batch, i: self.optimizers().step() or self.loss(batch)),
    )
    yield Case(
        "manual_backward in automatic optimization",
        "automatic_optimization = False",
        net(training_step=lambda self, batch, i: self.manual_backward(self.loss(batch))),
    )
    yield Case("automatic_optimisation", "Did you mean 'automatic_optimization'", setting(automatic_optimisation=False))
    yield Case(
        "scheduler without its optimizer",
        "belongs to an optimizer",
        optimizing(lambda o: ([o], [StepLR(SGD([nn.Parameter(torch.ones(1))], lr=0.1), 1)])),
    )
    yield Case(
        "scheduler dict without the scheduler",
        "'scheduler' is None",
        optimizing(lambda o: {"optimizer": o, "lr_scheduler": {"interval": "step"}}),
    )
    yield Case("plateau without a monitor", "needs a metric to watch", optimizing(plateau()))
    yield Case("frequency=0", "frequency=0", optimizing(scheduled(frequency=0)))
    yield Case("intervall", "Did you mean 'interval'", optimizing(scheduled(intervall="step")))
    yield Case(
        "OneCycleLR with too few steps",
        "OneCycleLR.total_steps.=4 is too few",
        optimizing(
            lambda o: {
                "optimizer": o,
                "lr_scheduler": {"scheduler": OneCycleLR(o, 0.1, total_steps=4), "interval": "step"},
            }
        ),
    )
    yield Case(
        "schedule told in steps, stepped by epoch",
        "LD020",
        optimizing(lambda o: ([o], [OneCycleLR(o, 0.1, total_steps=9)])),
        outcome="WARNED",
    )
    yield Case("precision=8", "precision=8", options={"precision": 8})
    yield Case(
        "fraction of an unsized stream",
        "does not know its length",
        options=lambda: {"train": Unsized(), "limit_train_batches": 0.5},
    )
    yield Case("sequential training loaders", "mode='sequential'", options=lambda: {"train": combined()})
    yield Case(
        "shuffled validation loader",
        "shuffles.*LD286",
        ValidatedModel,
        lambda: {"val": tiny_loader(1, shuffle=True)},
        "WARNED",
    )
    yield Case("logs a dict as one value", "Use self.log_dict", logging(lambda m: m.log("x", {"a": 1})))
    yield Case(
        "logs under two sets of options",
        "called twice in training_step",
        logging(lambda m: (m.log("x", 1.0), m.log("x", 1.0, prog_bar=True))),
    )
    yield Case("logs nowhere", "would log nothing", logging(lambda m: m.log("x", 1.0, on_step=False)))
    yield Case(
        "logs with an unknown reduction", "reduce_fx='median'", logging(lambda m: m.log("x", 1.0, reduce_fx="median"))
    )
    yield Case("logs where nothing is collected", r"on_train_end\(\) calls self\.log", LogsAtTheEnd)
    yield Case(
        "logs nan",
        r"self\.log\('x'\): the first value is nan.*LD282",
        logging(lambda m: m.log("x", math.nan)),
        outcome="WARNED",
    )
    yield Case(
        "log_every_n_steps beyond the run",
        "LD283",
        logging(lambda m: m.log("x", 1.0)),
        lambda: {"logger": CSVLogger("logs")},
        "WARNED",
    )
    yield Case(
        "EarlyStopping's mode is bad", "mode='minimum'", options=lambda: watching(EarlyStopping("x", mode="minimum"))
    )
    yield Case(
        "ModelCheckpoint keeps the best of nothing",
        "save_top_k=3",
        options=lambda: watching(ModelCheckpoint(save_top_k=3)),
    )
    yield Case("Timer without a time", "'soon'", options=lambda: watching(Timer("soon")))
    yield Case("ckpt_path is missing", r"no checkpoint none\.ckpt", options={"ckpt_path": "none.ckpt"})
    yield Case("ckpt_path is damaged", "is damaged", options=Resuming("cut.ckpt"))
    yield Case("ckpt_path='best' before any", "finds no best checkpoint", options={"ckpt_path": "best"})
    yield Case("checkpoint of more epochs", "completed 2 epochs", options=Resuming(max_epochs=1))
    yield Case("save before fit", "needs a model", call=lambda trainer, model: trainer.save_checkpoint("x.ckpt"))
    yield Case(
        "validation without a step",
        r"Layer has no validation_step\(\)",
        Layer,
        call=lambda trainer, model: trainer.validate(model, tiny_loader(1)),
    )
    yield Case(
        "test without data",
        r"trainer\.test\(\) has no data",
        ValidatedModel,
        call=lambda trainer, model: trainer.test(model),
    )
    yield Case(
        "prediction without forward",
        r"neither predict_step\(\) nor forward\(\)",
        Layer,
        call=lambda trainer, model: trainer.predict(model, tiny_loader(1)),
    )
    yield Case(
        "several loaders, and a step for one",
        "gets several loaders",
        ValidatedModel,
        lambda: {"val": [tiny_loader(1), tiny_loader(1)]},
    )
    yield Case(
        "hook that cannot take its call", "cannot take the call it will get", net(on_train_batch_end=lambda self: None)
    )
    yield Case("forgotten return of the optimizer", "has no return statement", ForgetsReturn)
    yield Case(
        "transfer hook of both",
        "Loaders and Net both have .*LD289",
        net(on_after_batch_transfer=lambda self, batch, i: batch),
        lambda: {"datamodule": Loaders()},
        "WARNED",
    )
    yield Case("array in the loader's place", "a ndarray of shape", options={"train": np.zeros((8, 32))})
    yield Case("another warning's id", "is not the id of a warning", options={"warnings": {"LD1": "ignore"}})


class LogsAtTheEnd(TinyModel):
    def on_train_end(self) -> None:
        self.log("x", 1.0)


class ForgetsReturn(TinyModel):
    def configure_optimizers(self) -> Any:
        SGD(self.parameters(), lr=0.1)


def combined() -> Any:
    return CombinedLoader([tiny_loader(), tiny_loader()], "sequential")


LISTED = {case.name for case in listed()}
CASES = {case.name: case for case in (*listed(), *others())}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_refused_or_warned_of(name):
    found, message = outcome(name)
    assert found == CASES[name].outcome, message


def test_no_bad_input_passes_in_silence_or_obscurely():
    counts = Counter(outcome(name)[0] for name in CASES)
    of_list = Counter(outcome(name)[0] for name in LISTED)
    print(f"{len(CASES)} bad inputs: {dict(counts)}; of the {len(LISTED)} that were measured: {dict(of_list)}")
    for name in CASES:
        print(f"{outcome(name)[0]:14}{name}: {outcome(name)[1][:100]}")
    assert len(CASES) >= 95
    assert set(counts) == {"EARLY-CLEAR", "WARNED"}
    assert of_list["WARNED"] <= 5
