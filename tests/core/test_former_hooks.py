"""Hooks of Lightning 1.x: called as they were then, each with one warning that names today's spelling."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from leyden.callbacks.early_stopping import EarlyStopping
from leyden.core.callback import Callback
from leyden.trainer import Trainer
from leyden.utils.errors import LeydenWarning, MisconfigurationError
from models import TinyModel, ValidatedModel, tiny_loader

QUIET = {
    **{"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False},
    **{"enable_checkpointing": False, "max_epochs": 1, "num_sanity_val_steps": 0},
}


def warned(method: str, *args: Any, **options: Any) -> tuple[Trainer, list[str]]:
    """Call ``method`` of a quiet Trainer; returns it and what it warned of."""
    trainer = Trainer(**{**QUIET, **options})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        getattr(trainer, method)(*args)
    return trainer, [str(each.message) for each in said if issubclass(each.category, LeydenWarning)]


def ids(said: list[str]) -> list[str]:
    return [message[-6:-1] for message in said]


# The ends of epochs.


class EpochEnds(ValidatedModel):
    """Keeps what the hooks at the ends of epochs are called with, and the order of all ends."""

    def __init__(self) -> None:
        super().__init__()
        self.got: dict[str, list[Any]] = {}
        self.order: list[str] = []

    def note(self, name: str, outputs: Any = None) -> None:
        self.order.append(name)
        self.got.setdefault(name, []).append(outputs)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return (dataloader_idx, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx == 0 else torch.tensor(batch_idx)

    def training_epoch_end(self, outputs: Any) -> None:
        self.note("training_epoch_end", outputs)
        self.log("mean_loss", torch.stack([each["loss"] for each in outputs]).mean())

    def on_train_epoch_end(self) -> None:
        self.note("on_train_epoch_end")

    def validation_epoch_end(self, outputs: Any) -> None:
        self.note("validation_epoch_end", outputs)
        self.log("val_batches", float(len(outputs)))

    def on_validation_epoch_end(self) -> None:
        self.note("on_validation_epoch_end")

    def test_epoch_end(self, outputs: Any) -> None:
        self.note("test_epoch_end", outputs)


class Noting(Callback):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.order.append("callback's on_train_epoch_end")

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.order.append("callback's on_validation_epoch_end")


def test_the_outputs_of_training_are_dicts_with_the_detached_loss_one_for_each_batch_of_the_epoch():
    model = EpochEnds()
    trainer, _ = warned("fit", model, tiny_loader(3), max_epochs=2)
    first, second = model.got["training_epoch_end"]
    assert [list(each) for each in first + second] == [["loss"]] * 6
    assert not any(each["loss"].requires_grad for each in first)
    assert trainer.callback_metrics["mean_loss"] == torch.stack([each["loss"] for each in second]).mean()


def test_other_keys_of_a_training_steps_dict_are_there_detached():
    class Model(EpochEnds):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            logits = self(batch[0])
            return {"loss": self.loss(batch), "logits": [logits], "index": batch_idx}

    model = Model()
    warned("fit", model, tiny_loader(2))
    ((first, second),) = model.got["training_epoch_end"]
    assert first["logits"][0].shape == (16, 10)
    assert not first["logits"][0].requires_grad
    assert (first["index"], second["index"]) == (0, 1)


def test_a_batch_that_training_skips_is_not_among_the_outputs():
    class Model(EpochEnds):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 1 else self.loss(batch)

    model = Model()
    warned("fit", model, tiny_loader(3))
    assert len(model.got["training_epoch_end"][0]) == 2


def test_they_come_before_the_hooks_of_today_at_the_end_of_the_same_stage():
    model = EpochEnds()
    warned("fit", model, tiny_loader(2), tiny_loader(1), callbacks=[Noting()])
    assert model.order == [
        *("validation_epoch_end", "callback's on_validation_epoch_end", "on_validation_epoch_end"),
        *("training_epoch_end", "callback's on_train_epoch_end", "on_train_epoch_end"),
    ]


def test_the_outputs_of_validation_are_what_the_step_returned_afresh_for_every_validation():
    model = EpochEnds()
    trainer, _ = warned("fit", model, tiny_loader(4), tiny_loader(2), val_check_interval=2, num_sanity_val_steps=1)
    assert model.got["validation_epoch_end"] == [[(0, 0)], [(0, 0), (0, 1)], [(0, 0), (0, 1)]]
    assert trainer.callback_metrics["val_batches"] == 2


def test_several_loaders_make_a_list_of_lists():
    model = EpochEnds()
    warned("validate", model, [tiny_loader(2), tiny_loader(1)])
    assert model.got["validation_epoch_end"] == [[[(0, 0), (0, 1)], [(1, 0)]]]


def test_a_loader_whose_steps_return_nothing_makes_an_empty_list():
    class Model(EpochEnds):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> Any:
            return None if dataloader_idx else batch_idx

    model = Model()
    warned("validate", model, [tiny_loader(2), tiny_loader(1)])
    assert model.got["validation_epoch_end"] == [[[0, 1], []]]


def test_a_test_has_its_hook_too_and_none_of_its_steps_is_left_out_but_those_that_return_nothing():
    model = EpochEnds()
    _, said = warned("test", model, tiny_loader(3))
    assert model.got["test_epoch_end"] == [[torch.tensor(1), torch.tensor(2)]]
    assert ids(said) == ["LD176"]
    assert said[0].startswith("EpochEnds.test_epoch_end() is a hook of Lightning 1.x. Today: append what test_step")


def test_each_hook_that_is_called_warns_once_and_names_todays():
    _, said = warned("fit", EpochEnds(), tiny_loader(2), tiny_loader(1), max_epochs=2)
    assert ids(said) == ["LD176", "LD176"]
    assert "training_epoch_end" in said[0]
    assert "on_train_epoch_end()" in said[0]
    assert "on_validation_epoch_end()" in said[1]


def test_logging_there_by_step_is_refused():
    class Model(TinyModel):
        def training_epoch_end(self, outputs: Any) -> None:
            self.log("mean", 1.0, on_step=True)

    with pytest.raises(MisconfigurationError, match=r"on_step=True\) in training_epoch_end: only on_epoch=True"):
        warned("fit", Model(), tiny_loader(1))


def test_what_an_epoch_end_returns_goes_nowhere_and_says_so():
    class Model(TinyModel):
        def training_epoch_end(self, outputs: Any) -> Any:
            return {"log": {"loss": 1.0}}

    _, said = warned("fit", Model(), tiny_loader(1), max_epochs=2)
    assert ids(said) == ["LD176", "LD179"]
    assert said[1].startswith("Model.training_epoch_end() returned a dict, which goes nowhere. Use self.log.")


def test_one_epoch_end_may_call_another():
    class Model(EpochEnds):
        def test_epoch_end(self, outputs: Any) -> None:
            self.validation_epoch_end(outputs)

    model = Model()
    warned("fit", model, tiny_loader(1), tiny_loader(1))
    warned("test", model, tiny_loader(2))
    assert [len(each) for each in model.got["validation_epoch_end"]] == [1, 1]


def test_a_method_that_the_module_calls_itself_is_no_hook():
    class Model(TinyModel):
        calls = 0

        def on_train_epoch_end(self) -> None:
            self.training_epoch_end([])

        def training_epoch_end(self, outputs: Any) -> None:
            self.calls += 1

    model = Model()
    _, said = warned("fit", model, tiny_loader(1))
    assert (model.calls, said) == (1, [])


def test_a_subclass_may_extend_the_hook_with_super():
    class Model(EpochEnds):
        def training_epoch_end(self, outputs: Any) -> None:
            super().training_epoch_end(outputs)

    model = Model()
    warned("fit", model, tiny_loader(2))
    assert len(model.got["training_epoch_end"][0]) == 2


def test_what_is_logged_there_can_be_monitored_with_several_loaders_too():
    stop = EarlyStopping(monitor="val_batches", patience=1)
    trainer, _ = warned("fit", EpochEnds(), tiny_loader(1), [tiny_loader(1)] * 2, max_epochs=9, callbacks=[stop])
    assert trainer.current_epoch == 2


def test_what_only_a_test_logs_cannot_be_monitored_in_fit():
    class Model(ValidatedModel):
        def test_epoch_end(self, outputs: Any) -> None:
            self.log("tested", 1.0)

    with pytest.raises(MisconfigurationError, match="'tested' is logged in a step that fit does not run"):
        warned("fit", Model(), tiny_loader(1), tiny_loader(1), callbacks=[EarlyStopping(monitor="tested")])


def test_a_callback_that_comes_in_the_middle_of_a_fit_gets_the_outputs_of_its_epochs():
    class Adds(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 0:
                trainer.callbacks.append(added)

    added = OldCallback()
    warned("fit", TinyModel(), tiny_loader(2), max_epochs=2, callbacks=[Adds()])
    assert added.seen[-1] == [["loss"], ["loss"]]


def test_the_hooks_change_no_weight():
    plain, former = ValidatedModel(), EpochEnds()
    warned("fit", plain, tiny_loader(4))
    warned("fit", former, tiny_loader(4))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), former.parameters(), strict=True))


def test_after_a_resume_in_mid_epoch_the_outputs_are_those_since(tmp_path):
    model = EpochEnds()
    trainer, _ = warned("fit", model, tiny_loader(5), max_steps=2)
    assert len(model.got["training_epoch_end"][0]) == 2
    trainer.save_checkpoint(tmp_path / "mid.ckpt")
    resumed = EpochEnds()
    with pytest.warns(LeydenWarning):
        Trainer(**QUIET).fit(resumed, tiny_loader(5), ckpt_path=tmp_path / "mid.ckpt")
    assert len(resumed.got["training_epoch_end"][0]) == 3


# The ends of steps.


def test_what_a_step_end_returns_takes_the_place_of_what_the_step_returned():
    class Model(TinyModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch[0]), batch[1]

        def training_step_end(self, outputs: Any) -> Any:
            loss = torch.nn.functional.cross_entropy(*outputs)
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return batch_idx

        def validation_step_end(self, outputs: Any) -> Any:
            self.log("index", float(outputs))
            return outputs + 10

        def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.ended.append(outputs)

    plain, model = TinyModel(), Model()
    model.ended = []
    warned("fit", plain, tiny_loader(3))
    trainer, said = warned("fit", model, tiny_loader(3), tiny_loader(3))
    assert ids(said) == ["LD177", "LD177"]
    assert "do its work at the end of training_step" in said[0]
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert model.ended == [10, 11, 12]
    assert trainer.callback_metrics["index"] == 1.0
    assert "train_loss" in trainer.callback_metrics


def test_a_step_end_that_returns_nothing_leaves_the_steps_result():
    class Model(ValidatedModel):
        ended = 0

        def training_step_end(self, outputs: Any) -> None:
            self.ended += 1

    model, plain = Model(), ValidatedModel()
    warned("fit", model, tiny_loader(3))
    warned("fit", plain, tiny_loader(3))
    assert model.ended == 3
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))


def test_test_step_end_is_called_after_the_step():
    class Model(ValidatedModel):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch)

        def test_step_end(self, outputs: Any) -> None:
            self.log("test_loss", outputs)

    trainer, said = warned("test", Model(), tiny_loader(1))
    assert ids(said) == ["LD177"]
    assert set(trainer.callback_metrics) == {"test_loss"}


# Parameters.


class OldParameters(TinyModel):
    """Every method with the parameters of 1.x; does what the methods of today do by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Any] = {}

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        return [optimizer], [{"scheduler": StepLR(optimizer, 1, 0.5), "interval": "step"}]

    def optimizer_step(
        self,
        epoch,
        batch_idx,
        optimizer,
        optimizer_idx=0,
        optimizer_closure=None,
        on_tpu=True,
        using_native_amp=True,
        using_lbfgs=True,
    ):
        self.seen["optimizer_step"] = (epoch, batch_idx, optimizer_idx, on_tpu, using_native_amp, using_lbfgs)
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer, optimizer_idx):
        self.seen["optimizer_zero_grad"] = (epoch, batch_idx, optimizer_idx)
        optimizer.zero_grad()

    def backward(self, loss, optimizer, optimizer_idx, *args, **kwargs):
        self.seen["backward"] = (type(optimizer), optimizer_idx)
        loss.backward(*args, **kwargs)

    def lr_scheduler_step(self, scheduler, optimizer_idx, metric):
        self.seen["lr_scheduler_step"] = (optimizer_idx, metric)
        scheduler.step()

    def on_before_optimizer_step(self, optimizer, optimizer_idx):
        self.seen["on_before_optimizer_step"] = (type(optimizer), optimizer_idx)

    def configure_gradient_clipping(self, optimizer, optimizer_idx, gradient_clip_val, gradient_clip_algorithm):
        self.seen["configure_gradient_clipping"] = (optimizer_idx, gradient_clip_val, gradient_clip_algorithm)
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_batch_start(self, batch, batch_idx, dataloader_idx):
        self.seen["on_train_batch_start"] = (batch_idx, dataloader_idx)

    def on_train_batch_end(self, outputs, batch, batch_idx, dataloader_idx):
        self.seen["on_train_batch_end"] = (list(outputs), batch_idx, dataloader_idx)

    def on_train_epoch_end(self, outputs):
        self.seen["on_train_epoch_end"] = len(outputs)


OLD = {
    "optimizer_step": (0, 2, 0, False, False, False),
    "optimizer_zero_grad": (0, 2, 0),
    "backward": (SGD, 0),
    "lr_scheduler_step": (0, None),
    "on_before_optimizer_step": (SGD, 0),
    "configure_gradient_clipping": (0, 0.5, "norm"),
    "on_train_batch_start": (2, 0),
    "on_train_batch_end": (["loss"], 2, 0),
    "on_train_epoch_end": 3,
}


def test_methods_with_the_parameters_of_1_are_called_with_them_and_each_warns_once():
    model = OldParameters()
    trainer, said = warned("fit", model, tiny_loader(3), gradient_clip_val=0.5)
    assert model.seen == OLD
    assert trainer.global_step == 3
    assert ids(said) == ["LD178"] * 9
    assert sorted(message.split()[0] for message in said) == sorted(f"OldParameters.{name}()" for name in OLD)


@pytest.mark.parametrize(
    ("name", "today"),
    [
        ("optimizer_step", "epoch, batch_idx, optimizer, optimizer_closure"),
        ("optimizer_zero_grad", "epoch, batch_idx, optimizer"),
        ("backward", "loss"),
        ("lr_scheduler_step", "scheduler, metric"),
        ("on_before_optimizer_step", "optimizer"),
        ("configure_gradient_clipping", "optimizer, gradient_clip_val, gradient_clip_algorithm"),
        ("on_train_batch_start", "batch, batch_idx"),
        ("on_train_batch_end", "outputs, batch, batch_idx"),
        ("on_train_epoch_end", ""),
    ],
)
def test_the_warning_gives_todays_parameters(name, today):
    _, said = warned("fit", OldParameters(), tiny_loader(1))
    where = f"OldParameters.{name}()"
    assert f"{where} has the parameters of Lightning 1.x. Today: {name}({today}). [LD178]" in said


def test_they_train_as_todays_do():
    class Today(OldParameters):
        optimizer_step, optimizer_zero_grad = TinyModel.optimizer_step, TinyModel.optimizer_zero_grad
        backward, lr_scheduler_step = TinyModel.backward, TinyModel.lr_scheduler_step
        configure_gradient_clipping = TinyModel.configure_gradient_clipping

    old, today = OldParameters(), Today()
    warned("fit", old, tiny_loader(4), gradient_clip_val=0.5)
    warned("fit", today, tiny_loader(4), gradient_clip_val=0.5)
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), today.parameters(), strict=True))


class OldCallback(Callback):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx):
        self.seen.append((batch_idx, dataloader_idx))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer, opt_idx):
        self.seen.append(opt_idx)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx):
        self.seen.append((list(outputs), batch_idx, dataloader_idx))

    def on_train_epoch_end(self, trainer, pl_module, outputs):
        self.seen.append([list(each) for each in outputs])


def test_callbacks_with_the_parameters_of_1_are_called_with_them():
    callback = OldCallback()
    _, said = warned("fit", TinyModel(), tiny_loader(1), callbacks=[callback])
    assert callback.seen == [(0, 0), 0, (["loss"], 0, 0), [["loss"]]]
    assert ids(said) == ["LD178"] * 4
    expected = (
        "OldCallback.on_train_epoch_end() has the parameters of Lightning 1.x. Today: on_train_epoch_end(trainer,"
    )
    assert any(message.startswith(expected) for message in said)


def test_the_ends_of_validation_and_test_get_the_outputs_that_they_ask_for():
    class Model(ValidatedModel):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Any] = []

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return (dataloader_idx, batch_idx)

        def test_step(self, batch: Any, batch_idx: int) -> Any:
            return batch_idx

        def on_validation_epoch_end(self, outputs):
            self.seen.append(outputs)

        def on_test_epoch_end(self, outputs):
            self.seen.append(outputs)

    class Watching(Callback):
        def on_validation_epoch_end(self, trainer, pl_module, outputs):
            pl_module.seen.append(("callback", outputs))

    model = Model()
    _, said = warned("validate", model, [tiny_loader(2), tiny_loader(1)], callbacks=[Watching()])
    outputs = [[(0, 0), (0, 1)], [(1, 0)]]
    assert model.seen == [("callback", outputs), outputs]
    assert ids(said) == ["LD178"] * 3  # the module's two, and the callback's
    model.seen.clear()
    warned("test", model, tiny_loader(2))
    assert model.seen == [[0, 1]]


def test_parameters_of_1_that_have_a_default_are_fine_where_todays_call_does():
    class Model(TinyModel):
        def on_train_batch_start(self, batch, batch_idx, dataloader_idx=0):
            pass

        def on_train_epoch_end(self, unused=None):
            pass

        def on_before_optimizer_step(self, optimizer, optimizer_idx=0):
            pass

    assert warned("fit", Model(), tiny_loader(1))[1] == []


def test_the_index_is_that_of_the_optimizer():
    class Model(TinyModel):
        def __init__(self) -> None:
            super().__init__()
            self.indices: list[int] = []

        def configure_optimizers(self) -> Any:
            first, last = SGD(self.net[0].parameters(), lr=0.1), SGD(self.net[2].parameters(), lr=0.1)
            return {"first": first, "last": {"optimizer": last, "lr_scheduler": StepLR(last, 1)}}

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"first": self.loss(batch), "last": self.loss(batch)}

        def on_before_optimizer_step(self, optimizer, optimizer_idx):
            self.indices.append(optimizer_idx)

        def lr_scheduler_step(self, scheduler, optimizer_idx, metric):
            self.indices.append(optimizer_idx + 10)
            scheduler.step()

    model = Model()
    warned("fit", model, tiny_loader(2))
    assert model.indices == [0, 1, 0, 1, 11]


def test_a_scheduler_by_metric_gets_it():
    class Model(ValidatedModel):
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=0.1)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "train_loss"},
            }

        def lr_scheduler_step(self, scheduler, optimizer_idx, metric):
            self.metric = metric
            scheduler.step(metric)

    model = Model()
    trainer, _ = warned("fit", model, tiny_loader(2))
    assert model.metric == trainer.callback_metrics["train_loss"]


def test_in_manual_optimization_backward_knows_no_optimizer():
    class Model(TinyModel):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

        def backward(self, loss, optimizer, optimizer_idx):
            self.got = (optimizer, optimizer_idx)
            loss.backward()

    model = Model()
    trainer, _ = warned("fit", model, tiny_loader(2))
    assert (model.got, trainer.global_step) == ((None, None), 2)


def test_optimizer_step_is_told_of_mixed_precision_and_of_lbfgs():
    class Model(TinyModel):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters())

        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_idx, closure, using_native_amp, using_lbfgs):
            self.got = (using_native_amp, using_lbfgs)
            optimizer.step(closure=closure)

    model = Model()
    trainer, _ = warned("fit", model, tiny_loader(2), precision="bf16-mixed")
    assert (model.got, trainer.global_step) == ((True, True), 2)


def test_lbfgs_which_runs_a_step_again_gives_one_output_a_batch():
    class Model(EpochEnds):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters())

    model = Model()
    warned("fit", model, tiny_loader(2))
    assert len(model.got["training_epoch_end"][0]) == 2
