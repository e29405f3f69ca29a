"""LightningModule: what it can do by itself, and what a run gives it."""

import copy
import pickle
from argparse import Namespace

import pytest
import torch
from torch import nn

import leyden
from leyden.core.callback import Callback
from leyden.core.module import LightningModule
from leyden.utils.errors import MisconfigurationError
from models import TinyModel, ValidatedModel, tiny_loader

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def trainer_with(*callbacks, **options):
    return leyden.Trainer(**{"max_epochs": 1, "accelerator": "cpu", "callbacks": list(callbacks), **QUIET} | options)


# Making one.


class ForgetsSuper(LightningModule):
    def __init__(self, width):
        self.layer = nn.Linear(width, 1)


class SuperLast(LightningModule):
    def __init__(self, width):
        self.layer = nn.Linear(width, 1)
        super().__init__()


@pytest.mark.parametrize("kind", [ForgetsSuper, SuperLast])
def test_layers_made_before_or_without_super_init_are_there(kind):
    assert [name for name, _ in kind(2).named_parameters()] == ["layer.weight", "layer.bias"]


def test_a_second_parent_is_initialised_with_the_arguments():
    class Net(nn.Module):
        def __init__(self, width, bias=True):
            super().__init__()
            self.layer = nn.Linear(width, 1, bias=bias)

        def forward(self, x):
            return self.layer(x)

    class Lit(LightningModule, Net):
        def __init__(self, width):
            super().__init__(width, bias=False)

    assert Lit(3)(torch.ones(1, 3)).shape == (1, 1)
    assert len(list(Lit(3).parameters())) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_does_not_drag_the_trainer_along(copied):
    model = TinyModel()
    trainer_with().fit(model, tiny_loader(1))
    again = copied(model)
    assert model.trainer is not None
    with pytest.raises(RuntimeError, match="TinyModel is not attached to a Trainer"):
        _ = again.trainer
    assert torch.equal(again.net[0].weight, model.net[0].weight)


# What must be there.


@pytest.mark.parametrize("step", ["training_step", "validation_step", "test_step"])
def test_a_step_that_is_not_defined_says_so_when_called(step):
    with pytest.raises(MisconfigurationError, match=rf"LightningModule has no {step}\(\)"):
        getattr(LightningModule(), step)(None, 0)


@pytest.mark.parametrize("kind", ["train", "val", "test", "predict"])
def test_a_loader_that_is_not_defined_says_so_when_called(kind):
    with pytest.raises(MisconfigurationError, match=rf"LightningModule has no {kind}_dataloader\(\)"):
        getattr(LightningModule(), f"{kind}_dataloader")()


def test_predictions_are_what_forward_returns_unless_told():
    model = TinyModel()
    found = trainer_with().predict(model, [torch.ones(2, 32)])
    assert torch.equal(found[0], model(torch.ones(2, 32)))


# Without and with a run.


def test_without_a_run_it_is_at_the_beginning():
    model = TinyModel()
    assert (model.current_epoch, model.global_step, model.global_rank, model.local_rank) == (0, 0, 0, 0)
    assert (model.logger, model.loggers, model.fabric, model.on_gpu) == (None, [], None, False)
    with pytest.raises(RuntimeError, match=r"not attached to a Trainer: call trainer.fit\(model\)"):
        _ = model.trainer


def test_in_a_run_it_knows_where_the_run_stands():
    seen = []

    class Looks(TinyModel):
        def training_step(self, batch, batch_idx):
            seen.append((self.current_epoch, self.global_step, self.trainer.training))
            return super().training_step(batch, batch_idx)

    trainer = trainer_with(max_epochs=2)
    model = Looks()
    trainer.fit(model, tiny_loader(2))
    assert seen == [(0, 0, True), (0, 1, True), (1, 2, True), (1, 3, True)]
    assert model.trainer is trainer


def test_nested_modules_know_the_trainer_too():
    model = TinyModel()
    model.inner = nn.Sequential(LightningModule())
    trainer = trainer_with()
    trainer.fit(model, tiny_loader(1))
    assert model.inner[0].trainer is trainer


def test_the_trainer_is_no_part_of_the_module():
    model = TinyModel()
    trainer_with().fit(model, tiny_loader(1))
    assert "trainer" not in dict(model.named_modules())
    assert not any("trainer" in name for name in model.state_dict())


@pytest.mark.parametrize("attached", [False, True])
def test_print_prints(attached, capsys):
    model = TinyModel()
    if attached:
        trainer_with().fit(model, tiny_loader(1))
    model.print("here", 1, sep="-")
    assert capsys.readouterr().out == "here-1\n"


def test_gathering_from_one_process_changes_nothing():
    model, value = TinyModel(), torch.arange(3)
    trainer_with().fit(model, tiny_loader(1))
    assert torch.equal(model.all_gather(value), value)


# Devices and types.


def test_device_and_type_are_those_of_the_parameters():
    model = TinyModel()
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert model.to("meta").device == torch.device("meta")
    assert model.double().dtype == torch.float64


def test_without_parameters_the_buffers_tell_and_without_them_the_defaults():
    model = LightningModule()
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    model.register_buffer("count", torch.zeros(1, dtype=torch.long, device="meta"))
    model.register_buffer("mean", torch.zeros(1, dtype=torch.float64, device="meta"))
    assert (model.device, model.dtype) == (torch.device("meta"), torch.float64)


def test_freezing_and_unfreezing():
    model = TinyModel()
    assert model.freeze() is model
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.unfreeze() is model
    assert model.training and all(p.requires_grad for p in model.parameters())


# A batch on its way.


def test_transfer_hooks_see_the_batch_in_order():
    seen = []

    class Hooked(ValidatedModel):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            seen.append(("before", dataloader_idx))
            return [batch[0] + 1, batch[1]]

        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            seen.append(("transfer", device.type))
            return super().transfer_batch_to_device(batch, device, dataloader_idx)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            seen.append("after")
            return [batch[0] * 2, batch[1]]

        def predict_step(self, batch, batch_idx):
            return batch[0]

    found = trainer_with().predict(Hooked(), [[torch.ones(1, 32), torch.zeros(1).long()]])
    assert seen == [("before", 0), ("transfer", "cpu"), "after"]
    assert found[0].unique().tolist() == [4.0]


def test_transfer_hooks_know_which_loader_it_is():
    seen = []

    class Hooked(TinyModel):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            seen.append(dataloader_idx)
            return batch

        def validation_step(self, batch, batch_idx, dataloader_idx):
            pass

    trainer_with().validate(Hooked(), [tiny_loader(1), tiny_loader(2)], verbose=False)
    assert seen == [0, 1, 1]


# Optimizers.


class Pair(TinyModel):
    """Two optimizers, one for each layer."""

    automatic_optimization = False

    def __init__(self, step):
        super().__init__()
        self.step = step

    def training_step(self, batch, batch_idx):
        self.step(self, batch)

    def configure_optimizers(self):
        optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.net[0], self.net[2])]
        return optimizers, [torch.optim.lr_scheduler.ExponentialLR(optimizers[0], 0.5)]


@pytest.mark.filterwarnings("ignore:.*LD296")
def test_toggling_switches_the_gradients_of_the_other_optimizers_off():
    seen = []

    def step(model, batch):
        first, second = model.optimizers()
        model.net[2].bias.requires_grad = False
        with model.toggled_optimizer(second):
            seen.append([p.requires_grad for p in model.parameters()])
        seen.append([p.requires_grad for p in model.parameters()])
        model.toggle_optimizer(first)
        seen.append([p.requires_grad for p in model.parameters()])
        model.untoggle_optimizer(first)
        seen.append([p.requires_grad for p in model.parameters()])
        second.step()

    trainer_with().fit(Pair(step), tiny_loader(1))
    before = [True, True, True, False]
    assert seen == [[False, False, True, False], before, [True, True, False, False], before]


@pytest.mark.filterwarnings("ignore:.*LD296")
def test_optimizers_and_schedulers_are_one_a_list_or_none():
    seen = []

    def step(model, batch):
        seen.append(([type(o).__name__ for o in model.optimizers()], type(model.lr_schedulers()).__name__))
        seen.append([isinstance(o, torch.optim.SGD) for o in model.optimizers()])
        seen.append(model.optimizers(use_pl_optimizer=False) == model.trainer.optimizers)
        model.optimizers()[0].step()

    trainer_with().fit(Pair(step), tiny_loader(1))
    assert seen[0][1] == "ExponentialLR"
    assert seen[1:] == [[True, True], True]

    class One(TinyModel):
        def on_train_start(self):
            seen.append((isinstance(self.optimizers(), torch.optim.SGD), self.lr_schedulers()))

    trainer_with().fit(One(), tiny_loader(1))
    assert seen[-1] == (True, None)


def test_each_step_of_each_optimizer_counts_in_manual_optimization():
    def step(model, batch):
        for optimizer in model.optimizers():
            optimizer.zero_grad()
        model.manual_backward(model.loss(batch))
        for optimizer in model.optimizers():
            optimizer.step()

    trainer = trainer_with()
    trainer.fit(Pair(step), tiny_loader(3))
    assert trainer.global_step == 6


def test_manual_backward_fires_the_hooks_around_it():
    seen = []

    class Looks(Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            seen.append("before")

        def on_after_backward(self, trainer, pl_module):
            seen.append("after")

    def step(model, batch):
        model.manual_backward(model.loss(batch))
        seen.append(model.net[0].weight.grad is not None)
        model.optimizers()[0].step()

    trainer_with(Looks()).fit(Pair(step), tiny_loader(1))
    assert seen == ["before", "after", True]


def test_manual_backward_is_refused_in_automatic_optimization():
    class Confused(TinyModel):
        def training_step(self, batch, batch_idx):
            self.manual_backward(self.loss(batch))

    with pytest.raises(MisconfigurationError, match=r"Set self\.automatic_optimization = False"):
        trainer_with().fit(Confused(), tiny_loader(1))


def test_clipping_may_be_called_by_hand():
    norms = []

    def step(model, batch):
        first, second = model.optimizers()
        model.manual_backward(model.loss(batch))
        model.clip_gradients(first, gradient_clip_val=1e-3)
        model.clip_gradients(second, gradient_clip_val=1e-4, gradient_clip_algorithm="value")
        norms.append(torch.cat([p.grad.flatten() for p in model.net[0].parameters()]).norm().item())
        norms.append(model.net[2].weight.grad.abs().max().item())
        first.step()

    trainer_with().fit(Pair(step), tiny_loader(1))
    assert norms == pytest.approx([1e-3, 1e-4], rel=1e-3)


def test_an_overridden_backward_gets_the_loss():
    class Doubles(TinyModel):
        def backward(self, loss):
            (2 * loss).backward()

    plain, doubled = TinyModel(lr=0.2), Doubles(lr=0.1)
    for model in (plain, doubled):
        trainer_with().fit(model, tiny_loader(1))
    torch.testing.assert_close(plain.net[0].weight, doubled.net[0].weight)


def test_an_overridden_scheduler_step_is_called_instead():
    seen = []

    class Own(TinyModel):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

        def lr_scheduler_step(self, scheduler, metric):
            seen.append((type(scheduler).__name__, metric))

    trainer = trainer_with(max_epochs=2)
    trainer.fit(Own(), tiny_loader(2))
    assert seen == [("ExponentialLR", None)] * 2
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1


def test_own_callbacks_join_those_of_the_trainer_and_replace_their_class():
    class Counts(Callback):
        def __init__(self):
            self.batches = 0

        def on_train_batch_end(self, *args):
            self.batches += 1

    own, given = Counts(), Counts()

    class Brings(TinyModel):
        def configure_callbacks(self):
            return own

    trainer = trainer_with(given)
    trainer.fit(Brings(), tiny_loader(3))
    assert (own.batches, given.batches) == (3, 0)
    assert trainer.callbacks == [own]


# Hyper-parameters.


class Takes(TinyModel):
    def __init__(self, conf=None, lr=0.1):
        super().__init__()
        self.hparams = conf


@pytest.mark.parametrize("conf", [{"width": 3, "depth": 2}, Namespace(width=3, depth=2)])
def test_hyperparameters_may_be_set_as_in_lightning_1(conf):
    model = Takes(conf)
    assert model.hparams == {"width": 3, "depth": 2}
    assert model.hparams.width == 3
    assert model.hparams_initial == model.hparams
    assert model._hparams_name == "conf"


def test_setting_hyperparameters_again_replaces_them():
    model = Takes({"width": 3})
    model.hparams = {"depth": 2}
    assert model.hparams == {"depth": 2}
    assert model._hparams_name is None


def test_what_holds_no_names_cannot_be_set():
    with pytest.raises(MisconfigurationError, match="is not understood"):
        Takes(3)


def test_initial_hyperparameters_stay_as_they_were():
    class Saves(TinyModel):
        def __init__(self, width=3, layers=(1, 2)):
            super().__init__()
            self.save_hyperparameters()

    model = Saves(layers=[1, 2])
    model.hparams.width = 9
    model.hparams.layers.append(3)
    assert model.hparams == {"width": 9, "layers": [1, 2, 3]}
    assert model.hparams_initial == {"width": 3, "layers": [1, 2]}
    model.hparams_initial["width"] = 7
    assert model.hparams_initial["width"] == 3


def test_without_saved_ones_there_are_none():
    assert (TinyModel().hparams, TinyModel().hparams_initial) == ({}, {})


def test_hyperparameters_are_part_of_a_copy():
    assert copy.deepcopy(Takes({"width": 3})).hparams == {"width": 3}
