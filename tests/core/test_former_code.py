"""What user code takes from Lightning 1.x besides hooks: refused before training, with what to write today."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leyden.core.callback import Callback
from leyden.core.datamodule import LightningDataModule
from leyden.trainer import Trainer
from leyden.utils.errors import LeydenWarning, MisconfigurationError
from models import TinyModel, ValidatedModel, tiny_loader

QUIET = {
    **{"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False},
    **{"enable_checkpointing": False, "max_epochs": 1, "num_sanity_val_steps": 0},
}


def fit(model: Any, *callbacks: Callback, datamodule: Any = None) -> Trainer:
    trainer = Trainer(**QUIET, callbacks=list(callbacks))
    trainer.fit(model, None if datamodule is not None else tiny_loader(2), datamodule=datamodule)
    return trainer


class Untrained(TinyModel):
    """Refuses to be trained: what it is tested for is found before."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise AssertionError("training has begun")


# Attributes of the module.


class Datamodule(Untrained):
    def on_train_start(self):
        self.size = self.datamodule.size


class Summarize(Untrained):
    def on_fit_start(self):
        self.summarize(mode="full")


class ModelSize(Untrained):
    def on_fit_start(self):
        print(self.model_size)


class Precision(Untrained):
    def on_train_batch_start(self, batch, batch_idx):
        if self.precision == 16:
            batch[0].half()


class UseAmp(Untrained):
    def on_fit_start(self):
        print(self.use_amp)


class GetProgressBarDict(Untrained):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        print(self.get_progress_bar_dict())


class WritePredictions(Untrained):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.write_predictions({"logits": outputs})


class GradNorm(Untrained):
    def on_after_backward(self):
        self.log_dict(self.grad_norm(2))


@pytest.mark.parametrize(
    ("model", "where", "today"),
    [
        (Datamodule, r"Datamodule\.on_train_start\(\) reads self\.datamodule", r"self\.trainer\.datamodule\."),
        (Summarize, r"Summarize\.on_fit_start\(\) reads self\.summarize", r"summarize\(self, max_depth=1\)"),
        (ModelSize, r"reads self\.model_size", r"summarize\(self\)\.model_size"),
        (Precision, r"reads self\.precision", r"self\.trainer\.precision"),
        (UseAmp, r"reads self\.use_amp", r"endswith\('-mixed'\)"),
        (GetProgressBarDict, r"reads self\.get_progress_bar_dict", "prog_bar=True"),
        (WritePredictions, r"reads self\.write_predictions", r"predict_step and call trainer\.predict\(\)"),
        (GradNorm, r"reads self\.grad_norm", r"leyden\.utilities\.grad_norm\(self, norm_type=2\)"),
    ],
)
def test_an_attribute_that_the_module_has_no_more_is_refused(model, where, today):
    with pytest.raises(MisconfigurationError, match=rf"{where}, which Lightning 1\.x had.*{today}"):
        fit(model())


def test_what_is_written_instead_works():
    class Today(ValidatedModel):
        def on_fit_start(self) -> None:
            from leyden.utilities.model_summary import summarize

            self.read = [
                summarize(self, max_depth=1).total_parameters,
                summarize(self).model_size,
                self.trainer.precision.endswith("-mixed"),
                self.trainer.datamodule,
            ]

    model = Today()
    with pytest.warns(LeydenWarning, match="LD051"):
        fit(model)
    assert model.read == [1386, 1386 * 4 / 1e6, False, None]


@pytest.mark.parametrize("place", ["class", "init", "hook", "method", "guarded", "callback"])
def test_an_attribute_of_the_users_own_is_fine(place):
    class OfClass(TinyModel):
        precision = 16

        def on_fit_start(self):
            print(self.precision)

    class OfInit(TinyModel):
        def __init__(self):
            super().__init__()
            self.precision = torch.nn.Identity()

        def on_fit_start(self):
            self.precision(torch.zeros(1))

    class OfHook(TinyModel):
        def setup(self, stage):
            self.datamodule = self.trainer.datamodule

        def on_fit_start(self):
            print(self.datamodule)

    class OfMethod(TinyModel):
        def summarize(self):
            return "mine"

        def on_fit_start(self):
            self.summarize()

    class Guarded(TinyModel):
        def on_fit_start(self):
            if hasattr(self, "datamodule"):
                print(self.datamodule)

    class OfCallback(TinyModel):
        def on_fit_start(self):
            print(self.datamodule)

    class Giving(Callback):
        def setup(self, trainer, pl_module, stage):
            pl_module.datamodule = trainer.datamodule

    kinds = {"class": OfClass, "init": OfInit, "hook": OfHook, "method": OfMethod, "guarded": Guarded}
    assert fit(kinds.get(place, OfCallback)(), *([Giving()] if place == "callback" else [])).global_step == 2


class NeedsTrainer(TinyModel):
    @property
    def datamodule(self):
        return self.trainer.datamodule

    def on_fit_start(self):
        print(self.datamodule)


class Delegating(TinyModel):
    def __getattr__(self, name):
        return 32 if name == "precision" else super().__getattr__(name)

    def on_fit_start(self):
        print(self.precision)


class Trying(TinyModel):
    def on_fit_start(self):
        try:
            print(self.datamodule)
        except AttributeError:
            print("none")


class ByName(TinyModel):
    def setup(self, stage):
        for name in ("pre" + "cision",):
            setattr(self, name, 16)

    def on_fit_start(self):
        print(self.precision)


class Enclosing(TinyModel):
    def on_fit_start(self):
        class Sized(torch.nn.Module):
            precision = 16

            def show(self):
                return self.precision

        Sized().show()


@pytest.mark.parametrize("model", [NeedsTrainer, Delegating, Trying, ByName, Enclosing])
def test_what_may_work_after_all_is_left_alone(model):
    assert fit(model()).global_step == 2


# Attributes of the datamodule.


class Dims(LightningDataModule):
    def setup(self, stage):
        print(self.dims)

    def train_dataloader(self):
        return tiny_loader(1)


class Transforms(Dims):
    def setup(self, stage):
        print(self.train_transforms)


class HasSetup(Dims):
    def setup(self, stage):
        if not self.has_setup_fit:
            print("once")


class Size(Dims):
    def setup(self, stage):
        print(self.size())


@pytest.mark.parametrize(
    ("kind", "name"), [(Dims, "dims"), (Transforms, "train_transforms"), (HasSetup, "has_setup_fit"), (Size, "size")]
)
def test_an_attribute_that_the_datamodule_has_no_more_is_refused(kind, name):
    with pytest.raises(MisconfigurationError, match=rf"{kind.__name__}\.setup\(\) reads self\.{name}, which"):
        fit(Untrained(), datamodule=kind())


def test_arguments_that_its_init_has_no_more_are_refused():
    with pytest.raises(TypeError, match=r"LightningDataModule\(train_transforms=.*self\.train_transforms ="):
        LightningDataModule(train_transforms=[])
    LightningDataModule(train_transforms=None, dims=None)


# self.log


class SyncDistOp(Untrained):
    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss, sync_dist=True, sync_dist_op="mean")
        return loss


class Tbptt(Untrained):
    def validation_step(self, batch, batch_idx):
        self.log_dict({"a": 1.0}, tbptt_pad_token=0)


class LoggingCallback(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.log("a", 1.0, tbptt_reduce_fx=torch.mean)


@pytest.mark.parametrize(
    ("model", "callbacks", "message"),
    [
        (SyncDistOp, [], r"SyncDistOp\.training_step\(\) calls self\.log\(sync_dist_op=.*reduce_fx='sum'"),
        (Tbptt, [], r"Tbptt\.validation_step\(\) calls self\.log_dict\(tbptt_pad_token=.*Leave it out"),
        (Untrained, [LoggingCallback], r"LoggingCallback\.on_train_batch_end\(\) .*tbptt_reduce_fx"),
    ],
)
def test_an_option_that_log_has_no_more_is_refused(model, callbacks, message):
    with pytest.raises(MisconfigurationError, match=message):
        fit(model(), *(callback() for callback in callbacks))


# super()


class OptimizerStep(Untrained):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_idx, closure, on_tpu, using_native_amp):
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_idx, closure, on_tpu=on_tpu)


class ZeroGrad(Untrained):
    def optimizer_zero_grad(self, epoch, batch_idx, optimizer, opt_idx):
        super(ZeroGrad, self).optimizer_zero_grad(epoch, batch_idx, optimizer, opt_idx)  # noqa: UP008


class Backward(Untrained):
    def backward(self, loss, optimizer, optimizer_idx):
        super().backward(loss, optimizer, optimizer_idx)


@pytest.mark.filterwarnings("ignore:.*LD178")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            OptimizerStep,
            r"hands optimizer_idx, on_tpu to super\(\)\.optimizer_step\(\).*"
            r"super\(\)\.optimizer_step\(epoch, batch_idx, optimizer, optimizer_closure\)",
        ),
        (ZeroGrad, r"hands opt_idx to super\(\)\.optimizer_zero_grad\(\).*\(epoch, batch_idx, optimizer\)"),
        (Backward, r"hands optimizer_idx to super\(\)\.backward\(\).*super\(\)\.backward\(loss\)"),
    ],
)
def test_arguments_that_supers_method_takes_no_more_are_refused(model, message):
    with pytest.raises(MisconfigurationError, match=message):
        fit(model())


def test_a_parent_of_the_users_own_may_take_them():
    class Parent(TinyModel):
        def on_before_optimizer_step(self, optimizer, optimizer_idx=0):
            self.index = optimizer_idx

    class Child(Parent):
        def on_before_optimizer_step(self, optimizer, optimizer_idx=7):
            super().on_before_optimizer_step(optimizer, optimizer_idx)

    model = Child()
    fit(model)
    assert model.index == 7


def test_an_old_signature_that_calls_super_as_today_works():
    class Warm(TinyModel):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_idx, closure, on_tpu=False):
            super().optimizer_step(epoch, batch_idx, optimizer, closure)

    with pytest.warns(LeydenWarning, match="LD178"):
        assert fit(Warm()).global_step == 2


# What a step returns.


def test_log_and_progress_bar_in_what_a_step_returns_are_pointed_at():
    class Old(TinyModel):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            return {"loss": loss, "log": {"train_loss": loss}, "progress_bar": {"loss": loss}}

    with pytest.warns(
        LeydenWarning, match=r"Old\.training_step\(\) returns 'log' and 'progress_bar'.*\[LD253\]"
    ) as said:
        fit(Old())
    assert len(said) == 1


def test_they_are_found_before_they_are_returned_too():
    class Old(ValidatedModel):
        def validation_step(self, batch, batch_idx):
            output = dict({"val_loss": self.loss(batch), "log": {}})
            return output

    with pytest.warns(LeydenWarning, match=r"Old\.validation_step\(\) returns 'log', "):
        Trainer(**QUIET).fit(Old(), tiny_loader(1), tiny_loader(1))


def test_another_dict_with_a_key_log_is_fine():
    class Fine(TinyModel):
        def training_step(self, batch, batch_idx):
            kinds = {"log": 1, "linear": 2}
            return {"loss": self.loss(batch), "kinds": kinds}

    assert fit(Fine()).global_step == 2


# The state of a callback.


class Returning(Callback):
    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        return {"count": 1}


class Taking(Callback):
    def on_load_checkpoint(self, trainer, pl_module, callback_state):
        self.count = callback_state["count"]


def test_a_state_that_on_save_checkpoint_returns_is_refused_since_it_would_be_lost():
    with pytest.raises(MisconfigurationError, match=r"Returning\.on_save_checkpoint\(\) returns .*state_dict\(self\)"):
        fit(Untrained(), Returning())


def test_on_load_checkpoint_that_takes_a_state_is_refused_since_it_would_get_the_checkpoint():
    with pytest.raises(MisconfigurationError, match=r"Taking\.on_load_checkpoint\(\) takes .*load_state_dict\(self"):
        fit(Untrained(), Taking())


def test_on_load_checkpoint_with_the_checkpoint_alone_is_refused():
    class Old(Callback):
        def on_load_checkpoint(self, checkpoint):
            pass

    with pytest.raises(MisconfigurationError, match=r"will get: on_load_checkpoint\(trainer, pl_module, checkpoint\)"):
        fit(Untrained(), Old())


def test_on_save_checkpoint_may_return_the_checkpoint_or_a_state_that_state_dict_returns_too():
    class Changed(Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            checkpoint["n"] = 1
            return checkpoint

    class Both(Callback):
        def state_dict(self):
            return {"count": 1}

        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            return self.state_dict()

    trainer = fit(TinyModel(), Changed(), Both())
    trainer.save_checkpoint("a.ckpt")
    saved = torch.load("a.ckpt", weights_only=True)
    assert saved["n"] == 1
    assert {"count": 1} in saved["callbacks"].values()


def test_on_save_checkpoint_may_return_nothing_or_what_super_returns():
    class Fine(Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            def inner():
                return 1

            checkpoint["n"] = inner()
            if checkpoint["n"] == 2:
                return None
            return super().on_save_checkpoint(trainer, pl_module, checkpoint)

    trainer = fit(TinyModel(), Fine())
    trainer.save_checkpoint("a.ckpt")
    assert torch.load("a.ckpt", weights_only=True)["n"] == 1


# Hooks that are gone.


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("on_epoch_start", r"on_train_epoch_start\(\)"),
        ("on_epoch_end", r"on_train_epoch_end\(\)"),
        ("on_batch_start", r"on_train_batch_start\(\)"),
        ("on_batch_end", r"on_train_batch_end\(\)"),
        ("on_pretrain_routine_start", r"on_fit_start\(\)"),
        ("on_pretrain_routine_end", r"on_fit_start\(\)"),
        ("on_init_start", r"setup\(\)"),
        ("on_init_end", r"setup\(\)"),
        ("on_keyboard_interrupt", r"on_exception\(\)"),
        ("on_hpc_save", r"on_save_checkpoint\(\)"),
        ("on_hpc_load", r"on_load_checkpoint\(\)"),
        ("on_post_move_to_device", r"on_fit_start\(\)"),
        ("on_configure_sharded_model", r"setup\(\)"),
        ("on_before_accelerator_backend_setup", r"setup\(\)"),
        ("configure_sharded_model", r"configure_model\(\)"),
        ("on_train_dataloader", r"Define train_dataloader\(\)"),
        ("on_val_dataloader", r"Define val_dataloader\(\)"),
        ("on_reset_train_dataloader", r"Define train_dataloader\(\)"),
        ("tbptt_split_batch", "split the batch in training_step"),
    ],
)
@pytest.mark.parametrize("owner", ["module", "callback"])
def test_a_hook_that_is_gone_says_what_does_its_work(name, instead, owner):
    def hook(self, *arguments: Any) -> None:
        """Does nothing."""

    model = type("Old", (Untrained,), {name: hook})() if owner == "module" else Untrained()
    callbacks = [type("Old", (Callback,), {name: hook})()] if owner == "callback" else []
    with pytest.raises(MisconfigurationError, match=rf"Old\.{name}\(\), a hook of Lightning 1\.x.*{instead}"):
        fit(model, *callbacks)


def test_configure_optimizers_with_a_frequency_is_refused():
    class Old(Untrained):
        def configure_optimizers(self):
            return {"optimizer": torch.optim.SGD(self.parameters(), lr=0.1), "frequency": 5}

    with pytest.raises(MisconfigurationError, match="unknown key 'frequency'"):
        fit(Old())


@pytest.mark.parametrize("extra", ["hiddens", "optimizer_idx"])
def test_a_training_step_with_arguments_that_are_gone_is_refused(extra):
    namespace: dict[str, Any] = {}
    exec(f"def training_step(self, batch, batch_idx, {extra}): pass", namespace)
    model = type("Old", (Untrained,), {"training_step": namespace["training_step"]})()
    with pytest.raises(MisconfigurationError, match=rf"training_step\(batch, batch_idx, {extra}\) must take"):
        fit(model)


@pytest.mark.parametrize("step", ["training_step", "validation_step", "test_step", "predict_step"])
def test_a_step_that_asks_for_the_iterator_of_the_loader_is_refused(step):
    namespace: dict[str, Any] = {}
    exec(f"def {step}(self, dataloader_iter): pass", namespace)
    model = type("Iterating", (ValidatedModel,), {step: namespace[step]})()
    method = {"training_step": "fit", "validation_step": "validate", "test_step": "test", "predict_step": "predict"}[
        step
    ]
    with pytest.raises(MisconfigurationError, match=rf"Iterating\.{step}\(dataloader_iter\).*not built yet.*batch"):
        getattr(Trainer(**QUIET), method)(model, tiny_loader(1))
