"""Validation, test and prediction: what they return, print and log, and what they leave as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from leyden import Callback, LightningDataModule, LightningModule
from leyden.callbacks import ModelCheckpoint
from leyden.loggers.logger import Logger
from leyden.utils.errors import MisconfigurationError
from recording import Plain, bare, ones


def numbered(*sizes: int, first: int = 0) -> DataLoader[Any]:
    """Batches of the given sizes, of shape (size, 4), filled with their index from ``first`` on."""
    return DataLoader([torch.full((size, 4), float(first + i)) for i, size in enumerate(sizes)], batch_size=None)


class Mean(Plain):
    """Logs the batch's number as ``x`` in validation and test, and predicts it."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("x", batch[0, 0])

    test_step = validation_step

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return batch[:, 0]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


# What they return.


@pytest.mark.parametrize("method", ["validate", "test"])
def test_one_loader_returns_one_dict_with_means_weighted_by_samples(method):
    assert getattr(bare(), method)(Mean(), numbered(2, 6), verbose=False) == [{"x": 6 / 8}]


@pytest.mark.parametrize("method", ["validate", "test"])
def test_several_loaders_return_a_dict_each_with_the_loaders_index_in_the_names(method):
    found = getattr(bare(), method)(Mean(), [numbered(2), numbered(2, 2, first=10)], verbose=False)
    assert found == [{"x/dataloader_idx_0": 0.0}, {"x/dataloader_idx_1": 10.5}]


def test_loaders_in_a_dict_give_the_names_their_keys():
    found = bare().test(Mean(), {"clean": numbered(2), "noisy": numbered(2, first=10)}, verbose=False)
    assert found == [{"x/clean": 0.0}, {"x/noisy": 10.0}]


def test_a_list_of_ready_batches_is_one_loader():
    assert bare().test(Mean(), [torch.zeros(2, 4), torch.ones(2, 4)], verbose=False) == [{"x": 0.5}]


def test_values_logged_at_the_end_belong_to_every_loader():
    class Model(Mean):
        def on_test_epoch_end(self):
            self.log("all", 1.0)

    found = bare().test(Model(), [numbered(2), numbered(2)], verbose=False)
    assert found == [{"x/dataloader_idx_0": 0.0, "all": 1.0}, {"x/dataloader_idx_1": 0.0, "all": 1.0}]


def test_a_step_that_logs_nothing_returns_empty_dicts():
    assert bare().test(Plain(), ones(1)) == [{}]


@pytest.mark.parametrize(
    ("verbose", "printed"),
    [(True, ["test metric", "x/dataloader_idx_0", "x/dataloader_idx_1", "10.5"]), (False, [])],
)
def test_the_metrics_are_printed_as_a_table_if_verbose(verbose, printed, capsys):
    bare().test(Mean(), [numbered(2), numbered(2, 2, first=10)], verbose=verbose)
    out = capsys.readouterr().out
    assert all(word in out for word in printed)
    assert verbose or not out


def test_the_metrics_are_in_callback_metrics_too():
    trainer = bare()
    trainer.test(Mean(), [numbered(2), numbered(2, first=3)], verbose=False)
    found = trainer.callback_metrics
    assert {name: value.item() for name, value in found.items()} == {
        "x/dataloader_idx_0": 0.0,
        "x/dataloader_idx_1": 3.0,
    }


# Predictions.


def test_predictions_of_one_loader_are_a_list_of_what_the_step_returned():
    found = bare().predict(Mean(), numbered(2, 1))
    assert [batch.tolist() for batch in found] == [[0.0, 0.0], [1.0]]


def test_predictions_of_several_loaders_are_a_list_for_each():
    found = bare().predict(Mean(), [numbered(1), numbered(1, 1, first=5)])
    assert [[batch.tolist() for batch in loader] for loader in found] == [[[0.0]], [[5.0], [6.0]]]


def test_predictions_may_be_nested_and_keep_no_graph():
    class Model(Plain):
        def predict_step(self, batch, batch_idx):
            with torch.enable_grad():
                return {"y": [self.layer(batch)], "name": "a"}

    [found] = bare(inference_mode=False).predict(Model(), ones(1))
    assert found["name"] == "a"
    assert not found["y"][0].requires_grad


def test_a_prediction_that_is_a_tensor_with_a_graph_keeps_none():
    class Model(Plain):
        def predict_step(self, batch, batch_idx):
            return self.layer.weight

    model = Model()
    [found] = bare(inference_mode=False).predict(model, ones(1))
    assert type(found) is torch.Tensor and not found.requires_grad
    assert torch.equal(found, model.layer.weight)


def test_predictions_are_not_kept_if_nobody_wants_them():
    heard = []

    class Writes(Callback):
        def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            heard.append((batch_idx, dataloader_idx, outputs.tolist()))

    trainer = bare(callbacks=[Writes()])
    assert trainer.predict(Mean(), [numbered(1), numbered(1, first=5)], return_predictions=False) is None
    assert heard == [(0, 0, [0.0]), (0, 1, [5.0])]


def test_without_a_predict_step_forward_predicts():
    class Model(LightningModule):
        def forward(self, x):
            return x * 2

    [found] = bare().predict(Model(), numbered(1, first=4))
    assert found.tolist() == [[8.0] * 4]


def test_without_both_prediction_is_refused():
    with pytest.raises(MisconfigurationError, match=r"neither predict_step\(\) nor forward\(\)"):
        bare().predict(LightningModule(), ones(1))


def test_nothing_can_be_logged_in_prediction():
    class Model(Plain):
        def predict_step(self, batch, batch_idx):
            self.log("x", 1.0)

    with pytest.raises(MisconfigurationError, match="predict_step"):
        bare().predict(Model(), ones(1))


# How the step is called.


def test_a_step_is_given_as_many_indices_as_it_declares():
    calls = []

    class Model(Plain):
        def validation_step(self, batch):
            calls.append("batch")

        def test_step(self, batch, batch_idx):
            calls.append(batch_idx)

        def predict_step(self, batch, batch_idx, dataloader_idx):
            calls.append((batch_idx, dataloader_idx))

    model = Model()
    bare().validate(model, ones(1))
    bare().test(model, ones(2))
    bare().predict(model, [ones(1), ones(2)])
    assert calls == ["batch", 0, 1, (0, 0), (0, 1), (1, 1)]


def test_several_loaders_need_a_step_that_is_told_which():
    class Model(Plain):
        def test_step(self, batch, batch_idx):
            pass

    with pytest.raises(MisconfigurationError, match=r"several loaders.*\(batch, batch_idx, dataloader_idx\)"):
        bare().test(Model(), [ones(1), ones(1)])


def test_a_hook_of_a_batch_may_leave_the_loaders_index_out():
    heard = []

    class Hears(Callback):
        def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            heard.append(batch_idx)

    class Model(Plain):
        def on_test_batch_start(self, batch, batch_idx):
            heard.append(-batch_idx)

    bare(callbacks=[Hears()]).test(Model(), [ones(1), ones(2)])
    assert heard == [0, 0, 0, 0, -1, 1]


def test_outputs_are_what_the_step_returned():
    class Model(Plain):
        def validation_step(self, batch, batch_idx):
            return {"loss": 1, "y": batch}

        def on_validation_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0):
            assert outputs == {"loss": 1, "y": batch}
            self.heard = True

    bare().validate(model := Model(), ones(1))
    assert model.heard


# Modes.


class Asks(Plain):
    """Notes for every step whether inference mode and gradients are on, and whether layers are in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = torch.nn.Dropout().eval()
        self.found: list[tuple[bool, bool, bool]] = []

    def validation_step(self, batch, batch_idx):
        self.found.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled(), self.layer.training))

    test_step = predict_step = validation_step

    def modes(self) -> tuple[bool, bool, bool]:
        return self.training, self.layer.training, self.frozen.training


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
@pytest.mark.parametrize("inference_mode", [True, False])
def test_evaluation_runs_without_gradients_in_evaluation_mode(method, inference_mode):
    model = Asks()
    getattr(bare(inference_mode=inference_mode), method)(model, ones(1))
    assert model.found == [(inference_mode, False, False)]
    assert model.modes() == (True, True, False)  # as they were


@pytest.mark.filterwarnings("ignore:1 submodules are in evaluation mode")
def test_validation_inside_fit_never_uses_inference_mode():
    model = Asks()
    bare(inference_mode=True, num_sanity_val_steps=1).fit(model, ones(1), ones(1))
    assert model.found == [(False, False, False)] * 2
    assert torch.is_grad_enabled()


def test_a_module_may_choose_its_modes_itself():
    class Model(Asks):
        def on_test_model_eval(self):
            self.layer.eval()

        def on_test_model_train(self):
            self.eval()

    model = Model()
    bare().test(model, ones(1))
    assert model.found == [(True, False, False)]
    assert model.modes() == (False, False, False)


# The sanity check.


def test_the_sanity_check_tries_a_few_batches_of_every_loader_and_leaves_no_trace():
    class Model(Mean):
        def __init__(self):
            super().__init__()
            self.tried, self.drawn = [], []

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            if self.trainer.sanity_checking:
                assert not self.trainer.validating
                self.tried.append((dataloader_idx, batch_idx))
                torch.rand(3)
            super().validation_step(batch, batch_idx, dataloader_idx)

        def on_train_start(self):
            self.drawn.append(torch.rand(()).item())
            assert self.trainer.callback_metrics == {}

    def fitted(**options):
        torch.manual_seed(1)
        model = Model()
        bare(**options).fit(model, ones(1), [ones(1), ones(3)])
        return model

    model = fitted(num_sanity_val_steps=2)
    assert model.tried == [(0, 0), (1, 0), (1, 1)]
    assert model.drawn == fitted(num_sanity_val_steps=0).drawn
    assert len(fitted(num_sanity_val_steps=-1).tried) == 4
    assert len(fitted(num_sanity_val_steps=-1, limit_val_batches=1).tried) == 2


def test_the_stages_are_told_apart():
    stages = []

    class Model(Plain):
        def note(self):
            names = ("training", "sanity_checking", "validating", "testing", "predicting", "evaluating")
            stages.append([name for name in names if getattr(self.trainer, name)])

        def training_step(self, batch, batch_idx):
            self.note()
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.note()

        test_step = predict_step = validation_step

        def on_train_epoch_end(self):
            self.note()

    model, trainer = Model(), bare(num_sanity_val_steps=1)
    trainer.fit(model, ones(1), ones(1))
    trainer.validate(model, ones(1))
    trainer.test(model, ones(1))
    trainer.predict(model, ones(1))
    validating = ["validating", "evaluating"]
    assert stages == [
        ["sanity_checking"],
        ["training"],
        validating,
        ["training"],
        validating,
        ["testing", "evaluating"],
        ["predicting"],
    ]
    assert not any((trainer.training, trainer.evaluating, trainer.predicting))


# What the loggers get.


class Memory(Logger):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics, step=None):
        self.sent.append((step, dict(metrics)))


def test_an_evaluation_is_logged_at_the_number_of_steps_that_training_has_taken():
    logger = Memory()
    trainer = bare(logger=logger, limit_val_batches=0)
    trainer.test(model := Mean(), numbered(1), verbose=False)
    trainer.fit(model, ones(4))
    trainer.test(model, numbered(1), ckpt_path=None, verbose=False)
    assert logger.sent == [(0, {"x": 0.0, "epoch": 0}), (4, {"x": 0.0, "epoch": 1})]


def test_step_values_of_every_loader_have_their_own_axis():
    class Model(Mean):
        def test_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("x", batch[0, 0], on_step=True, on_epoch=False)

    logger = Memory()
    bare(logger=logger).test(Model(), [numbered(1), numbered(1, 1, first=5)], verbose=False)
    assert logger.sent == [
        (0, {"x/dataloader_idx_0": 0.0}),
        (0, {"x/dataloader_idx_1": 5.0}),
        (1, {"x/dataloader_idx_1": 6.0}),
    ]


# Which weights.


class Worsens(Plain):
    """Its weight is the number of epochs behind it; so is ``v``, and the first epoch is the best. Tests its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

    def on_train_epoch_start(self):
        with torch.no_grad():
            self.weight += 1

    def validation_step(self, batch, batch_idx):
        self.log("v", self.weight)

    def test_step(self, batch, batch_idx):
        self.log("weight", self.weight)

    def predict_step(self, batch, batch_idx):
        return self.weight.clone()

    def configure_optimizers(self):
        return torch.optim.SGD(self.layer.parameters(), lr=0.1)


def fitted(*callbacks: Any) -> tuple[Any, Worsens]:
    """A Trainer and the model that it has fitted for 3 epochs."""
    trainer = bare(callbacks=list(callbacks), enable_checkpointing=bool(callbacks), max_epochs=3)
    trainer.fit(model := Worsens(), ones(1), ones(1))
    return trainer, model


@pytest.mark.parametrize("given", [True, False])
def test_after_fit_the_test_uses_the_best_checkpoint_and_says_so(given, tmp_path, capsys):
    trainer, model = fitted(ModelCheckpoint(tmp_path, monitor="v"))
    found = trainer.test(model if given else None, ones(1), verbose=False)
    assert found == [{"weight": 1.0}]
    said = capsys.readouterr().err
    assert "trainer.test() uses the best checkpoint, " in said
    assert "epoch=0-step=1.ckpt. For the weights in memory pass ckpt_path=None." in said


def test_ckpt_path_none_tests_the_weights_in_memory(tmp_path):
    trainer, model = fitted(ModelCheckpoint(tmp_path, monitor="v"))
    assert trainer.test(model, ones(1), ckpt_path=None, verbose=False) == [{"weight": 3.0}]
    assert trainer.test(None, ones(1), ckpt_path=None, verbose=False) == [{"weight": 3.0}]


def test_without_a_monitored_checkpoint_the_test_uses_the_weights_in_memory(tmp_path):
    trainer, model = fitted(ModelCheckpoint(tmp_path))
    assert trainer.test(model, ones(1), verbose=False) == [{"weight": 3.0}]
    trainer, model = fitted()
    assert trainer.test(model, ones(1), verbose=False) == [{"weight": 3.0}]


def test_another_model_keeps_its_weights(tmp_path):
    trainer, _ = fitted(ModelCheckpoint(tmp_path, monitor="v"))
    assert trainer.test(Worsens(), ones(1), verbose=False) == [{"weight": 0.0}]


def test_validate_and_predict_use_the_best_checkpoint_only_without_a_model(tmp_path):
    trainer, model = fitted(ModelCheckpoint(tmp_path, monitor="v"))
    assert trainer.validate(model, ones(1), verbose=False) == [{"v": 3.0}]
    assert [weight.item() for weight in trainer.predict(model, ones(1))] == [3.0]
    assert [weight.item() for weight in trainer.predict(None, ones(1))] == [1.0]
    assert trainer.validate(None, ones(1), verbose=False) == [{"v": 1.0}]


def test_a_path_and_the_names_best_and_last_choose_the_checkpoint(tmp_path):
    trainer, model = fitted(ModelCheckpoint(tmp_path, monitor="v", save_top_k=-1, save_last=True))
    for chosen, weight in ((tmp_path / "epoch=1-step=2.ckpt", 2.0), ("last", 3.0), ("best", 1.0)):
        assert trainer.test(model, ones(1), ckpt_path=chosen, verbose=False) == [{"weight": weight}]


def test_best_without_a_checkpoint_is_refused():
    trainer, model = fitted()
    with pytest.raises(MisconfigurationError, match=r"ckpt_path='best'\) finds no best checkpoint"):
        trainer.test(model, ones(1), ckpt_path="best")


def test_a_trainer_that_was_given_no_model_asks_for_one():
    with pytest.raises(TypeError, match=r"trainer.test\(\) needs a model: trainer.test\(model\)"):
        bare().test(dataloaders=ones(1))


def test_a_second_evaluation_takes_the_datamodule_of_the_first():
    class Data(LightningDataModule):
        def test_dataloader(self):
            return numbered(1, first=7)

    trainer = bare()
    assert trainer.test(Mean(), Data(), verbose=False) == [{"x": 7.0}]
    assert trainer.test(verbose=False) == [{"x": 7.0}]
