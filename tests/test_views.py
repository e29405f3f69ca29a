"""What can be read from, and set on, a Trainer: limits, metrics, the views of the loops."""

from __future__ import annotations

import copy
import signal
import typing
from typing import Any

import pytest
import torch

from leyden.callbacks.early_stopping import EarlyStopping
from leyden.core.callback import Callback
from leyden.trainer import Trainer
from models import TinyModel, ValidatedModel, tiny_loader

QUIET = {
    **{"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False},
    **{"enable_checkpointing": False, "max_epochs": 1, "num_sanity_val_steps": 0},
}


def trainer_with(*callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(**{**QUIET, "callbacks": list(callbacks), **options})


# Options.


def test_an_option_that_nobody_set_reads_as_what_it_means():
    trainer = Trainer(accelerator="cpu", logger=False)
    assert (trainer.limit_train_batches, trainer.limit_val_batches, trainer.val_check_interval) == (1.0, 1.0, 1.0)
    assert (trainer.num_sanity_val_steps, trainer.gradient_clip_val, trainer.max_steps) == (2, None, -1)


def test_a_limit_that_is_set_holds_for_the_next_fit():
    trainer, model = trainer_with(), TinyModel()
    trainer.fit(model, tiny_loader(2))
    trainer.max_epochs = 3
    trainer.fit(model, tiny_loader(2))
    assert (trainer.current_epoch, trainer.global_step, trainer.max_epochs) == (3, 6, 3)


def test_a_limit_can_be_set_by_the_loops_view_too():
    trainer, model = trainer_with(), TinyModel()
    trainer.fit(model, tiny_loader(2))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, tiny_loader(2))
    assert (trainer.current_epoch, trainer.fit_loop.max_epochs) == (2, 2)


def test_a_limit_that_a_callback_sets_holds_at_once():
    class Longer(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.max_epochs = 2

    trainer = trainer_with(Longer())
    trainer.fit(TinyModel(), tiny_loader(2))
    assert trainer.current_epoch == 2


def test_the_amount_of_data_can_be_set_between_runs():
    trainer, model = trainer_with(max_epochs=1), TinyModel()
    trainer.limit_train_batches = 1
    trainer.fit(model, tiny_loader(4))
    assert trainer.global_step == 1


def test_what_a_run_has_settled_cannot_be_set_while_it_goes_on():
    class Less(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.limit_train_batches = 1

    with pytest.raises(AttributeError, match=r"trainer\.limit_train_batches cannot be set while a run goes on"):
        trainer_with(Less()).fit(TinyModel(), tiny_loader(2))


def test_how_often_to_log_can_be_set():
    trainer = trainer_with()
    trainer.log_every_n_steps = 3
    assert (trainer.log_every_n_steps, trainer.options.log_every_n_steps) == (3, 3)


def test_a_bad_value_is_refused_when_it_is_set():
    trainer = trainer_with()
    with pytest.raises(ValueError, match="max_epochs=-2"):
        trainer.max_epochs = -2
    assert trainer.max_epochs == 1


@pytest.mark.parametrize("name", ["fast_dev_run", "overfit_batches", "num_nodes"])
def test_what_other_arguments_depend_on_cannot_be_set(name):
    with pytest.raises(AttributeError, match=rf"trainer\.{name} cannot be set, .* Trainer\({name}=\.\.\.\)"):
        setattr(trainer_with(), name, 1)


def test_an_unknown_attribute_gets_the_nearest_name():
    with pytest.raises(AttributeError, match=r"no attribute 'curent_epoch'\. Did you mean 'current_epoch'\?"):
        trainer_with().curent_epoch  # noqa: B018


# Setting the checkpoint.


def test_a_checkpoint_that_is_set_is_where_every_run_begins_that_names_none(tmp_path):
    trainer, model = trainer_with(max_epochs=2), ValidatedModel()
    trainer.fit(model, tiny_loader(2), tiny_loader(1))
    trainer.save_checkpoint("a.ckpt")

    again, other = trainer_with(max_epochs=3), ValidatedModel(seed=1)
    again.ckpt_path = tmp_path / "a.ckpt"
    (measured,) = again.validate(other, tiny_loader(1), verbose=False)
    assert torch.equal(other.net[0].weight, model.net[0].weight)
    assert measured["val_loss"] == pytest.approx(float(trainer.callback_metrics["val_loss"]))
    again.fit(other, tiny_loader(2), tiny_loader(1))
    assert (again.current_epoch, again.global_step) == (3, 6)
    again.ckpt_path = None
    fresh = ValidatedModel(seed=1)
    again.validate(fresh, tiny_loader(1), verbose=False)
    assert not torch.equal(fresh.net[0].weight, model.net[0].weight)


# Metrics.


class Adding(Callback):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        metrics = trainer.callback_metrics
        metrics["mine"] = 2.5
        metrics.update({"a": 1.0}, b=torch.tensor(3.0))
        assert metrics.setdefault("c", 4.0) == 4.0
        assert metrics.setdefault("c", 5.0) == 4.0
        assert metrics["mine"] == 2.5


def test_a_value_put_into_callback_metrics_stays_there():
    trainer = trainer_with(Adding())
    trainer.fit(TinyModel(), tiny_loader(1))
    assert {name: float(value) for name, value in trainer.callback_metrics.items()} == {
        **{"mine": 2.5, "a": 1.0, "b": 3.0, "c": 4.0}
    }


def test_a_value_put_into_callback_metrics_can_be_monitored():
    stopping = EarlyStopping("mine", patience=1, strict=False)
    trainer = trainer_with(Adding(), stopping, max_epochs=5)
    trainer.fit(TinyModel(), tiny_loader(1))
    assert (trainer.current_epoch, float(stopping.best_score)) == (2, 2.5)


def test_a_copy_of_callback_metrics_is_a_dict_that_knows_no_run():
    trainer = trainer_with(Adding())
    trainer.fit(TinyModel(), tiny_loader(1))
    for made in (copy.deepcopy(trainer.callback_metrics), copy.copy(trainer.callback_metrics)):
        assert not isinstance(made, type(trainer.callback_metrics))
        assert made == trainer.callback_metrics
        made["new"] = torch.tensor(1.0)
    assert "new" not in trainer.callback_metrics
    torch.save(trainer.callback_metrics, "metrics.pt")
    assert torch.load("metrics.pt", weights_only=True) == trainer.callback_metrics


def test_callback_metrics_take_no_value_before_the_first_run():
    with pytest.raises(RuntimeError, match="takes no values before the first run"):
        trainer_with().callback_metrics["a"] = 1.0


# The views of the loops.


class Watching(Callback):
    """Notes what the loop views say, by hook."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Any]] = {}

    def note(self, hook: str, trainer: Any) -> None:
        loop = trainer.fit_loop
        batches, epochs = loop.epoch_loop.batch_progress, loop.epoch_progress
        self.seen.setdefault(hook, []).append(
            (
                tuple(getattr(batches.current, name) for name in ("ready", "started", "processed", "completed")),
                batches.total.ready,
                tuple(getattr(epochs.current, name) for name in ("ready", "started", "processed", "completed")),
                (loop.batch_idx, loop.total_batch_idx, loop.epoch_loop.global_step, batches.is_last_batch),
            )
        )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.note("on_train_start", trainer)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.note("on_train_epoch_start", trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.note("on_train_batch_start", trainer)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.note("on_before_optimizer_step", trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.note("on_train_batch_end", trainer)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.note("on_validation_start", trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.note("on_train_epoch_end", trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.note("on_train_end", trainer)


def test_the_loop_views_count_as_lightning_counts():
    """Lightning 2.6.6 gave these numbers for the same fit."""
    watching = Watching()
    trainer = trainer_with(watching, max_epochs=2)
    trainer.fit(ValidatedModel(), tiny_loader(2), tiny_loader(1))
    assert watching.seen == {
        "on_train_start": [((0, 0, 0, 0), 0, (0, 0, 0, 0), (-1, -1, 0, False))],
        "on_train_epoch_start": [
            ((0, 0, 0, 0), 0, (1, 0, 0, 0), (-1, -1, 0, False)),
            ((2, 2, 2, 2), 2, (2, 1, 1, 1), (1, 1, 2, True)),
        ],
        "on_train_batch_start": [
            ((1, 0, 0, 0), 1, (1, 1, 0, 0), (0, 0, 0, False)),
            ((2, 1, 1, 1), 2, (1, 1, 0, 0), (1, 1, 1, True)),
            ((1, 0, 0, 0), 3, (2, 2, 1, 1), (0, 2, 2, False)),
            ((2, 1, 1, 1), 4, (2, 2, 1, 1), (1, 3, 3, True)),
        ],
        "on_before_optimizer_step": [
            ((1, 1, 0, 0), 1, (1, 1, 0, 0), (0, 0, 0, False)),
            ((2, 2, 1, 1), 2, (1, 1, 0, 0), (1, 1, 1, True)),
            ((1, 1, 0, 0), 3, (2, 2, 1, 1), (0, 2, 2, False)),
            ((2, 2, 1, 1), 4, (2, 2, 1, 1), (1, 3, 3, True)),
        ],
        "on_train_batch_end": [
            ((1, 1, 1, 0), 1, (1, 1, 0, 0), (0, 0, 1, False)),
            ((2, 2, 2, 1), 2, (1, 1, 0, 0), (1, 1, 2, True)),
            ((1, 1, 1, 0), 3, (2, 2, 1, 1), (0, 2, 3, False)),
            ((2, 2, 2, 1), 4, (2, 2, 1, 1), (1, 3, 4, True)),
        ],
        "on_validation_start": [
            ((2, 2, 2, 2), 2, (1, 1, 0, 0), (1, 1, 2, True)),
            ((2, 2, 2, 2), 4, (2, 2, 1, 1), (1, 3, 4, True)),
        ],
        "on_train_epoch_end": [
            ((2, 2, 2, 2), 2, (1, 1, 1, 0), (1, 1, 2, True)),
            ((2, 2, 2, 2), 4, (2, 2, 2, 1), (1, 3, 4, True)),
        ],
        "on_train_end": [((2, 2, 2, 2), 4, (2, 2, 2, 2), (1, 3, 4, True))],
    }
    loop = trainer.fit_loop
    assert (loop.done, loop.max_batches, loop.current_epoch, loop.global_step) == (True, 2, 2, 4)
    assert loop.epoch_loop._batches_that_stepped == 4
    assert (loop.max_epochs, loop.max_steps, loop.min_epochs, loop.epoch_loop.min_steps) == (2, -1, None, None)


def test_in_the_middle_of_an_epoch_they_say_so():
    trainer = trainer_with(max_steps=3, max_epochs=-1)
    trainer.fit(TinyModel(), tiny_loader(2))
    loop = trainer.fit_loop
    assert (loop.batch_idx, loop.total_batch_idx, loop.epoch_progress.current.completed) == (0, 2, 1)
    assert loop.done


def test_the_views_of_the_other_loops_know_their_loaders():
    trainer = trainer_with()
    assert (trainer.validate_loop.max_batches, trainer.test_loop.num_dataloaders) == ([], 0)
    trainer.fit(ValidatedModel(), tiny_loader(1), [tiny_loader(2)])
    assert trainer.fit_loop.epoch_loop.val_loop.max_batches == trainer.validate_loop.max_batches == [2]
    trainer.test(dataloaders=tiny_loader(3), verbose=False, ckpt_path=None)
    assert (trainer.test_loop.max_batches, trainer.test_loop.num_dataloaders) == ([3], 1)
    trainer.predict(dataloaders=tiny_loader(1))
    assert trainer.predict_loop.max_batches == [1]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda t: setattr(t.fit_loop, "epoch_progress", 1), r"trainer\.fit_loop\.epoch_progress .* max_epochs"),
        (lambda t: setattr(t.fit_loop.epoch_loop, "batch_progress", 1), r"fit_loop\.epoch_loop\.batch_progress"),
        (lambda t: setattr(t.validate_loop, "max_batches", 1), r"validate_loop\.max_batches .* Trainer\(\.\.\.\)"),
        (lambda t: setattr(t, "fit_loop", 1), "fit_loop"),
    ],
)
def test_nothing_else_can_be_set_by_them(write, message):
    with pytest.raises(AttributeError, match=message):
        write(trainer_with())


def test_what_they_have_not_is_named_with_the_nearest_they_have():
    with pytest.raises(AttributeError, match=r"fit_loop has no 'batch_indx'.*Did you mean 'batch_idx'\?"):
        trainer_with().fit_loop.batch_indx  # noqa: B018
    with pytest.raises(AttributeError, match=r"trainer\.test_loop has no 'max_epochs'"):
        trainer_with().test_loop.max_epochs  # noqa: B018


# The process.


def test_one_process_needs_no_distributed_sampler():
    assert trainer_with().distributed_sampler_kwargs is None


def test_a_process_that_nobody_asked_to_end_has_received_no_sigterm():
    assert trainer_with().received_sigterm is False


def test_a_sigterm_that_the_run_has_seen_is_told_and_another_signal_is_none():
    trainer = trainer_with()
    trainer.state.signal = signal.SIGINT
    assert trainer.received_sigterm is False
    trainer.state.signal = signal.SIGTERM
    assert trainer.received_sigterm is True


# The methods.


@pytest.mark.parametrize("method", ["fit", "validate", "test", "predict"])
def test_annotations_of_the_methods_can_be_read_when_the_program_runs(method):
    assert "former" in typing.get_type_hints(getattr(Trainer, method))
