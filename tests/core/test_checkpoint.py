"""Checkpoints: what is in the file, and that a resumed run equals one without a break, to the last bit."""

import copy
import pickle
import random
import sys
import types
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import leyden
from leyden.callbacks.early_stopping import EarlyStopping
from leyden.callbacks.model_checkpoint import ModelCheckpoint
from leyden.core.callback import Callback
from leyden.core.checkpoint import PARTS, capture
from leyden.core.datamodule import LightningDataModule
from leyden.core.loading import read_checkpoint
from leyden.core.module import LightningModule
from leyden.utils.errors import CheckpointError, LeydenWarning, MisconfigurationError
from models import FEATURES, TinyModel, ValidatedModel, tiny_data, tiny_loader

LIGHTNING = Path(__file__).parents[1] / "fixtures" / "lightning_2_6_6.ckpt"
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def trainer_with(*callbacks, **options):
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    defaults = {"max_epochs": 4, "enable_checkpointing": saves, "callbacks": list(callbacks), **QUIET}
    return leyden.Trainer(**defaults | options)


def read(path):
    return torch.load(path, weights_only=True)


class Saves(Callback):
    """Asks for saved.ckpt in one hook, at one global_step."""

    def __init__(self, step, hook="on_train_batch_end"):
        setattr(self, hook, lambda trainer, *args: self.save(trainer, step))

    def save(self, trainer, step):
        if trainer.global_step == step:
            trainer.request_checkpoint("saved.ckpt")


class Random(ValidatedModel):
    """A model whose result depends on every generator, on the order of the data, and on all that has state."""

    def __init__(self, interval="epoch", watches=None, strict=True):
        super().__init__()
        self.net.insert(1, nn.Dropout(0.2))
        self.net.insert(1, nn.BatchNorm1d(32))
        self.interval, self.watches, self.strict = interval, watches, strict
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch[0].sum().item()))
        noise = random.random() + torch.rand(())
        return super().training_step(batch, batch_idx) * noise

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        if self.watches is None:
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        else:
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.5)
        config = {"scheduler": scheduler, "interval": self.interval, "monitor": self.watches, "strict": self.strict}
        return {"optimizer": optimizer, "lr_scheduler": config}


class Augmented(Dataset):
    """tiny_data with noise that is drawn whenever a sample is read."""

    def __init__(self, samples):
        self.data = tiny_data(samples)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, y = self.data[index]
        return x + torch.randn(FEATURES), y


def shuffled(**options):
    return DataLoader(Augmented(72), batch_size=16, shuffle=True, **options)  # 5 batches, the last one of 8


def same(one, other):
    """True when two nested values are equal, tensors to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def run(make=Random, loader=shuffled, seed=1, saver=None, path=None, **options):
    """Train, from a checkpoint if there is one; returns the model and everything a checkpoint of its end would hold."""
    torch.manual_seed(seed)
    random.seed(seed)
    model = make()
    trainer = trainer_with(*([saver] if saver else []), **options)
    trainer.fit(model, loader(), tiny_loader(2, seed=1), ckpt_path=path)
    return model, copy.deepcopy(capture(trainer._run))


def assert_resumes(step, hook="on_train_batch_end", **case):
    """A run from the checkpoint of ``step``, begun with other seeds, ends as the run without a break does."""
    whole, end = run(saver=Saves(step, hook), **case)
    resumed, other_end = run(seed=99, path="saved.ckpt", **case)
    assert 0 < len(resumed.seen) < len(whole.seen)
    assert resumed.seen == whole.seen[len(whole.seen) - len(resumed.seen) :]
    for key in end:
        assert same(end[key], other_end[key]), key


# A resumed run.


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_from_the_end_of_an_epoch_nothing_differs(interval):
    assert_resumes(10, "on_train_epoch_end", make=lambda: Random(interval))


@pytest.mark.parametrize("step", [1, 6, 9, 10, 13])
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_from_the_middle_of_an_epoch_nothing_differs(step, interval):
    assert_resumes(step, make=lambda: Random(interval))


@pytest.mark.parametrize("step", [7, 10])
def test_from_a_validation_within_the_epoch_nothing_differs(step):
    case = {"val_check_interval": 1} if step == 7 else {}
    assert_resumes(step, "on_validation_end", **case)


@pytest.mark.parametrize("step", [2, 4, 5])
def test_with_accumulation_nothing_differs(step):
    assert_resumes(step, accumulate_grad_batches=2, make=lambda: Random("step"))


@pytest.mark.filterwarnings("ignore:.*LD034")  # before the first validation there is no metric
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_with_a_scheduler_that_watches_validation_nothing_differs(hook, interval):
    assert_resumes(10, hook, make=lambda: Random(interval, watches="val_loss", strict=False))


@pytest.mark.filterwarnings("ignore:.*LD034")  # before the first validation there is no metric
def test_where_validation_is_rare_the_scheduler_still_knows_its_metric():
    assert_resumes(
        10, "on_train_epoch_end", make=lambda: Random(watches="val_loss", strict=False), check_val_every_n_epoch=2
    )


@pytest.mark.parametrize("step", [5, 7, 10])
def test_with_a_generator_of_the_loaders_own_nothing_differs(step):
    def loader():
        data = tiny_data(80)
        return DataLoader(data, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(3))

    assert_resumes(step, loader=loader)


def test_with_a_sampler_that_draws_as_it_goes_nothing_differs():
    def loader():
        data = tiny_data(80)
        weights = torch.arange(80, dtype=torch.float)
        return DataLoader(data, batch_size=16, sampler=torch.utils.data.WeightedRandomSampler(weights, 80))

    assert_resumes(7, loader=loader)


def test_with_worker_processes_nothing_differs():
    assert_resumes(7, loader=lambda: shuffled(num_workers=1), max_epochs=2)


class Stream(IterableDataset):
    """Batches of its own, of which nobody knows the number."""

    def __iter__(self):
        return iter(tiny_loader(5))


@pytest.mark.parametrize("step", [5, 7])
def test_with_a_loader_without_length_nothing_differs(step):
    assert_resumes(step, loader=lambda: DataLoader(Stream(), batch_size=None))


def test_in_manual_optimization_nothing_differs():
    class Manual(Random):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer, loss = self.optimizers(), super().training_step(batch, batch_idx)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            if batch_idx % 2:
                self.lr_schedulers().step()

    assert_resumes(7, make=Manual)


def test_with_scaled_gradients_the_scale_goes_on():
    _, end = run(precision="bf16-mixed", saver=Saves(7))
    _, other = run(precision="bf16-mixed", path="saved.ckpt", seed=99)
    assert same(end, other)


def test_a_run_may_be_resumed_several_times():
    whole, end = run(saver=Saves(7))
    run(seed=98, path="saved.ckpt", saver=Saves(12))
    resumed, other_end = run(seed=99, path="saved.ckpt")
    assert resumed.seen == whole.seen[12:]
    assert same(end, other_end)


def test_two_epochs_and_two_more_are_four():
    whole, end = run()
    torch.manual_seed(1)
    random.seed(1)
    trainer = trainer_with(max_epochs=2)
    trainer.fit(Random(), shuffled(), tiny_loader(2, seed=1))
    trainer.save_checkpoint("saved.ckpt")
    resumed, other_end = run(seed=99, path="saved.ckpt")
    assert resumed.seen == whole.seen[10:]
    assert same(end, other_end)


def test_the_sanity_check_is_left_out_of_a_resumed_run():
    class Looks(Callback):
        def on_sanity_check_start(self, trainer, pl_module):
            raise AssertionError

    run(saver=Saves(5, "on_train_epoch_end"))
    trainer_with(Looks()).fit(Random(), shuffled(), tiny_loader(2), ckpt_path="saved.ckpt")


def test_where_it_goes_on_is_said(capsys):
    run(saver=Saves(7))
    run(path="saved.ckpt")
    assert "Resuming from saved.ckpt: epoch 1, after batch 2, step 7." in capsys.readouterr().err


def test_an_epoch_that_max_steps_broke_off_is_finished_by_a_longer_run():
    whole, end = run()
    torch.manual_seed(1)
    random.seed(1)
    trainer = trainer_with(max_steps=7)
    trainer.fit(Random(), shuffled(), tiny_loader(2, seed=1))
    trainer.save_checkpoint("saved.ckpt")
    resumed, other_end = run(seed=99, path="saved.ckpt")
    assert resumed.seen == whole.seen[7:]
    assert same(end["state_dict"], other_end["state_dict"])


# Capture and restore.


class Counts(Callback):
    """A callback with state."""

    def __init__(self):
        self.batches = 0

    def on_train_batch_end(self, *args):
        self.batches += 1

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state_dict):
        self.batches = state_dict["batches"]


class TinyData(LightningDataModule):
    """A datamodule with hyper-parameters and state."""

    def __init__(self, batch_size=16):
        super().__init__()
        self.save_hyperparameters()
        self.setups = 0

    def setup(self, stage):
        self.setups += 1

    def train_dataloader(self):
        return DataLoader(tiny_data(80), self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return tiny_loader(2, seed=1)

    def state_dict(self):
        return {"setups": self.setups}

    def load_state_dict(self, state_dict):
        self.setups = state_dict["setups"]


class Recorded(Random):
    """Random, with hyper-parameters."""

    def __init__(self, width=3):
        super().__init__()
        self.save_hyperparameters()


def test_what_is_restored_is_what_was_captured_part_by_part():
    captured = []

    class Captures(Callback):
        monitors = True  # behind the callback that has state

        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 7:
                captured.append(copy.deepcopy(capture(trainer._run)))
                trainer.save_checkpoint("saved.ckpt")

        def on_train_start(self, trainer, pl_module):
            if trainer.ckpt_path:
                captured.append(copy.deepcopy(capture(trainer._run)))

    def fit(path=None):
        trainer = trainer_with(Counts(), Captures(), max_epochs=2, num_sanity_val_steps=0)
        trainer.fit(Recorded(), datamodule=TinyData(), ckpt_path=path)
        return trainer._run

    torch.manual_seed(1)
    fit()
    torch.manual_seed(99)
    last = fit("saved.ckpt")
    before, after = captured
    for part in PARTS:
        key = part.place(last)
        assert before[key], key
        assert same(before[key], after[key]), key
    assert same(before, after)
    assert same(before, read("saved.ckpt"))


def test_the_file_has_lightnings_layout():
    trainer = trainer_with(Counts(), max_epochs=2)
    trainer.fit(Recorded(), datamodule=TinyData())
    trainer.save_checkpoint("saved.ckpt")
    checkpoint = read("saved.ckpt")
    assert set(checkpoint) == {
        *("epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "callbacks"),
        *("optimizer_states", "lr_schedulers", "hparams_name", "hyper_parameters"),
        *("datamodule_hparams_name", "datamodule_hyper_parameters", "TinyData", "leyden"),
    }
    assert checkpoint["epoch"] == 2 and checkpoint["global_step"] == 10
    assert checkpoint["callbacks"]["Counts"] == {"batches": 10}
    assert checkpoint["hyper_parameters"] == {"width": 3}
    assert checkpoint["datamodule_hyper_parameters"] == {"batch_size": 16}
    assert checkpoint["TinyData"] == {"setups": 1}
    assert checkpoint["hparams_name"] == "kwargs"
    theirs = read(LIGHTNING)
    ours_loop, their_loop = checkpoint["loops"]["fit_loop"], theirs["loops"]["fit_loop"]
    assert set(ours_loop) == set(their_loop)
    assert {key: set(value) for key, value in ours_loop.items()} == {
        key: set(value) for key, value in their_loop.items()
    }
    assert set(theirs) - {"straight", "Data"} <= set(checkpoint)


@pytest.mark.parametrize(("weights_only", "resumable"), [(False, True), (True, False)])
def test_weights_alone_leave_out_what_only_resuming_needs(weights_only, resumable):
    trainer = trainer_with(Counts(), max_epochs=1)
    trainer.fit(Recorded(), datamodule=TinyData())
    trainer.save_checkpoint("saved.ckpt", weights_only=weights_only)
    checkpoint = read("saved.ckpt")
    for key in ("callbacks", "optimizer_states", "lr_schedulers", "leyden"):
        assert (key in checkpoint) is resumable, key
    assert {"state_dict", "hyper_parameters", "TinyData", "loops"} <= set(checkpoint)


def test_after_a_test_the_file_still_has_what_resuming_needs():
    whole, end = run()
    torch.manual_seed(1)
    random.seed(1)
    trainer, model = trainer_with(max_epochs=2), Random()
    trainer.fit(model, shuffled(), tiny_loader(2, seed=1))
    with torch.random.fork_rng():  # loaders draw from the generator
        trainer.test(model, tiny_loader(1), verbose=False)
    trainer.save_checkpoint("saved.ckpt")
    resumed, other_end = run(seed=99, path="saved.ckpt")
    assert resumed.seen == whole.seen[10:]
    assert same(end, other_end)


def test_before_any_model_there_is_nothing_to_save():
    with pytest.raises(AttributeError, match=r"needs a model: call trainer.fit"):
        trainer_with().save_checkpoint("saved.ckpt")


# Refused, or warned of.


def test_weights_alone_cannot_be_resumed_from_and_nothing_is_begun():
    run(saver=ModelCheckpoint(dirpath=".", filename="weights", save_weights_only=True), max_epochs=1)
    started = []

    class Looks(Callback):
        def on_fit_start(self, trainer, pl_module):
            started.append(trainer)

    with pytest.raises(CheckpointError, match=r"weights.ckpt holds weights alone.*Random.load_from_checkpoint\(path\)"):
        trainer_with(Looks()).fit(Random(), shuffled(), tiny_loader(1), ckpt_path="weights.ckpt")
    assert not started


def test_weights_alone_are_enough_to_test():
    model, _ = run(max_epochs=1)
    torch.save({"state_dict": model.state_dict()}, "weights.ckpt")
    other = Random()
    trainer_with().test(other, tiny_loader(1), ckpt_path="weights.ckpt", verbose=False)
    assert same(model.state_dict(), other.state_dict())


def test_another_number_of_optimizers_is_refused():
    class Two(TinyModel):
        automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]

        def training_step(self, batch, batch_idx):
            self.optimizers()[0].step()

    trainer = trainer_with(max_epochs=1)
    trainer.fit(TinyModel(), tiny_loader(1))
    trainer.save_checkpoint("saved.ckpt")
    with pytest.raises(CheckpointError, match="state of 1 optimizers, and configure_optimizers returned 2"):
        trainer_with().fit(Two(), tiny_loader(1), ckpt_path="saved.ckpt")


def test_an_optimizer_that_does_not_fit_is_named():
    class Grouped(TinyModel):
        def configure_optimizers(self):
            return torch.optim.SGD([{"params": p} for p in self.parameters()], lr=0.1)

    trainer = trainer_with(max_epochs=1)
    trainer.fit(TinyModel(), tiny_loader(1))
    trainer.save_checkpoint("saved.ckpt")
    with pytest.raises(CheckpointError, match=r"saved.ckpt does not fit SGD as configure_optimizers made it"):
        trainer_with().fit(Grouped(), tiny_loader(1), ckpt_path="saved.ckpt")


def test_another_number_of_schedulers_is_refused():
    run(max_epochs=1, saver=Saves(1))
    with pytest.raises(CheckpointError, match="state of 1 schedulers, and configure_optimizers returned 0"):

        class Without(Random):
            def configure_optimizers(self):
                return torch.optim.Adam(self.parameters())

        trainer_with().fit(Without(), shuffled(), tiny_loader(1), ckpt_path="saved.ckpt")


def test_weights_that_do_not_fit_are_named():
    run(max_epochs=1, saver=Saves(1))
    with pytest.raises(CheckpointError, match=r"weights in saved.ckpt do not fit TinyModel.*net.0|net.1"):
        trainer_with().fit(TinyModel(), tiny_loader(1), ckpt_path="saved.ckpt")


def test_fewer_epochs_than_the_checkpoint_has_are_refused():
    run(max_epochs=3, saver=Saves(15, "on_train_epoch_end"))
    with pytest.raises(CheckpointError, match=r"has completed 3 epochs, more than Trainer\(max_epochs=2\)"):
        run(path="saved.ckpt", max_epochs=2)


def test_a_callback_that_is_gone_is_named():
    trainer = trainer_with(Counts(), max_epochs=1)
    trainer.fit(TinyModel(), tiny_loader(1))
    trainer.save_checkpoint("saved.ckpt")
    with pytest.warns(LeydenWarning, match=r"state of callbacks that are not here: Counts.*LD041"):
        trainer_with(max_epochs=2).fit(TinyModel(), tiny_loader(1), ckpt_path="saved.ckpt")


def test_what_cannot_be_read_back_safely_is_warned_of_with_its_place():
    class Odd(TinyModel):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["mine"] = {"path": Path("x")}

    trainer = trainer_with(max_epochs=1)
    trainer.fit(Odd(), tiny_loader(1))
    with pytest.warns(LeydenWarning, match=r"holds mine\['path'\].*LD040"):
        trainer.save_checkpoint("saved.ckpt")
    with pytest.raises(CheckpointError, match="weights_only=False"):
        trainer_with(max_epochs=2).fit(Odd(), tiny_loader(1), ckpt_path="saved.ckpt")
    trainer_with(max_epochs=2).fit(Odd(), tiny_loader(1), ckpt_path="saved.ckpt", weights_only=False)


def test_a_hyperparameter_that_is_not_plain_is_left_out_with_a_warning():
    class Given(TinyModel):
        def __init__(self, activation=torch.relu, width=1):
            super().__init__()
            self.save_hyperparameters()

    trainer = trainer_with(max_epochs=1)
    trainer.fit(Given(), tiny_loader(1))
    with pytest.warns(LeydenWarning, match=r"leave out the hyper-parameters activation of Given.*LD043"):
        trainer.save_checkpoint("saved.ckpt")
    assert read("saved.ckpt")["hyper_parameters"] == {"width": 1}


# The users' hooks.


def test_hooks_are_called_in_their_order():
    order = []

    class Hooked(TinyModel):
        def on_save_checkpoint(self, checkpoint):
            order.append(("module saves", checkpoint["theirs"], len(checkpoint["callbacks"])))
            checkpoint["mine"] = 1

        def on_load_checkpoint(self, checkpoint):
            order.append(("module loads", checkpoint["mine"], checkpoint["theirs"]))
            checkpoint["state_dict"] = {k: torch.zeros_like(v) for k, v in checkpoint["state_dict"].items()}

        def load_state_dict(self, *args, **kwargs):
            order.append("weights")
            return super().load_state_dict(*args, **kwargs)

        def on_fit_start(self):
            order.append(("fit starts", self.global_step, self.net[0].weight.abs().max().item()))

        def on_train_start(self):
            order.append(("training starts", self.global_step))

    class Hooks(Counts):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            order.append("callback saves")
            checkpoint["theirs"] = 2

        def on_load_checkpoint(self, trainer, pl_module, checkpoint):
            order.append(("callback loads", checkpoint["theirs"]))

        def load_state_dict(self, state_dict):
            order.append(("callback state", state_dict["batches"]))

    class Loads(TinyData):
        def load_state_dict(self, state_dict):
            order.append("datamodule")

        val_dataloader = LightningDataModule.val_dataloader

    trainer = trainer_with(Hooks(), max_epochs=1)
    trainer.fit(Hooked(), datamodule=Loads())
    order.clear()
    trainer.save_checkpoint("saved.ckpt")
    assert order == ["callback saves", ("module saves", 2, 1)]
    order.clear()
    trainer_with(Hooks(), max_epochs=2).fit(Hooked(), datamodule=Loads(), ckpt_path="saved.ckpt")
    assert order == [
        ("module loads", 1, 2),
        "weights",
        "datamodule",
        ("callback loads", 2),
        ("callback state", 5),
        ("fit starts", 0, 0.0),
        ("training starts", 5),
    ]


def test_to_test_only_the_model_is_restored():
    order = []

    class Hooked(ValidatedModel):
        def on_load_checkpoint(self, checkpoint):
            order.append("module")

    class Hooks(Counts):
        def on_load_checkpoint(self, trainer, pl_module, checkpoint):
            order.append("callback")

        def load_state_dict(self, state_dict):
            order.append("callback state")

    trainer = trainer_with(Hooks(), max_epochs=1)
    model = Hooked()
    trainer.fit(model, tiny_loader(1), tiny_loader(1))
    trainer.save_checkpoint("saved.ckpt")
    other = trainer_with(Hooks())
    fresh = Hooked()
    other.test(fresh, tiny_loader(1), ckpt_path="saved.ckpt", verbose=False)
    assert order == ["module"]
    assert same(fresh.state_dict(), model.state_dict())
    assert other.global_step == 0
    assert other._run.checkpoint is None  # and not kept in memory


# Loaders with a state of their own.


class Stateful:
    """Batches 0 to 4, from where its state says; knows its length or not."""

    def __init__(self, sized):
        self.batches, self.next, self.passes = list(tiny_loader(5)), 0, 0
        if sized:
            self.__class__ = SizedStateful

    def __iter__(self):
        while self.next < len(self.batches):
            self.next += 1
            yield self.batches[self.next - 1]
        self.next, self.passes = 0, self.passes + 1

    def state_dict(self):
        return {"next": self.next, "passes": self.passes}

    def load_state_dict(self, state):
        self.next, self.passes = state["next"], state["passes"]


class SizedStateful(Stateful):
    def __len__(self):
        return len(self.batches)


class StatefulLoader(DataLoader):
    """A DataLoader that remembers its place, as torchdata's does: after a finished pass that is the beginning."""

    done, resume_at = 0, 0

    def __iter__(self):
        skip, self.resume_at = self.resume_at, 0
        return self.rest(super().__iter__(), skip)

    def rest(self, iterator, skip):
        for index, batch in enumerate(iterator):
            if index >= skip:
                self.done = index + 1
                yield batch
        self.done = 0

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.resume_at = state["done"]


LOADERS = {
    "sized": lambda: Stateful(sized=True),
    "unsized": lambda: Stateful(sized=False),
    "DataLoader": lambda: StatefulLoader(tiny_data(80), batch_size=16),
}


@pytest.mark.parametrize("step", [5, 7, 9])
@pytest.mark.parametrize("kind", LOADERS)
def test_a_loader_with_a_state_goes_on_where_it_was(kind, step):
    assert_resumes(step, loader=LOADERS[kind])


@pytest.mark.parametrize("kind", LOADERS)
def test_a_loader_with_a_state_goes_on_behind_an_epoch(kind):
    assert_resumes(10, "on_train_epoch_end", loader=LOADERS[kind])
    assert_resumes(10, "on_validation_end", loader=LOADERS[kind])


def test_a_loader_with_a_state_is_not_read_to_find_its_place():
    read_batches = []

    class Reads(Stateful):
        def __iter__(self):
            for batch in super().__iter__():
                read_batches.append(self.next)
                yield batch

    run(loader=lambda: Reads(sized=False), saver=Saves(3), max_epochs=1)
    read_batches.clear()
    run(loader=lambda: Reads(sized=False), path="saved.ckpt", max_epochs=1)
    assert read_batches == [4, 5]


def without_ours(loader_states):
    """Make saved.ckpt what Lightning would have written."""
    checkpoint = read("saved.ckpt")
    del checkpoint["leyden"]
    checkpoint["loops"]["fit_loop"]["state_dict"] = {"combined_loader": loader_states} if loader_states else {}
    torch.save(checkpoint, "saved.ckpt")


@pytest.mark.parametrize("kind", LOADERS)
def test_a_loader_with_a_state_that_the_checkpoint_lacks_is_read_to_its_place(kind):
    whole, _ = run(loader=lambda: tiny_loader(5), saver=Saves(7))
    resumed, _ = run(loader=LOADERS[kind], path="saved.ckpt")
    assert resumed.seen == whole.seen[7:]
    without_ours([])
    resumed, _ = run(loader=LOADERS[kind], path="saved.ckpt")
    assert resumed.seen == whole.seen[7:]


def test_a_loader_gets_the_state_that_lightning_has_kept():
    whole, _ = run(loader=lambda: Stateful(sized=True), saver=Saves(7))
    without_ours([{"next": 2, "passes": 1}])
    resumed, end = run(loader=lambda: Stateful(sized=True), path="saved.ckpt")
    assert resumed.seen == whole.seen[7:]
    assert end["leyden"]["loader"]["loader"] == {"next": 0, "passes": 4}


# Accumulation.


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 4])
def test_a_checkpoint_asked_for_within_an_accumulation_window_holds_its_gradients(batch):
    class Asks(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch_of_data, batch_idx):
            if batch_idx == batch:
                trainer.request_checkpoint("saved.ckpt")

    whole, _ = run(saver=Asks(), accumulate_grad_batches=3, max_epochs=1)
    checkpoint = read("saved.ckpt")
    assert checkpoint["leyden"]["position"]["batch"] == batch + 1
    assert checkpoint["global_step"] == (batch + 1) // 3 + (batch == 4)
    assert (checkpoint["leyden"]["window"] is None) == (batch in (2, 4))
    resumed, _ = run(path="saved.ckpt", accumulate_grad_batches=3, max_epochs=1)
    assert same(resumed.state_dict(), whole.state_dict())


# Paths that stand for files.


def test_last_and_best_are_found_in_a_second_run():
    saver = ModelCheckpoint(dirpath="kept", monitor="val_loss", save_top_k=2, save_last=True)
    run(saver=saver, max_epochs=2)
    again = ModelCheckpoint(dirpath="kept", monitor="val_loss", save_top_k=2, save_last=True)
    resumed, _ = run(saver=again, path="last", max_epochs=3)
    assert resumed.seen[0][:2] == (2, 0)
    assert len(resumed.seen) == 5

    trainer, fresh = trainer_with(saver), Random()
    trainer.validate(fresh, tiny_loader(1), ckpt_path="best", verbose=False)
    assert same(dict(fresh.state_dict()), dict(read(saver.best_model_path)["state_dict"]))


def test_without_a_last_checkpoint_the_run_begins_afresh_and_says_so():
    with pytest.warns(LeydenWarning, match="LD062"):
        model, _ = run(saver=ModelCheckpoint(dirpath="kept"), path="last", max_epochs=1)
    assert len(model.seen) == 5


def test_without_a_best_checkpoint_there_is_an_error():
    with pytest.raises(MisconfigurationError, match=r"fit\(ckpt_path='best'\) finds no best checkpoint"):
        run(path="best")


def test_a_missing_file_is_an_error_before_anything_begins():
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint nowhere\.ckpt"):
        run(path="nowhere.ckpt")


def test_the_file_knows_itself():
    saver = ModelCheckpoint(dirpath="kept", monitor="val_loss", save_top_k=-1)
    run(saver=saver, max_epochs=3)
    states = {path: read(path)["callbacks"][saver.state_key] for path in saver.best_k_models}
    for path, state in states.items():
        assert path in state["best_k_models"]
    assert states[saver.best_model_path]["best_model_path"] == saver.best_model_path


# Lightning.


class Model(LightningModule):
    """The model of tests/fixtures/make_lightning_checkpoint.py."""

    def __init__(self, width=4, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))

    def loss(self, batch):
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def lightnings_data():
    x = torch.linspace(-1, 1, 48).reshape(16, 3)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 4)


class Data(LightningDataModule):
    """The datamodule of that script."""

    train_dataloader = val_dataloader = staticmethod(lightnings_data)

    restored: ClassVar = {}

    def load_state_dict(self, state_dict):
        self.restored = state_dict


@pytest.mark.parametrize("version", ["2_6_6", "1_9_5", "1_6_5", "1_2_10"])
def test_a_run_of_lightning_goes_on_here(version, capsys):
    path = LIGHTNING.with_name(f"lightning_{version}.ckpt")
    data, stopping, saver = Data(), EarlyStopping("val_loss"), ModelCheckpoint(dirpath="here", monitor="val_loss")
    trainer, model = trainer_with(stopping, saver), Model()
    with pytest.warns(LeydenWarning, match="LD135"):  # ModelCheckpoint has another folder now
        trainer.fit(model, datamodule=data, ckpt_path=path)
    assert "which Lightning wrote: epoch 2." in capsys.readouterr().err
    assert data.restored == ({} if version == "1_2_10" else {"seen": 7})  # which did not save it
    assert (trainer.current_epoch, trainer.global_step) == (4, 16)
    assert trainer.lr_scheduler_configs[0].scheduler.get_last_lr() == pytest.approx([0.1 / 2**4])
    saved = read_checkpoint(path, "cpu", None)
    (best_then,) = (state["best_score"] for key, state in saved["callbacks"].items() if "EarlyStopping" in key)
    assert stopping.best_score < best_then
    torch.testing.assert_close(dict(model.state_dict()), saved["straight"])


@pytest.mark.parametrize("version", ["2_6_6", "1_9_5", "1_6_5", "1_2_10"])
def test_a_model_of_lightning_is_loaded_here(version):
    path = LIGHTNING.with_name(f"lightning_{version}.ckpt")
    model = Model.load_from_checkpoint(path)
    assert model.hparams == {"width": 4, "lr": 0.1}
    assert same(dict(model.state_dict()), dict(read_checkpoint(path, "cpu", None)["state_dict"]))


def test_what_lightning_wrote_of_its_own_classes_is_read_without_them_and_without_calling_anything(tmp_path):
    path = LIGHTNING.with_name("lightning_1_2_10.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert set(read_checkpoint(path, "cpu", None)["callbacks"]) == {"EarlyStopping", "ModelCheckpoint"}
    with path.open("rb") as file:
        assert read_checkpoint(file, "cpu", None)["epoch"] == 2
    assert "pytorch_lightning" not in sys.modules
    assert not [one for one in torch.serialization.get_safe_globals() if "lightning" in str(one)]


class Payload:
    def __reduce__(self):
        return open, ("executed", "w")


def test_a_payload_beside_lightnings_classes_is_refused():
    saved = read_checkpoint(LIGHTNING.with_name("lightning_1_2_10.ckpt"), "cpu", None)
    name = "pytorch_lightning.callbacks.early_stopping"
    stand_in = type("EarlyStopping", (), {"__module__": name})
    with pytest.MonkeyPatch.context() as patch:
        for package in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
            patch.setitem(sys.modules, package, types.ModuleType(package))
        sys.modules[name].EarlyStopping = stand_in
        torch.save({**saved, "callbacks": {stand_in: {}}, "more": Payload()}, "payload.ckpt")
    with pytest.raises(CheckpointError, match=r"io\.open"):
        Model.load_from_checkpoint("payload.ckpt")
    assert not Path("executed").exists()


def test_the_state_of_a_datamodule_survives_another_name_of_its_class():
    class Old(Data):
        state_key = "data"

        def state_dict(self):
            return {"seen": 5}

    class New(Old):
        pass

    trainer_with(max_epochs=1).fit(Model(), datamodule=(old := Old()))
    old.trainer.save_checkpoint("saved.ckpt")
    trainer_with(max_epochs=2).fit(Model(), datamodule=(new := New()), ckpt_path="saved.ckpt")
    assert new.restored == {"seen": 5}


@pytest.mark.parametrize(
    ("step", "hook", "epoch", "batch", "last"),
    [
        (5, "on_train_epoch_end", {"ready": 1, "processed": 1}, 0, True),
        (7, "on_train_batch_end", {"ready": 2, "processed": 1}, 2, False),
        (10, "on_validation_end", {"ready": 2, "processed": 2}, 5, True),
    ],
)
def test_lightning_is_told_where_to_go_on(step, hook, epoch, batch, last):
    run(saver=Saves(step, hook), max_epochs=2)
    loop = read("saved.ckpt")["loops"]["fit_loop"]
    current = loop["epoch_progress"]["current"]
    assert {name: current[name] for name in epoch} == epoch
    progress = loop["epoch_loop.batch_progress"]
    assert (progress["current"]["processed"], progress["is_last_batch"]) == (batch, last)
    assert progress["total"]["processed"] == step


def test_a_run_that_max_steps_ended_with_an_epoch_goes_on_as_if_it_had_not(tmp_path):
    def data():
        return DataLoader(tiny_data(64), 16, shuffle=True)

    def trained(steps, **options):
        torch.manual_seed(4)
        model = TinyModel("adam")
        trainer = leyden.Trainer(
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data(), **options)
        return model, trainer

    straight, _ = trained(8)
    _, trainer = trained(4)
    trainer.save_checkpoint(tmp_path / "four.ckpt")
    torch.manual_seed(99)
    resumed, _ = trained(8, ckpt_path=tmp_path / "four.ckpt")
    for one, other in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(one, other)
