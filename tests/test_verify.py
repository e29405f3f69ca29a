"""trainer.verify: what it finds, names and proves; and that it leaves everything as it was."""

from __future__ import annotations

import copy
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from leyden.callbacks.early_stopping import EarlyStopping
from leyden.callbacks.model_checkpoint import ModelCheckpoint
from leyden.callbacks.timer import Timer
from leyden.core.callback import Callback
from leyden.core.datamodule import LightningDataModule
from leyden.loggers.csv import CSVLogger
from leyden.trainer import Trainer
from leyden.trial import batches_of
from leyden.trial_process import VerificationError, _in_a_new_one, _wait, _write
from leyden.utils.errors import MisconfigurationError
from leyden.verify import Verification, verify_by
from models import TinyModel, ValidatedModel, tiny_data, tiny_loader

BARE: dict[str, Any] = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "accelerator": "cpu",
}


def verified(model: Any, train: Any = None, val: Any = None, datamodule: Any = None, steps: int = 4, **options: Any):
    train = tiny_loader(8) if train is None and datamodule is None else train
    return Trainer(**BARE | options).verify(model, train, val, datamodule, steps)


def problems(found: Verification) -> list[tuple[str, str]]:
    return [(problem.kind, problem.what) for problem in found.problems]


class Dropping(ValidatedModel):
    """Has buffers, dropout, a scheduler and Python's and NumPy's random numbers."""

    def __init__(self) -> None:
        super().__init__("adam")
        self.net.insert(1, nn.BatchNorm1d(32))
        self.net.insert(2, nn.Dropout(0.5))

    def training_step(self, batch, batch_idx):
        noise = random.random() + float(numpy.random.rand())
        return super().training_step((batch[0] + 0.1 * noise, batch[1]), batch_idx)

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def test_a_good_model_is_verified(capsys):
    found = verified(Dropping(), tiny_loader(8, shuffle=True), tiny_loader(2))
    assert found and found.ok
    assert (found.problems, found.notes, found.differences) == ([], [], [])
    assert (found.batches, found.saved_at) == (4, (0, 1))
    assert {"weight": 6, "buffer": 3, "random generator": 3}.items() <= found.compared.items()
    assert {"optimizer", "scheduler", "metric", "position"} <= set(found.compared)
    assert repr(found) == "Verification(ok=True, problems=0, notes=0)"
    assert capsys.readouterr().out == f"{found}\n"
    assert "Verification of Dropping, each run in a forked copy of this process" in str(found)
    assert "trained        4 batches; a checkpoint after 1 batch of epoch 0; from it the other 3" in str(found)
    assert str(found).endswith("Verified.")


@pytest.mark.parametrize("workers", [0, 2])
def test_callbacks_accumulation_and_workers_are_verified_with_it(workers):
    callbacks = [EarlyStopping("val_loss"), ModelCheckpoint(monitor="val_loss")]
    found = verified(
        Dropping(),
        tiny_loader(9, shuffle=True, num_workers=workers),
        tiny_loader(2),
        callbacks=callbacks,
        enable_checkpointing=True,
        accumulate_grad_batches=2,
    )
    assert problems(found) == []
    assert (found.batches, found.saved_at) == (8, (0, 2))
    assert found.compared["callback"] > 8


def test_more_steps_have_a_longer_way_before_and_behind_the_checkpoint():
    assert [batches_of(steps, 1) for steps in (2, 3, 4, 8, 9)] == [(2, 1), (2, 1), (2, 1), (4, 2), (5, 2)]
    found = verified(Dropping(), tiny_loader(20, shuffle=True), steps=8)
    assert problems(found) == []
    assert (found.batches, found.saved_at) == (8, (0, 2))


def test_an_epoch_of_one_batch_is_resumed_at_its_end():
    found = verified(TinyModel(), tiny_loader(1))
    assert problems(found) == []
    assert found.batches == 2
    assert "nothing was resumed in the middle" in found.notes[0]


@pytest.mark.parametrize(
    "options",
    [
        {"fast_dev_run": True},
        {"overfit_batches": 2},
        {"val_check_interval": 5},
        {"val_check_interval": 5, "check_val_every_n_epoch": None},
        {"val_check_interval": "00:01:00:00", "min_steps": 10, "max_steps": 100, "limit_train_batches": 0.5},
        {"precision": "bf16-mixed", "gradient_clip_val": 0.5, "reload_dataloaders_every_n_epochs": 1},
    ],
)
def test_other_options_are_verified_with_it(options):
    found = verified(Dropping(), tiny_loader(8), tiny_loader(2), **options)
    assert (problems(found), found.batches, found.saved_at) == ([], 4, (0, 1))


def test_a_bare_run_and_manual_optimization_are_verified():
    class Manual(TinyModel):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

        def configure_optimizers(self):
            return torch.optim.Adam(self.net[0].parameters()), torch.optim.SGD(self.net[2].parameters(), 0.1)

    found = verified(Manual(), barebones=True)
    assert (problems(found), found.batches) == ([], 4)


# What a checkpoint misses.


class Forgetful(TinyModel):
    """Subtracts a running mean that is a plain tensor, and counts batches to no end."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(32)
        self.counter = 0

    def training_step(self, batch, batch_idx):
        self.counter += 1
        self.mean = 0.9 * self.mean + 0.1 * batch[0].mean(0)
        return super().training_step((batch[0] - self.mean, batch[1]), batch_idx)


def test_an_attribute_that_makes_the_difference_is_named_and_one_that_does_not_is_a_note():
    found = verified(Forgetful())
    assert not found
    assert problems(found) == [("attribute", "Forgetful.mean")]
    assert str(found.problems[0]) == (
        "Forgetful.mean changed in training and is not restored from the checkpoint; register it: "
        "self.register_buffer('mean', ...). The resumed run differs because of it."
    )
    assert found.notes == [
        "Forgetful.counter went from 0 to 1 in training and is not restored from the checkpoint; keep it with "
        "on_save_checkpoint() and on_load_checkpoint(). Here nothing else came of it."
    ]
    differing = {one.name: one.most for one in found.differences}
    assert 0 < differing["net.0.weight"] < 0.1
    assert str(found).endswith("NOT verified.")


def test_what_is_registered_or_saved_is_no_matter():
    class Careful(Forgetful):
        def __init__(self):
            super().__init__()
            mean = self.__dict__.pop("mean")
            self.register_buffer("mean", mean)

        def on_save_checkpoint(self, checkpoint):
            checkpoint["counter"] = self.counter

        def on_load_checkpoint(self, checkpoint):
            self.counter = checkpoint["counter"]

    found = verified(Careful())
    assert (problems(found), found.notes) == ([], [])


def scaled_by(make):
    """A model that scales its loss by ``make``'s first item, and that changes it; kept in a container or an object."""

    class Scaled(TinyModel):
        def __init__(self) -> None:
            super().__init__()
            self.kept = make()

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * self.scale()

        def scale(self):
            if isinstance(self.kept, list):
                self.kept.append(1.0)
                return len(self.kept)
            if isinstance(self.kept, dict):
                self.kept["n"] = self.kept.get("n", 0) + 1
                return self.kept["n"]
            if isinstance(self.kept, numpy.ndarray):
                self.kept += 1
                return float(self.kept[0])
            if isinstance(self.kept, random.Random):
                return self.kept.random()
            if isinstance(self.kept, numpy.random.Generator):
                return self.kept.random()
            if isinstance(self.kept, torch.Generator):
                return torch.rand((), generator=self.kept)
            self.kept.inner.n += 1
            return self.kept.inner.n

    return Scaled()


class Inner:
    def __init__(self) -> None:
        self.n = 0


class Outer:
    def __init__(self) -> None:
        self.inner = Inner()


@pytest.mark.parametrize(
    "make",
    [
        list,
        dict,
        lambda: numpy.zeros(2),
        lambda: random.Random(0),
        lambda: numpy.random.default_rng(0),
        Outer,
    ],
    ids=["list", "dict", "array", "Random", "Generator of NumPy", "object"],
)
def test_attributes_of_every_kind_are_seen(make):
    assert problems(verified(scaled_by(make))) == [("attribute", "Scaled.kept")]


def test_attributes_of_submodules_and_buffers_that_are_not_saved_are_seen():
    class Layer(nn.Linear):
        def __init__(self):
            super().__init__(32, 32)
            self.register_buffer("seen", torch.zeros(()), persistent=False)
            self.calls = 1.0

        def forward(self, x):
            self.seen += 1
            self.calls += 1
            return super().forward(x) * self.seen * self.calls

    model = TinyModel()
    model.net[0] = Layer()
    found = verified(model)
    assert sorted(problems(found)) == [("attribute", "TinyModel.net.0.calls"), ("attribute", "TinyModel.net.0.seen")]
    assert "leave out persistent=False" in str(found)
    assert "get_extra_state() and set_extra_state()" in str(found)


class Counting(Callback):
    """Scales the learning rate by the number of batches it has seen."""

    def __init__(self, remembers: bool) -> None:
        self.remembers = remembers
        self.seen = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen += 1
        trainer.optimizers[0].param_groups[0]["lr"] = 0.1 / self.seen

    def state_dict(self):
        return {"seen": self.seen} if self.remembers else {}

    def load_state_dict(self, state_dict):
        self.seen = state_dict["seen"]


def test_a_callback_that_forgets_is_named():
    found = verified(TinyModel(), callbacks=[Counting(remembers=False)])
    assert problems(found) == [("attribute", "Counting.seen")]
    assert "Counting.seen went from 0 to 1 in training" in str(found)
    assert "state_dict() and load_state_dict()" in str(found)
    assert problems(verified(TinyModel(), callbacks=[Counting(remembers=True)])) == []


def test_a_callback_that_takes_back_another_state_than_it_gave_is_named():
    class Lying(Counting):
        def load_state_dict(self, state_dict):
            self.seen = 10 * state_dict["seen"]

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.seen += 1

    found = verified(TinyModel(), callbacks=[Lying(remembers=True)])
    [difference] = found.differences
    assert (difference.kind, difference.name, difference.most) == ("callback", "Lying: seen", 9)
    assert difference.text == "is 4 without a stop and 13 resumed"
    assert problems(found) == [("attribute", "Lying.seen")]


def test_a_datamodule_that_forgets_is_named():
    class Data(LightningDataModule):
        def __init__(self):
            self.moved = 0.0

        def train_dataloader(self):
            return tiny_loader(8)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            self.moved += 1
            return batch[0] * self.moved, batch[1]

    found = verified(TinyModel(), datamodule=Data())
    assert ("attribute", "Data.moved") in problems(found)


def test_data_that_is_drawn_anew_after_a_resume_is_told_from_a_model_that_forgets():
    class Drawing(TinyModel):
        def train_dataloader(self):
            return DataLoader(
                [(torch.randn(4, 32), torch.zeros(4, dtype=torch.long)) for _ in range(8)], batch_size=None
            )

    found = Trainer(**BARE).verify(Drawing())
    assert problems(found)[0] == ("resume", "the batch")
    assert "from batch 1 of epoch 0 on: the batch differs." in str(found)
    assert "draw it in setup()" in str(found)


# Determinism.


class Noisy(TinyModel):
    """Multiplies its loss by what no seed sets."""

    def noise(self):
        return 1 + int.from_bytes(os.urandom(4), "little") / 2**32

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * self.noise() if batch_idx == 1 else loss


def test_a_model_that_is_not_deterministic_is_said_to_be_so_and_resuming_is_not_blamed():
    found = verified(Noisy())
    assert problems(found) == [("determinism", "the loss")]
    assert "part at batch 1 of epoch 0: the loss differs" in str(found)
    assert "os.urandom" in str(found)
    assert "whether resuming is exact cannot be told" in str(found)
    assert found.differences == []


def test_the_first_tensor_that_parts_is_named():
    class Hooked(TinyModel):
        def on_after_backward(self):
            self.net[2].bias.grad += time.perf_counter_ns() % 1000003

    assert problems(verified(Hooked())) == [("determinism", "the gradient of net.2.bias")]


def test_data_in_another_order_in_every_run_is_named():
    class Unsteady(IterableDataset):
        def __iter__(self):
            offset = int.from_bytes(os.urandom(2), "little")
            for x, y in tiny_data(64):
                yield x + offset, y

    assert problems(verified(TinyModel(), DataLoader(Unsteady(), batch_size=4))) == [("determinism", "the batch")]


def test_a_clock_is_not_compared():
    class Timed(TinyModel):
        def training_step(self, batch, batch_idx):
            self.log("seconds", time.perf_counter() % 1)
            return super().training_step(batch, batch_idx)

    found = verified(Timed(), callbacks=[Timer("00:01:00:00")])
    assert problems(found) == []
    assert "metric seconds differs in any two runs, as times do, so that it is not compared." in found.notes
    assert any(note.startswith("callback Timer") for note in found.notes)


# The file.


class Odd:
    pass


def test_what_cannot_be_loaded_under_weights_only_is_named_with_its_place():
    class Saving(TinyModel):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["mine"] = {"odd": Odd()}

    found = verified(Saving())
    [problem] = found.problems
    assert problem.kind in ("weights_only", "saving")
    assert "mine['odd']" in str(found)


def test_a_hyper_parameter_that_is_left_out_is_a_note():
    class Configured(TinyModel):
        def __init__(self, make=Odd, width=3):
            super().__init__()
            self.save_hyperparameters()

    found = verified(Configured())
    assert found
    [note] = found.notes
    assert note.startswith("The checkpoint leaves out the hyper-parameters Configured(make=...)")


def test_a_checkpoint_that_cannot_be_saved_is_a_problem():
    class Saving(TinyModel):
        def on_save_checkpoint(self, checkpoint):
            raise OSError("no room")

    found = verified(Saving())
    assert [problem.kind for problem in found.problems] == ["saving"]
    assert "no room" in str(found)


def test_a_resume_that_fails_is_a_problem():
    class Loading(TinyModel):
        def on_load_checkpoint(self, checkpoint):
            raise KeyError("gone")

    found = verified(Loading())
    assert [problem.kind for problem in found.problems] == ["resume"]
    assert "Resuming from the checkpoint fails: KeyError: 'gone'" in str(found)


# What cannot be verified.


def test_training_that_fails_is_an_error_with_the_traceback():
    class Failing(TinyModel):
        def training_step(self, batch, batch_idx):
            raise ZeroDivisionError("in the step")

    with pytest.raises(VerificationError, match=r"training itself fails\. ZeroDivisionError: in the step") as error:
        verified(Failing())
    assert "raise ZeroDivisionError" in str(error.value)


def test_a_process_that_dies_is_an_error():
    class Dying(TinyModel):
        def training_step(self, batch, batch_idx):
            os.kill(os.getpid(), 9)
            return super().training_step(batch, batch_idx)

    with pytest.raises(VerificationError, match=r"ended with status -9 before its time"):
        verified(Dying())


def test_arguments_are_checked_as_fit_does():
    with pytest.raises(TypeError, match="Make an instance"):
        Trainer(**BARE).verify(TinyModel)
    with pytest.raises(MisconfigurationError, match="Both train_dataloaders"):
        Trainer(**BARE).verify(TinyModel(), tiny_loader(), datamodule=LightningDataModule())
    with pytest.raises(ValueError, match="steps=1 is not a whole number from 2 up"):
        verified(TinyModel(), steps=1)
    with pytest.raises(VerificationError, match="no batch was trained on"):
        verified(TinyModel(), limit_train_batches=0)


# No trace.


def everything(trainer: Trainer, model: Any, loader: Any) -> list[Any]:
    names = ("state", "options", "datamodule", "ckpt_path", "callbacks", "loggers", "_module", "_run", "_fit_run")
    return [
        {name: value.clone() for name, value in model.state_dict().items()},
        {name: copy.deepcopy(value) for name, value in vars(model).items() if not name.startswith("_")},
        torch.get_rng_state(),
        random.getstate(),
        str(numpy.random.get_state()),
        loader.generator.get_state(),
        {name: repr(getattr(trainer, name)) for name in names},
        [copy.deepcopy({k: v for k, v in vars(c).items() if k != "_results"}) for c in trainer.callbacks],
        [parameter.grad is None for parameter in model.parameters()],
        [module.training for module in model.modules()],
        torch.get_num_threads(),
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("fitted", [False, True])
def test_it_leaves_no_trace(tmp_path, monkeypatch, fitted):
    temporary = Path(tempfile.mkdtemp(prefix="t"))  # a short path, for workers make sockets there
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    runs = tmp_path / "runs"
    checkpoint = ModelCheckpoint(runs / "checkpoints", monitor="val_loss", save_last=True)
    stopping, counting = EarlyStopping("val_loss"), Counting(remembers=True)
    options = {"logger": CSVLogger(runs), "callbacks": [stopping, counting, checkpoint], "enable_checkpointing": True}
    trainer = Trainer(**BARE | options, max_epochs=1, default_root_dir=runs, log_every_n_steps=1)

    class Model(Forgetful):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.loss(batch))

    model = Model()
    loader = tiny_loader(8, shuffle=True, generator=torch.Generator().manual_seed(3), num_workers=1)
    if fitted:
        trainer.fit(model, loader, tiny_loader(2))
    model.net[1].eval()
    before, on_disk = everything(trainer, model, loader), files(tmp_path)
    assert not trainer.verify(model, loader, tiny_loader(2))
    after = everything(trainer, model, loader)
    assert [index for index in range(len(before)) if not same(before[index], after[index])] == []
    assert files(tmp_path) == on_disk
    temporary.rmdir()  # which would fail if anything were in it


def test_workers_that_persist_go_on_with_their_own_work():
    loader = tiny_loader(8, num_workers=1, persistent_workers=True)
    first = [x for x, _ in loader]
    workers = [worker.pid for worker in loader._iterator._workers]
    assert verified(TinyModel(), loader)
    assert all(map(torch.equal, first, (x for x, _ in loader)))
    assert [worker.pid for worker in loader._iterator._workers] == workers


def test_a_run_after_it_is_the_run_without_it():
    def trained(verifies):
        torch.manual_seed(1)
        model, trainer = Dropping(), Trainer(**BARE, max_epochs=1)
        random.seed(1)
        numpy.random.seed(1)
        loaders = tiny_loader(4, shuffle=True), tiny_loader(2)
        if verifies:
            assert trainer.verify(model, *loaders)
        trainer.fit(model, *loaders)
        return model.state_dict()

    with_it, without = trained(True), trained(False)
    assert all(torch.equal(with_it[name], without[name]) for name in without)


# New interpreters, as with a GPU.


def test_new_interpreters_do_the_same_where_a_fork_cannot_be(tmp_path):
    trainer = Trainer(**BARE | {"logger": CSVLogger(tmp_path)}, callbacks=[Counting(remembers=True)])
    path = str(tmp_path / "given.pt")
    _write(trainer, (ValidatedModel("adam"), tiny_loader(8, shuffle=True), None, None), path)
    context = torch.multiprocessing.get_context("spawn")

    def start(task):
        return _wait(context.Process(target=_in_a_new_one, args=(path, task)))

    folder = tmp_path / "folder"
    folder.mkdir()
    found = verify_by(start, "it", "a new interpreter", 4, str(folder))
    assert found, str(found)
    assert found.compared["callback"] == 1


def test_what_a_new_interpreter_cannot_get_is_named(tmp_path):
    with pytest.raises(VerificationError, match=r"cannot be copied there: .*leyden verify FILE.py:NAME"):
        _write(Trainer(**BARE), (scaled_by(list), None, None, None), str(tmp_path / "given.pt"))
