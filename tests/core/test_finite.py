"""A loss that is not finite: the run stops before the weights change, and the error says where it came from."""

import copy
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import leyden
from leyden.core import finite
from leyden.fabric.precision import MixedPrecision
from leyden.utils.errors import NonFiniteLossError
from models import TinyModel, tiny_data, tiny_loader


def trainer_with(**options):
    given = {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return leyden.Trainer(accelerator="cpu", devices=1, **given | options)


def data_with(value, sample, batches=4, **options):
    """A loader with ``value`` in one place of the sample of that index."""
    x, y = tiny_data(batches * 16).tensors
    x = x.clone()
    x[sample, 3] = value
    return DataLoader(TensorDataset(x, y), batch_size=16, **options)


def stopped(model, loader, **options):
    """The message of the error that stops the fit, and the Trainer."""
    trainer = trainer_with(**options)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.fit(model, loader)
    return str(caught.value), trainer


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_state(model, expected):
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


class Noted(TinyModel):
    """Notes weights, buffers and generators as every ``training_step`` begins; has every kind of layer that matters."""

    def __init__(self, **options):
        super().__init__(**options)
        self.net.insert(1, nn.BatchNorm1d(32))
        self.net.append(nn.Dropout(0.1))
        self.states = []

    def training_step(self, batch, batch_idx):
        self.states.append((state_of(self), torch.get_rng_state()))
        return super().training_step(batch, batch_idx)


# That it stops.


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_weights_buffers_and_generators_are_as_before_the_step(optimizer, value):
    model = Noted(optimizer=optimizer)
    message, trainer = stopped(model, data_with(value, 40))
    assert message.startswith("The loss is nan in epoch 0, batch 2, at global step 2. The weights are as they were")
    state, rng = model.states[2]
    assert_state(model, state)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert trainer.global_step == 2 and trainer.interrupted


def test_an_infinite_loss_stops_too():
    class Infinite(TinyModel):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) / (0.0 if batch_idx == 1 else 1.0)

    message, _ = stopped(Infinite(), tiny_loader())
    assert message.startswith("The loss is inf in epoch 0, batch 1, at global step 1.")


def test_the_error_is_a_runtime_error_and_ends_the_run_as_any_other():
    seen = []

    class Watch(leyden.Callback):
        def on_exception(self, trainer, pl_module, exception):
            seen.append(type(exception))

        def teardown(self, trainer, pl_module, stage):
            seen.append(stage)

    with pytest.raises(RuntimeError):
        trainer_with(callbacks=[Watch()]).fit(TinyModel(), data_with(math.nan, 0))
    assert seen == [NonFiniteLossError, "fit"]


def test_ignore_trains_on():
    model = TinyModel()
    trainer = trainer_with(on_nonfinite_loss="ignore", enable_checkpointing=False)
    trainer.fit(model, data_with(math.nan, 20))
    assert trainer.global_step == 4
    assert all(parameter.isnan().all() for parameter in model.parameters())


def test_a_finite_run_has_the_same_bits_with_and_without_the_check():
    states = []
    for action in ("stop", "ignore"):
        torch.manual_seed(3)
        model = Noted(seed=1)
        trainer_with(on_nonfinite_loss=action, enable_checkpointing=False).fit(model, tiny_loader(shuffle=True))
        states.append((state_of(model), torch.get_rng_state()))
    assert_state(model, states[0][0])
    assert torch.equal(states[0][1], states[1][1])


def test_a_window_stops_at_its_first_bad_batch_and_a_run_that_goes_on_with_good_data_has_the_same_bits(tmp_path):
    whole, ours = Noted(), Noted()
    options = {"accumulate_grad_batches": 4, "max_epochs": 2}
    torch.manual_seed(3)
    trainer_with(enable_checkpointing=False, **options).fit(whole, data_with(0.0, 100, batches=8))
    torch.manual_seed(3)
    checkpoints = leyden.callbacks.ModelCheckpoint(tmp_path, save_on_exception=True, save_top_k=0)
    message, _ = stopped(ours, data_with(math.nan, 100, batches=8), callbacks=[checkpoints], **options)
    assert "in epoch 0, batch 6, at global step 1." in message
    (path,) = tmp_path.glob("*.ckpt")
    torch.manual_seed(4)
    resumed = Noted(seed=1)
    trainer = trainer_with(enable_checkpointing=False, warnings={"LD041": "ignore"}, **options)
    trainer.fit(resumed, data_with(0.0, 100, batches=8), ckpt_path=path)
    assert trainer.global_step == 4
    assert_state(resumed, whole.state_dict())


def test_a_batch_that_is_skipped_does_not_count():
    class Skips(TinyModel):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if loss.isnan() else loss

    trainer = trainer_with(warnings={"LD033": "ignore"}, enable_checkpointing=False)
    trainer.fit(Skips(), data_with(math.nan, 20))
    assert trainer.global_step == 3


def test_a_checkpoint_on_exception_is_of_the_state_before_the_step(tmp_path):
    checkpoints = leyden.callbacks.ModelCheckpoint(tmp_path, save_on_exception=True, save_top_k=0)
    model = Noted()
    stopped(model, data_with(math.nan, 40), callbacks=[checkpoints])
    (path,) = tmp_path.glob("*.ckpt")
    saved = torch.load(path, weights_only=True)
    state, rng = model.states[2]
    assert saved["global_step"] == 2
    for name, value in saved["state_dict"].items():
        assert torch.equal(value, state[name]), name
    assert torch.equal(saved["leyden"]["rng"]["torch"], rng)


def test_a_scaled_float16_loss_counts_unscaled():
    """Infinite gradients are the scaler's affair; the loss itself is not scaled when it is looked at."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # every scaled loss overflows float16
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    trainer = trainer_with(plugins=[plugin], enable_checkpointing=False)
    trainer.fit(TinyModel(), tiny_loader())
    assert scaler.get_scale() < 2.0**40  # which is how it was


def test_lbfgs_is_stopped_in_its_step_and_its_weights_are_put_back():
    class Lbfgs(TinyModel):
        calls = 0

        def training_step(self, batch, batch_idx):
            self.calls += 1
            if self.calls == 6:  # the second batch, in the midst of the step
                moved.append(any(not torch.equal(p, self.before[n]) for n, p in self.named_parameters()))
                return super().training_step(batch, batch_idx) * math.nan
            if self.calls == 5:
                self.before = state_of(self)
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)

    moved = []
    model = Lbfgs()
    message, trainer = stopped(model, tiny_loader())
    assert "batch 1" in message and trainer.global_step == 1
    assert moved == [True]
    assert_state(model, model.before)


# Several optimizers, and manual optimization.


class Pair(TinyModel):
    def __init__(self):
        super().__init__()
        self.net.requires_grad_(False)
        self.one, self.two = nn.Linear(32, 1), nn.Linear(32, 1)

    def configure_optimizers(self):
        return {name: torch.optim.SGD(getattr(self, name).parameters(), 0.1) for name in ("one", "two")}


def test_of_several_optimizers_the_one_whose_loss_it_is_is_named():
    class Own(Pair):
        def training_step_one(self, batch, batch_idx):
            return self.one(batch[0]).mean()

        def training_step_two(self, batch, batch_idx):
            return self.two(batch[0]).mean() * (math.inf if batch_idx == 1 else 1)

    model = Own()
    message, _ = stopped(model, tiny_loader())
    assert "inf in epoch 0, batch 1" in message and "for the optimizer 'two'" in message
    assert "it arises in training_step_two() itself, behind two (Linear)" in message


def test_of_losses_in_a_dict_the_one_that_is_not_finite_is_named_and_nobody_steps():
    class Shared(Pair):
        def training_step(self, batch, batch_idx):
            x = batch[0]
            if batch_idx == 1:
                self.before = state_of(self)
            return {"one": self.one(x).mean() * (math.nan if batch_idx == 1 else 1), "two": self.two(x).mean()}

    model = Shared()
    message, _ = stopped(model, tiny_loader())
    assert "nan in epoch 0, batch 1" in message and "for the optimizer 'one'" in message
    assert_state(model, model.before)


class Manual(Pair):
    automatic_optimization = False
    bad = "one"

    def training_step(self, batch, batch_idx):
        for name, optimizer in zip(("one", "two"), self.optimizers(), strict=True):
            loss = getattr(self, name)(batch[0]).mean()
            if batch_idx == 2 and name == self.bad:
                loss = loss * math.nan
            self.before = state_of(self)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(getattr(self, name).parameters(), 0.1) for name in ("one", "two")]


def test_manual_optimization_is_stopped_in_manual_backward():
    model = Manual()
    message, trainer = stopped(model, tiny_loader())
    assert "nan in epoch 0, batch 2, at global step 4." in message
    assert "it arises in training_step() itself, behind one (Linear)" in message
    assert trainer.global_step == 4
    assert_state(model, model.before)


def test_behind_another_optimizers_step_the_batch_is_run_again_up_to_there_alone():
    model = Manual()
    model.bad = "two"
    message, trainer = stopped(model, tiny_loader())
    assert "could be run again up to its first optimizer.step() alone" in message
    assert "with the weights behind the optimizer steps that it had taken: leyden replay" in message
    assert trainer.global_step == 5
    assert_state(model, model.before)


def test_a_loss_of_several_numbers_is_looked_at_too():
    class Vector(TinyModel):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            losses = self(batch[0]).mean(1)
            self.manual_backward(losses, gradient=torch.ones_like(losses))
            self.optimizers().step()

    with pytest.raises(NonFiniteLossError, match="The loss is not finite in epoch 0, batch 1"):
        trainer_with().fit(Vector(), data_with(math.nan, 20))


# What it says.


def test_the_first_submodule_whose_output_is_not_finite_is_named():
    class Divides(nn.Module):
        def forward(self, x):
            return x / (x - x)

    class Broken(TinyModel):
        def __init__(self):
            super().__init__()
            self.net.insert(1, Divides())

    message, _ = stopped(Broken(), tiny_loader())
    assert (
        "The first output that is not finite is that of net.1 (Divides), 512 of 512 numbers, from a finite input."
        in (message)
    )
    assert "The batch holds" not in message and "The parameter" not in message


def test_numbers_that_are_not_finite_in_the_batch_are_counted_by_place():
    class Named(TinyModel):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch["image"], batch["label"]), batch_idx)

    x, y = tiny_data(16).tensors
    x = x.clone()
    x[2, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    message, _ = stopped(Named(), [{"image": x, "label": y}])
    assert "The batch holds NaN or infinite numbers: batch['image'] (3 of 512 numbers)." in message
    assert "net.0 (Linear), 32 of 512 numbers, from an input with 3 of them." in message


def test_a_parameter_that_has_overflowed_before_is_named():
    class Overflows(TinyModel):
        def on_before_optimizer_step(self, optimizer):
            if self.global_step == 1:
                self.net[2].bias.grad[4] = -math.inf

    message, _ = stopped(Overflows(), tiny_loader())
    assert "in epoch 0, batch 2, at global step 2" in message
    assert "The parameter net.2.bias holds NaN or infinite numbers already (1 of 10)" in message


def test_the_step_is_run_again_with_the_same_dropout_mask():
    class Chance(TinyModel):
        """Divides by zero in one of several hundred steps, as its random numbers will have it."""

        def training_step(self, batch, batch_idx):
            drawn = torch.rand(())
            self.drawn.append(float(drawn))
            return super().training_step(batch, batch_idx) / (0.0 if drawn < 0.01 else 1.0)

    model = Chance()
    model.drawn = []
    message, _ = stopped(model, tiny_loader(1), max_epochs=2000, enable_checkpointing=False)
    assert model.drawn[-1] == model.drawn[-2] < 0.01
    assert "it arises in training_step() itself" in message


def test_a_step_that_is_finite_when_it_is_run_again_is_said_to_be():
    class Once(TinyModel):
        calls = 0

        def training_step(self, batch, batch_idx):
            self.calls += 1
            return super().training_step(batch, batch_idx) * (math.nan if self.calls == 2 else 1)

    message, _ = stopped(Once(), tiny_loader())
    assert "gave a finite loss: it depends on something else" in message


def test_a_step_that_fails_when_it_is_run_again_does_not_hide_the_loss():
    class Breaks(TinyModel):
        calls = 0

        def training_step(self, batch, batch_idx):
            self.calls += 1
            if self.calls == 2:
                raise KeyError("gone")
            return super().training_step(batch, batch_idx) * math.nan

    message, _ = stopped(Breaks(), tiny_loader())
    assert "Its step failed when it was run again: KeyError: 'gone'" in message


def test_what_the_second_run_logs_goes_nowhere_and_its_hooks_are_removed():
    class Logs(TinyModel):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("calls", 1.0, on_epoch=True, on_step=False, reduce_fx="sum")
            return loss

    model = Logs()
    _, trainer = stopped(model, data_with(math.nan, 40))
    (entry,) = trainer._run.results.entries.values()
    assert entry.total == 3.0
    assert all(not part._forward_hooks for part in model.modules())


def test_the_samples_of_the_batch_are_named():
    loader = data_with(math.nan, 20, shuffle=True, generator=torch.Generator().manual_seed(1))
    message, trainer = stopped(TinyModel(), loader)
    if finite.batch_indices(trainer._run) is None:
        pytest.skip("the loader does not tell its indices")
    named = re.search(r"by their indices in the dataset: ([\d, ]+)\.", message).group(1).split(", ")
    assert len(named) == 16 and "20" in named


# The file.


def bundles():
    return list(Path.cwd().rglob("*.bundle"))


def test_the_step_is_written_to_a_file_of_plain_values():
    class Saved(Noted):
        def __init__(self, lr=0.5):
            super().__init__(lr=lr)
            self.save_hyperparameters()

    model = Saved(0.25)
    loader = data_with(math.nan, 40)
    message, _ = stopped(model, loader)
    (path,) = bundles()
    assert path.name == "nonfinite-step=2.bundle" and f"leyden replay {path.name} --model" in message
    bundle = torch.load(path, weights_only=True)
    state, rng = model.states[2]
    for name, value in bundle["state_dict"].items():
        assert torch.equal(value, state[name]), name
    x, y = list(loader)[2]
    assert torch.equal(bundle["batch"][0].nan_to_num(), x.nan_to_num())
    assert torch.equal(bundle["batch"][1], y)
    assert torch.equal(bundle["rng"]["torch"], rng)
    assert bundle["hyper_parameters"] == {"lr": 0.25}
    assert (bundle["epoch"], bundle["batch_idx"], bundle["global_step"]) == (0, 2, 2)
    assert bundle["class_path"].endswith(":" + Saved.__qualname__)
    assert bundle["precision"] == "32-true"
    assert set(bundle["versions"]) == {"leyden", "torch", "python"}


@pytest.mark.parametrize("options", [{"enable_checkpointing": False}, {"fast_dev_run": 4}, {"barebones": True}])
def test_no_file_is_written_where_none_is_wanted(options):
    message, _ = stopped(TinyModel(), data_with(math.nan, 0), **options | {"logger": False})
    assert bundles() == [] and "leyden replay" not in message


def test_it_is_written_into_the_loggers_folder(tmp_path):
    logger = leyden.loggers.CSVLogger(tmp_path, name="run")
    stopped(TinyModel(), data_with(math.nan, 0), logger=logger)
    assert [path.parent for path in bundles()] == [Path(logger.log_dir)]


def test_a_batch_that_a_file_cannot_hold_is_named_and_the_loss_comes_first():
    class Odd:
        pass

    class Takes(TinyModel):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[:2], batch_idx)

    x, y = data_with(math.nan, 0).dataset.tensors
    message, _ = stopped(Takes(), [(x, y, Odd())])
    assert message.startswith("The loss is nan")
    assert re.search(r"No bundle was written, .*batch\[2\]: .*Odd", message)
    assert bundles() == []


def test_a_file_that_cannot_be_written_does_not_hide_the_loss(tmp_path):
    (tmp_path / "nonfinite-step=0.bundle" / "taken").mkdir(parents=True)
    message, _ = stopped(TinyModel(), data_with(math.nan, 0), default_root_dir=tmp_path)
    assert message.startswith("The loss is nan") and "No bundle was written: CheckpointError" in message


# Late: as on a GPU, where looking at once would have to wait.


@pytest.fixture
def late(monkeypatch):
    """Has the CPU treated as a device that is never waited for."""
    monkeypatch.setattr(finite, "_LATE", ("cpu",))


class Fused(TinyModel):
    """Notes its weights as every batch begins; its optimizer obeys a flag on the device."""

    def __init__(self, make=lambda p: torch.optim.Adam(p, fused=True)):
        super().__init__()
        self.make, self.states = make, []

    def configure_optimizers(self):
        return self.make(self.parameters())

    def on_train_batch_start(self, batch, batch_idx):
        self.states.append(state_of(self))


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_late_a_fused_optimizer_leaves_the_weights_as_they_were(kind):
    model = Fused(lambda p: kind(p, lr=0.1, fused=True))
    message, _ = stopped(model, data_with(math.nan, 40, batches=6))
    assert message.startswith("The loss is nan in epoch 0, batch 2, at global step 2; it was seen 1 batches later")
    assert "The weights are as they were before this step." in message
    assert "net.0 (Linear)" in message and "leyden replay nonfinite-step=2.bundle" in message
    assert len(model.states) == 4
    assert_state(model, model.states[2])
    assert torch.equal(
        torch.load("nonfinite-step=2.bundle", weights_only=True)["batch"][0].isnan().sum(), torch.tensor(1)
    )


@pytest.mark.usefixtures("late")
def test_late_another_optimizer_has_stepped_and_the_message_says_so(tmp_path):
    checkpoints = leyden.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    message, _ = stopped(TinyModel(), data_with(math.nan, 40, batches=6), callbacks=[checkpoints])
    assert "batch 2, at global step 2; it was seen 1 batches later" in message
    assert "SGD had stepped by then, so the weights have changed. The last checkpoint is " in message
    assert "The batch holds NaN or infinite numbers: batch[0] (1 of 512 numbers)." in message
    assert "The weights are as they were" not in message and bundles() == []


@pytest.mark.usefixtures("late")
def test_late_the_last_batch_of_an_epoch_is_settled_at_once():
    model = Fused()
    message, _ = stopped(model, data_with(math.nan, 50), max_epochs=3)
    assert "in epoch 0, batch 3, at global step 3; it was seen 0 batches later" in message
    assert_state(model, model.states[3])


@pytest.mark.usefixtures("late")
def test_late_a_finite_run_has_the_same_bits():
    ours = Fused()
    theirs = copy.deepcopy(ours)
    trainer_with(enable_checkpointing=False).fit(ours, tiny_loader())
    trainer_with(enable_checkpointing=False, on_nonfinite_loss="ignore").fit(theirs, tiny_loader())
    assert_state(ours, theirs.state_dict())


@pytest.mark.gpu
def test_on_a_gpu_the_weights_are_as_before_the_step_and_nothing_waits():
    class Model(Fused):
        def training_step(self, batch, batch_idx):
            torch.cuda.set_sync_debug_mode("error" if 2 <= batch_idx < 9 else "default")
            return super().training_step(batch, batch_idx)

    trainer = leyden.Trainer(accelerator="gpu", max_epochs=1, logger=False, enable_progress_bar=False)
    model = Fused()
    with pytest.raises(NonFiniteLossError, match="batch 2, at global step 2; it was seen"):
        trainer.fit(model, data_with(math.nan, 40, batches=12))
    assert_state(model.cpu(), {name: value.cpu() for name, value in model.states[2].items()})
    try:
        trainer_gpu = leyden.Trainer(accelerator="gpu", max_epochs=1, logger=False, enable_progress_bar=False)
        trainer_gpu.fit(Model(), tiny_loader(10))
    finally:
        torch.cuda.set_sync_debug_mode("default")
