"""The training loop: where it ends, what it counts, when it validates and logs, and what it calls with what."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from leyden import Callback, LightningDataModule
from leyden.callbacks import ModelCheckpoint
from leyden.core.optimizers import SteppingOptimizer
from leyden.loggers.logger import Logger
from leyden.utils.errors import LeydenWarning, MisconfigurationError
from recording import Manual, Plain, bare, ones


class Noting(Plain):
    """Notes the epoch and the index of every training batch, and ``global_step`` at every validation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []
        self.validated_at: list[int] = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx))
        return super().training_step(batch, batch_idx)

    def on_validation_start(self):
        self.validated_at.append(self.global_step)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Calls(Callback):
    """Calls ``function(trainer)`` at the end of every training batch."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.function(trainer)


def stop_at(step: int) -> Calls:
    def stop(trainer: Any) -> None:
        if trainer.global_step == step:
            trainer.should_stop = True

    return Calls(stop)


def trained(model: Any, train: Any = None, val: Any = None, **options: Any) -> Any:
    """A Trainer that has fitted ``model`` to ``train``, by default 4 batches; without ``val`` it does not validate."""
    trainer = bare(**({"limit_val_batches": 0} if val is None else {}) | options)
    trainer.fit(model, ones(4) if train is None else train, val)
    return trainer


class Stream(IterableDataset):
    """Yields ``batches`` batches, and claims to have ``claimed``, if it is given. Counts what is read of it."""

    def __init__(self, batches: int, claimed: int | None = None) -> None:
        self.batches, self.read = batches, 0
        if claimed is not None:
            self.claimed = claimed
            self.__class__ = Claiming

    def __iter__(self):
        for _ in range(self.batches):
            self.read += 1
            yield torch.ones(2, 4)


class Claiming(Stream):
    def __len__(self):
        return self.claimed


def stream(batches: int, claimed: int | None = None) -> DataLoader[Any]:
    return DataLoader(Stream(batches, claimed), batch_size=None)


# Where training ends.


@pytest.mark.parametrize(
    ("limits", "steps", "epochs", "batch", "reason"),
    [
        ({"max_epochs": 3}, 12, 3, 0, "max_epochs=3 reached"),
        ({"max_epochs": -1, "max_steps": 6}, 6, 1, 2, "max_steps=6 reached"),
        ({"max_epochs": None, "max_steps": 8}, 8, 2, 0, "max_steps=8 reached"),
        ({"max_epochs": 9, "max_steps": 5}, 5, 1, 1, "max_steps=5 reached"),
        ({"max_epochs": 1, "max_steps": 5}, 4, 1, 0, "max_epochs=1 reached"),
        ({"max_epochs": 9, "max_steps": 3, "accumulate_grad_batches": 2}, 3, 1, 2, "max_steps=3 reached"),
        ({"max_epochs": 0}, 0, 0, 0, "max_epochs=0 reached"),
        ({"max_steps": 0}, 0, 0, 0, "max_steps=0 reached"),
    ],
)
def test_the_first_limit_that_is_reached_ends_training(limits, steps, epochs, batch, reason):
    model = Noting()
    trainer = trained(model, **limits)
    position = trainer.state.position
    assert (trainer.global_step, trainer.current_epoch, position.batch) == (steps, epochs, batch)
    assert len(model.seen) == position.batch_total == 4 * epochs + batch
    assert trainer.state.stop_reason == reason


def test_an_epoch_that_max_steps_breaks_off_in_its_last_batch_is_complete():
    assert trained(Noting(), max_epochs=9, max_steps=4).current_epoch == 1


def test_without_any_limit_there_are_1000_epochs_and_a_warning():
    trainer = bare(max_epochs=None, limit_val_batches=0, callbacks=[stop_at(1)])
    with pytest.warns(LeydenWarning, match=r"max_epochs=None.*1000.*LD060"):
        trainer.fit(Noting(), ones(4))
    assert trainer.max_epochs == 1000


@pytest.mark.parametrize(
    ("minimum", "steps", "epochs"),
    [
        ({}, 3, 0),
        ({"min_epochs": 1}, 4, 1),
        ({"min_epochs": 2}, 8, 2),
        ({"min_steps": 2}, 3, 0),
        ({"min_steps": 6}, 6, 1),
        ({"min_epochs": 1, "min_steps": 6}, 6, 1),
        ({"min_epochs": 2, "min_steps": 3}, 8, 2),
    ],
)
def test_a_stop_that_is_asked_for_waits_for_the_minima(minimum, steps, epochs):
    trainer = trained(Noting(), max_epochs=9, callbacks=[stop_at(3)], **minimum)
    assert (trainer.global_step, trainer.current_epoch) == (steps, epochs)
    assert trainer.should_stop
    assert trainer.state.stop_reason == "a stop was asked for"


def test_a_stop_that_is_asked_for_at_the_end_of_an_epoch_ends_training_there():
    class Stops(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    assert trained(Noting(), max_epochs=9, callbacks=[Stops()]).global_step == 4


def test_max_time_ends_training_after_the_batch_in_which_it_is_over():
    trainer = trained(Noting(), max_epochs=-1, max_time=timedelta(milliseconds=30))
    assert trainer.global_step > 0
    assert trainer.state.stop_reason.startswith("Timer: ")


def test_manual_optimization_counts_every_step_of_every_optimizer():
    class Two(Manual):
        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                self.manual_backward(self.layer(batch).mean())
                optimizer.step()

    trainer = trained(Two(), ones(10), max_steps=5)
    assert (trainer.global_step, trainer.state.position.batch, trainer.state.position.stepped_batches) == (6, 3, 3)


# How much of the data counts.


@pytest.mark.parametrize(("limit", "batches"), [(None, 5), (1.0, 5), (0.5, 2), (0.99, 4), (1, 1), (3, 3), (99, 5)])
def test_limits_are_numbers_of_batches_or_fractions(limit, batches):
    model = Noting()
    trainer = trained(model, ones(5), limit_train_batches=limit)
    assert [index for _, index in model.seen] == list(range(batches))
    assert trainer.num_training_batches == batches


@pytest.mark.parametrize("nothing", [0, 0.0])
def test_limit_train_batches_of_nothing_trains_nothing(nothing):
    model = Noting()
    trainer = trained(model, limit_train_batches=nothing)
    assert model.seen == []
    assert trainer.state.stop_reason == "limit_train_batches=0"


def test_a_fraction_of_less_than_one_batch_is_refused_with_one_that_works():
    with pytest.raises(MisconfigurationError, match=r"limit_train_batches=0.1\) of the 4 batches.*at least 0.25"):
        trained(Noting(), limit_train_batches=0.1)


def test_a_fraction_of_a_loader_without_length_is_refused():
    with pytest.raises(MisconfigurationError, match=r"limit_train_batches=0.5.*does not know its length"):
        trained(Noting(), stream(4), limit_train_batches=0.5)


@pytest.mark.parametrize(("limit", "counts"), [(None, [2, 4]), (1, [1, 1]), (3, [2, 3]), (0.5, [1, 2])])
def test_limits_of_evaluation_hold_for_every_loader(limit, counts):
    trainer = bare(limit_test_batches=limit, limit_val_batches=limit, limit_predict_batches=limit)
    trainer.test(model := Plain(), [ones(2), ones(4)])
    assert trainer.num_test_batches == counts
    trainer.validate(model, [ones(2), ones(4)])
    assert trainer.num_val_batches == counts
    assert [len(loader) for loader in trainer.predict(model, [ones(2), ones(4)])] == counts


def test_limit_val_batches_of_nothing_never_validates():
    model = Noting()
    trainer = trained(model, None, ones(1), limit_val_batches=0, num_sanity_val_steps=2)
    assert model.validated_at == []
    assert not trainer.enable_validation


@pytest.mark.filterwarnings("ignore:overfit_batches")
@pytest.mark.parametrize(("overfit", "train", "val"), [(2, 2, 2), (0.5, 4, 3)])
def test_overfit_batches_takes_the_first_batches_of_each_loader_in_the_same_order_every_epoch(overfit, train, val):
    class Batches(Noting):
        def __init__(self):
            super().__init__()
            self.trained_on, self.validated_on = [], []

        def training_step(self, batch, batch_idx):
            self.trained_on.append(batch[0, 0].item())
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.validated_on.append(batch[0, 0].item())

    def numbered(first, count):
        return DataLoader([torch.full((4,), float(i)) for i in range(first, first + count)], shuffle=True)

    model = Batches()
    trained(model, numbered(0, 8), numbered(100, 6), overfit_batches=overfit, max_epochs=2)
    assert model.trained_on == 2 * list(range(train))
    assert model.validated_on == 2 * list(range(100, 100 + val))


def test_overfit_batches_says_that_it_reads_in_order():
    with pytest.warns(LeydenWarning, match=r"fit\(train_dataloaders=...\) shuffles.*LD030"):
        trained(Noting(), DataLoader(torch.ones(8, 4), shuffle=True), ones(1), overfit_batches=1)


@pytest.mark.parametrize(("given", "batches"), [(True, 1), (3, 3)])
def test_fast_dev_run_tries_everything_and_writes_nothing(given, batches, tmp_path):
    model = Noting()
    trainer = trained(
        model,
        None,
        ones(4),
        fast_dev_run=given,
        max_epochs=9,
        num_sanity_val_steps=2,
        val_check_interval=0.5,
        logger=True,
        callbacks=[ModelCheckpoint()],
        enable_checkpointing=True,
    )
    assert model.seen == [(0, index) for index in range(batches)]
    assert model.validated_at == [batches]
    assert trainer.num_val_batches == [batches]
    trainer.test(model, ones(4))
    assert trainer.num_test_batches == [batches]
    assert list(tmp_path.iterdir()) == []


# Loaders of all kinds.


def test_a_loader_without_length_ends_when_it_does():
    model = Noting()
    trainer = trained(model, stream(3), ones(1), max_epochs=2)
    assert model.seen == [(epoch, index) for epoch in range(2) for index in range(3)]
    assert model.validated_at == [3, 6]
    assert trainer.num_training_batches == math.inf


def test_a_loader_with_fewer_batches_than_it_claims_is_validated_and_scheduled_at_its_real_end():
    class Scheduled(Noting):
        configure_optimizers = Plain.configure_optimizers

    model = Scheduled()
    trainer = trained(model, stream(3, claimed=9), ones(1), max_epochs=2)
    assert model.validated_at == [3, 6]
    assert [config.scheduler.last_epoch for config in trainer.lr_scheduler_configs] == [2, 6]


def test_of_a_loader_with_more_batches_than_it_claims_torch_warns():
    model = Noting()
    with pytest.warns(UserWarning, match="Length of IterableDataset"):
        trained(model, stream(3, claimed=2), max_epochs=2)
    assert model.seen == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_nothing_is_read_beyond_a_limit():
    data = Stream(9)
    trained(Noting(), DataLoader(data, batch_size=None), limit_train_batches=2)
    assert data.read == 2


def test_a_limit_beyond_the_end_of_a_loader_without_length_does_no_harm():
    model = Noting()
    trained(model, stream(3), ones(1), limit_train_batches=5, max_epochs=2)
    assert model.validated_at == [3, 6]


def test_a_list_of_batches_is_a_loader():
    model = Noting()
    trained(model, [torch.ones(2, 4)] * 3)
    assert len(model.seen) == 3


def test_an_empty_loader_is_refused():
    with pytest.raises(MisconfigurationError, match=r"fit\(train_dataloaders=...\) is empty"):
        trained(Noting(), [])


def test_a_generator_works_for_one_epoch_and_is_refused_in_the_next():
    def batches():
        yield from [torch.ones(2, 4)] * 3

    assert trained(Noting(), batches()).global_step == 3
    with pytest.raises(MisconfigurationError, match="can be read only once"):
        trained(Noting(), batches(), max_epochs=2)


class BatchEnds(Callback):
    """Notes the index and the outputs of every batch whose end it hears of."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, Any]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.heard.append((batch_idx, outputs))


def test_a_batch_of_none_is_passed_over():
    model, ends = Noting(), BatchEnds()
    with pytest.warns(LeydenWarning, match=r"gave None instead of a batch.*LD032"):
        trainer = trained(model, [torch.ones(2, 4), None, torch.ones(2, 4)], callbacks=[ends])
    assert model.seen == [(0, 0), (0, 2)]
    assert [index for index, _ in ends.heard] == [0, 2]
    assert trainer.global_step == 2


@pytest.mark.filterwarnings("ignore:.*gave None instead of a batch")
@pytest.mark.filterwarnings("ignore:.*LD291")
@pytest.mark.parametrize("kind", [Noting, Manual])
def test_a_batch_of_none_that_is_the_last_ends_the_epoch_all_the_same(kind):
    validations = []

    class Validated(kind):
        def on_validation_start(self):
            validations.append(self.global_step)

    trainer = trained(Validated(), [torch.ones(2, 4), None], ones(1))
    assert validations == [1]
    assert trainer.state.position.stepped_batches == 1


@pytest.mark.filterwarnings("ignore:.*gave None instead of a batch")
def test_a_batch_of_none_that_is_the_last_of_a_window_lets_the_others_step():
    trainer = trained(Noting(), [torch.ones(2, 4), None, None, None, torch.ones(2, 4)], accumulate_grad_batches=2)
    assert trainer.global_step == 2  # windows (0, 1), (2, 3) and (4,), of which the second has no gradient


# When validation runs.


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ({}, [4, 8, 12]),
        ({"val_check_interval": 1.0}, [4, 8, 12]),
        ({"val_check_interval": 4}, [4, 8, 12]),
        ({"val_check_interval": 1}, list(range(1, 13))),
        ({"val_check_interval": 0.5}, [2, 4, 6, 8, 10, 12]),
        ({"val_check_interval": 0.7}, [2, 4, 6, 8, 10, 12]),
        ({"val_check_interval": 3}, [3, 7, 11]),
        ({"check_val_every_n_epoch": 2}, [8]),
        ({"check_val_every_n_epoch": 2, "val_check_interval": 0.5}, [6, 8]),
        ({"check_val_every_n_epoch": None, "val_check_interval": 3}, [3, 6, 9, 12]),
        ({"check_val_every_n_epoch": None, "val_check_interval": 6}, [6, 12]),
        ({"check_val_every_n_epoch": None}, [4, 8, 12]),
        ({"limit_train_batches": 3}, [3, 6, 9]),
        ({"accumulate_grad_batches": 2, "val_check_interval": 3}, [1, 3, 5]),
        ({"max_steps": 6}, [4]),
    ],
)
def test_validation_runs_when_it_is_due(options, at):
    model = Noting()
    trained(model, None, ones(1), **{"max_epochs": 3} | options)
    assert model.validated_at == at


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ({}, [4, 8]),
        ({"val_check_interval": 3}, [3, 7]),
        ({"val_check_interval": 3, "check_val_every_n_epoch": None}, [3, 6]),
        ({"val_check_interval": 9}, []),
    ],
)
def test_validation_runs_when_it_is_due_though_the_length_is_unknown(options, at):
    model = Noting()
    trained(model, stream(4), ones(1), max_epochs=2, **options)
    assert model.validated_at == at


def test_an_interval_longer_than_the_epoch_is_refused():
    with pytest.raises(MisconfigurationError, match=r"val_check_interval=5\) is more than the 4 training batches"):
        trained(Noting(), None, ones(1), val_check_interval=5)


def test_a_fraction_of_an_epoch_of_unknown_length_is_refused():
    with pytest.raises(MisconfigurationError, match=r"val_check_interval=0.5.*does not know its length"):
        trained(Noting(), stream(4), ones(1), val_check_interval=0.5)


def test_a_stop_in_mid_epoch_is_followed_by_a_last_validation():
    model = Noting()
    trained(model, None, ones(1), max_epochs=9, callbacks=[stop_at(6)])
    assert model.validated_at == [4, 6]


# What the loggers get.


class Memory(Logger):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics, step=None):
        self.sent.append((step, dict(metrics)))

    def steps_of(self, name: str) -> list[int]:
        return [step for step, metrics in self.sent if name in metrics]


class Logging(Noting):
    """Logs the batch index: ``t`` by step and by epoch, ``v`` and ``w`` in validation, ``w`` by step too."""

    def training_step(self, batch, batch_idx):
        self.log("t", float(batch_idx), on_step=True, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("v", float(batch_idx))
        self.log("w", float(batch_idx), on_step=True, on_epoch=True)


def test_step_values_are_sent_every_so_many_steps_at_the_index_of_the_batch_that_stepped():
    trained(Logging(), ones(12), logger=(logger := Memory()), log_every_n_steps=5, max_epochs=2)
    assert logger.sent == [
        (4, {"t_step": 4.0, "epoch": 0}),
        (9, {"t_step": 9.0, "epoch": 0}),
        (11, {"t_epoch": 5.5, "epoch": 0}),
        (14, {"t_step": 2.0, "epoch": 1}),
        (19, {"t_step": 7.0, "epoch": 1}),
        (23, {"t_epoch": 5.5, "epoch": 1}),
    ]


def test_with_accumulation_only_batches_that_stepped_count():
    trained(Logging(), ones(10), logger=(logger := Memory()), log_every_n_steps=1, accumulate_grad_batches=4)
    assert logger.sent == [
        (0, {"t_step": 3.0, "epoch": 0}),
        (1, {"t_step": 7.0, "epoch": 0}),
        (2, {"t_step": 9.0, "epoch": 0}),
        (2, {"t_epoch": 4.5, "epoch": 0}),
    ]


def test_in_manual_optimization_every_batch_counts_once_however_many_optimizers_step():
    class Two(Manual):
        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]

        def training_step(self, batch, batch_idx):
            self.log("t", float(batch_idx))
            for optimizer in self.optimizers():
                self.manual_backward(self.layer(batch).mean())
                optimizer.step()

    trained(Two(), logger=(logger := Memory()), log_every_n_steps=2)
    assert logger.sent == [(1, {"t": 1.0, "epoch": 0}), (3, {"t": 3.0, "epoch": 0})]


def test_log_every_n_steps_of_0_sends_the_epochs_values_alone():
    trained(Logging(), logger=(logger := Memory()), log_every_n_steps=0)
    assert logger.sent == [(3, {"t_epoch": 1.5, "epoch": 0})]


def test_an_epoch_broken_off_by_max_steps_sends_what_it_has():
    trained(Logging(), logger=(logger := Memory()), log_every_n_steps=2, max_steps=3)
    assert logger.sent == [(1, {"t_step": 1.0, "epoch": 0}), (2, {"t_epoch": 1.0, "epoch": 0})]


@pytest.mark.filterwarnings("ignore:.*LD283")
def test_values_of_a_validation_are_sent_at_the_step_that_training_has_reached():
    trained(Logging(), None, ones(2), logger=(logger := Memory()), val_check_interval=0.5, num_sanity_val_steps=2)
    assert logger.steps_of("v") == [1, 3]
    assert logger.steps_of("t_epoch") == [3]
    # Step values of validation have an axis of their own, which goes on from one validation to the next.
    assert [(step, metrics["w_step"]) for step, metrics in logger.sent if "w_step" in metrics] == [
        (0, 0.0),
        (1, 1.0),
        (2, 0.0),
        (3, 1.0),
    ]


def test_a_value_named_step_takes_the_place_of_the_step():
    class Axis(Noting):
        def on_train_epoch_end(self):
            self.log_dict({"step": 100.0 + self.current_epoch, "loss": 1.0})

    trained(Axis(), logger=(logger := Memory()), max_epochs=2)
    assert logger.sent == [(100, {"loss": 1.0, "epoch": 0}), (101, {"loss": 1.0, "epoch": 1})]


# Accumulation.


@pytest.mark.parametrize(("batches", "window", "steps"), [(10, 4, 3), (8, 4, 2), (3, 4, 1), (5, 1, 5)])
@pytest.mark.parametrize("make", [ones, stream])
def test_the_optimizer_steps_after_every_window_and_the_epochs_last_batch(batches, window, steps, make):
    trainer = trained(Noting(), make(batches), accumulate_grad_batches=window, max_epochs=2)
    assert trainer.global_step == trainer.state.position.stepped_batches == 2 * steps


@pytest.mark.parametrize("make", [ones, stream])
def test_every_window_has_the_mean_gradient_of_its_batches_the_short_one_too(make):
    class Gradients(Noting):
        seen_gradients: list[float]

        def on_before_optimizer_step(self, optimizer):
            self.seen_gradients.append(self.layer.bias.grad.item())

    model = Gradients()
    model.seen_gradients = []
    trained(model, make(10), accumulate_grad_batches=4)
    assert model.seen_gradients == [1.0, 1.0, 1.0]


def test_a_window_that_is_broken_off_leaves_no_gradient_to_the_next_epoch():
    class BreaksOff(Noting):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if self.current_epoch == 0 and batch_idx == 1 else None

        def on_before_optimizer_step(self, optimizer):
            self.gradient = self.layer.bias.grad.item()

    model = BreaksOff()
    trainer = trained(model, ones(2), accumulate_grad_batches=2, max_epochs=2)
    assert (trainer.global_step, model.gradient) == (1, 1.0)


def test_a_checkpoint_asked_for_in_mid_window_is_written_behind_the_batch(tmp_path):
    written = []

    class Asks(Noting):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 0:
                path = str(tmp_path / "asked.ckpt")
                self.trainer.request_checkpoint(path, written=lambda _: written.append(self.trainer.global_step))
            assert written == ([0] if batch_idx else [])

    trained(Asks(), accumulate_grad_batches=2)
    assert written == [0]


def test_the_window_may_be_changed_in_mid_run():
    class Schedules(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.accumulate_grad_batches = 2**trainer.current_epoch

    trainer = trained(Noting(), callbacks=[Schedules()], max_epochs=3)
    assert trainer.global_step == 4 + 2 + 1


# What training_step may return.


class Returns(Plain):
    """Its ``training_step`` returns ``make(loss)``."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def training_step(self, batch, batch_idx):
        return self.make(super().training_step(batch, batch_idx))

    configure_optimizers = Noting.configure_optimizers


def test_outputs_are_a_dict_with_the_loss_detached_and_undivided_and_further_keys_as_they_are():
    y = torch.ones(2, requires_grad=True)
    ends, losses = BatchEnds(), []

    def with_more(loss):
        losses.append(loss.item())
        return {"loss": loss, "y": y, "name": "a"}

    trained(Returns(with_more), callbacks=[ends], accumulate_grad_batches=2)
    for (_, outputs), loss in zip(ends.heard, losses, strict=True):
        assert set(outputs) == {"loss", "y", "name"}
        assert outputs["loss"].item() == loss
        assert not outputs["loss"].requires_grad
        assert outputs["y"] is y


def test_a_tensor_is_seen_by_hooks_as_a_dict_and_none_as_an_empty_one():
    ends = BatchEnds()
    trained(Returns(lambda loss: loss), ones(1), callbacks=[ends])
    assert list(ends.heard[0][1]) == ["loss"]
    ends = BatchEnds()
    with pytest.warns(LeydenWarning, match="LD033"):
        trained(Returns(lambda loss: None), ones(1), callbacks=[ends])
    assert ends.heard == [(0, {})]


def test_a_loss_of_one_element_in_one_dimension_is_a_loss():
    assert trained(Returns(lambda loss: loss.reshape(1))).global_step == 4


def test_training_step_may_leave_the_index_out():
    class WithoutIndex(Noting):
        def training_step(self, batch):
            return self.layer(batch).mean()

    assert trained(WithoutIndex()).global_step == 4


class SkipsSome(Returns):
    """Returns None for the batches whose index is in ``skipped``; notes the gradient at every step."""

    def __init__(self, *skipped: int) -> None:
        super().__init__(None)
        self.skipped, self.gradients = skipped, []

    def training_step(self, batch, batch_idx):
        return None if batch_idx in self.skipped else self.layer(batch).mean()

    def on_before_optimizer_step(self, optimizer):
        self.gradients.append(self.layer.bias.grad.item())


class SkipsSomeAndStepsItself(SkipsSome):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.step(closure=optimizer_closure)


@pytest.mark.parametrize("kind", [SkipsSome, SkipsSomeAndStepsItself])
def test_a_batch_whose_step_returns_none_is_skipped(kind):
    model = kind(1, 2)
    before = model.layer.bias.item()
    with pytest.warns(LeydenWarning, match=r"training_step returned None.*LD033"):
        trainer = trained(model)
    assert (trainer.global_step, trainer.state.position.stepped_batches) == (2, 2)
    assert model.gradients == [1.0, 1.0]
    assert model.layer.bias.item() == pytest.approx(before - 0.2)  # two steps of 0.1, and none with an old gradient


@pytest.mark.filterwarnings("ignore:training_step returned None")
@pytest.mark.parametrize("kind", [SkipsSome, SkipsSomeAndStepsItself])
@pytest.mark.filterwarnings("ignore:.*LD290")
def test_a_window_whose_last_batch_is_skipped_steps_by_the_others(kind):
    model = kind(1, 2, 3)
    trainer = trained(model, ones(5), accumulate_grad_batches=2)
    assert trainer.global_step == 2  # the window of batches 2 and 3 has no gradient
    assert model.gradients == [0.5, 1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda loss: {"losss": loss}, r"a dict without a tensor under 'loss'; its keys are \['losss'\]"),
        (lambda loss: 1.0, r"returned float: 1.0"),
        (lambda loss: loss.detach(), "a loss without grad"),
        (lambda loss: loss.expand(3), r"a loss of shape \(3,\).*\.mean\(\)"),
    ],
)
def test_anything_else_is_refused_with_advice(make, message):
    with pytest.raises(MisconfigurationError, match=message):
        trained(Returns(make))


@pytest.mark.filterwarnings("ignore:.*LD291")
def test_manual_optimization_may_return_a_dict_and_refuses_a_number():
    class ReturnsDict(Manual):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            return {"y": 1} if batch_idx == 0 else 1.0

    ends = BatchEnds()
    with pytest.raises(MisconfigurationError, match=r"returned float: 1.0.*a tensor, a dict or None"):
        trained(ReturnsDict(), callbacks=[ends])
    assert ends.heard == [(0, {"y": 1})]


# What may be overridden, and what it is called with.


@pytest.mark.filterwarnings("ignore:.*LD290")
def test_the_hooks_of_optimization_are_called_with_what_they_are_for():
    class Overrides(Noting):
        def __init__(self):
            super().__init__()
            self.calls = []

        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            self.calls.append(("optimizer_step", epoch, batch_idx, type(optimizer)))
            assert isinstance(optimizer, torch.optim.SGD)
            optimizer.step(closure=optimizer_closure)

        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            self.calls.append(("optimizer_zero_grad", epoch, batch_idx, type(optimizer)))
            optimizer.zero_grad()

        def backward(self, loss):
            self.calls.append(("backward", loss.item()))
            loss.backward()

        def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
            self.calls.append(("clipping", type(optimizer), gradient_clip_val, gradient_clip_algorithm))
            self.clip_gradients(optimizer, gradient_clip_val=0.01, gradient_clip_algorithm="value")
            assert self.layer.bias.grad.item() == pytest.approx(0.01)

    model = Overrides()
    with torch.no_grad():
        model.layer.weight.fill_(0), model.layer.bias.fill_(3)
    trained(model, ones(2), accumulate_grad_batches=2, gradient_clip_val=0.5, max_epochs=1)
    assert model.calls == [
        ("optimizer_zero_grad", 0, 0, torch.optim.SGD),
        ("backward", 1.5),
        ("optimizer_step", 0, 1, SteppingOptimizer),
        ("backward", 1.5),
        ("clipping", torch.optim.SGD, 0.5, "norm"),
    ]
    assert model.layer.bias.item() == pytest.approx(3 - 0.1 * 0.01)


def test_an_overridden_optimizer_step_may_run_the_closure_itself_and_step_without():
    class Overrides(Noting):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            loss = optimizer_closure()
            assert loss.requires_grad
            if batch_idx % 2:
                optimizer.step()

    model = Overrides()
    bias = model.layer.bias.item()
    trainer = trained(model)
    assert trainer.global_step == 2
    assert model.layer.bias.item() == pytest.approx(bias - 0.2)


def test_an_optimizer_that_wants_the_closure_gets_it():
    class Twice(torch.optim.SGD):
        """Not torch's own: evaluates the closure twice, as sharpness-aware ones do."""

        def step(self, closure):
            closure()
            loss = closure()
            super().step()
            return loss

    class Model(Noting):
        def configure_optimizers(self):
            return Twice(self.parameters(), lr=0.1)

    model = Model()
    trainer = trained(model)
    assert trainer.global_step == 4
    assert model.seen == [(0, index) for index in range(4) for _ in range(2)]


def test_a_step_pre_hook_sees_the_gradients_of_this_batch():
    class Hooked(Noting):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            optimizer.register_step_pre_hook(lambda *_: self.seen.append("before"))
            return optimizer

    model = Hooked()
    trained(model, ones(2))
    assert model.seen == ["before", (0, 0), "before", (0, 1)]  # the closure runs within step


def test_gradients_are_clipped_by_norm_and_by_value():
    def gradient(**options):
        class Clipped(Noting):
            def on_train_batch_end(self, outputs, batch, batch_idx):
                self.gradient = torch.cat([p.grad.flatten() for p in self.parameters()])

        model = Clipped()
        trained(model, ones(1), **options)
        return model.gradient

    assert gradient() == pytest.approx(torch.ones(5))
    assert gradient(gradient_clip_val=0.5).norm().item() == pytest.approx(0.5)
    assert gradient(gradient_clip_val=0.5, gradient_clip_algorithm="value").tolist() == [0.5] * 5


def test_manual_backward_is_refused_in_automatic_optimization():
    class Wrong(Noting):
        def training_step(self, batch, batch_idx):
            self.manual_backward(self.layer(batch).mean())

    with pytest.raises(MisconfigurationError, match="automatic_optimization = False"):
        trained(Wrong())


def test_toggled_optimizers_leave_the_others_parameters_without_gradient():
    class Gan(Manual):
        def __init__(self):
            super().__init__()
            self.other = torch.nn.Linear(4, 1)

        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.layer, self.other)]

        def training_step(self, batch, batch_idx):
            _, second = self.optimizers()
            with self.toggled_optimizer(second):
                self.manual_backward((self.layer(batch) + self.other(batch)).mean())
                second.step()
            assert self.layer.weight.grad is None
            assert self.other.weight.grad is not None
            assert all(parameter.requires_grad for parameter in self.parameters())

    assert trained(Gan(), ones(1)).global_step == 1


# The module, its batches and its modes.


@pytest.mark.filterwarnings("ignore:.*LD289")
def test_transfer_hooks_change_the_batch_and_the_datamodules_come_first():
    class Model(Noting):
        def training_step(self, batch, batch_idx):
            self.got = batch[0, 0].item()
            return super().training_step(batch, batch_idx)

        def on_before_batch_transfer(self, batch, dataloader_idx):
            return batch + 100

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch * 3

    class Data(LightningDataModule):
        def train_dataloader(self):
            return ones(1)

        def on_before_batch_transfer(self, batch, dataloader_idx):
            return batch + 1

        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            assert device == torch.device("cpu")
            return batch + 10

    trained(model := Model(), Data())
    assert model.got == (1 + 1 + 10) * 3
    trained(model, ones(1))
    assert model.got == (1 + 100) * 3


def test_a_transfer_hook_that_cannot_take_its_call_is_refused():
    class Model(Noting):
        def on_after_batch_transfer(self, batch):
            return batch

    with pytest.raises(MisconfigurationError, match=r"on_after_batch_transfer must take \(batch, dataloader_idx\)"):
        trained(Model())


class Frozen(Noting):
    """Has a layer that is meant to stay in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4).eval()
        self.modes: list[tuple[str, bool, bool]] = []

    def training_step(self, batch, batch_idx):
        self.modes.append(("train", self.training, self.norm.training))
        return self.layer(self.norm(batch)).mean()

    def validation_step(self, batch, batch_idx):
        self.modes.append(("val", self.training, self.norm.training))


@pytest.mark.filterwarnings("ignore:1 submodules are in evaluation mode")
def test_a_layer_frozen_in_evaluation_mode_stays_so_after_validation():
    model = Frozen()
    trained(model, ones(2), ones(1), val_check_interval=1, num_sanity_val_steps=1)
    expected = [("val", False, False), *[("train", True, False), ("val", False, False)] * 2]
    assert model.modes == expected
    assert (model.training, model.layer.training, model.norm.training) == (True, True, False)


def test_layers_in_evaluation_mode_are_named_as_training_starts():
    with pytest.warns(LeydenWarning, match=r"1 submodules are in evaluation mode.*\(norm\).*LD031"):
        trained(Frozen(), ones(1))


def test_gradients_are_on_while_training_though_the_caller_turned_them_off():
    with torch.no_grad():
        assert trained(Noting()).global_step == 4


# One Trainer, several fits; callbacks that come and go.


def test_a_second_fit_goes_on_in_mid_epoch():
    model = Noting()
    trainer = trained(model, callbacks=[stop_at(6)], max_epochs=2)
    assert (trainer.current_epoch, trainer.global_step) == (1, 6)
    model.seen.clear()
    trainer.fit(model, ones(4))
    assert model.seen == [(1, 2), (1, 3)]
    assert (trainer.current_epoch, trainer.global_step) == (2, 8)


@pytest.mark.parametrize(
    ("limit", "message"),
    [({"max_epochs": 1}, "completed its max_epochs=1"), ({"max_steps": 2, "max_epochs": 9}, "taken its max_steps=2")],
)
def test_a_second_fit_with_nothing_left_to_do_says_so(limit, message):
    model = Noting()
    trainer = trained(model, **limit)
    model.seen.clear()
    with pytest.warns(LeydenWarning, match=rf"{message}.*nothing to do.*LD061"):
        trainer.fit(model, ones(4))
    assert model.seen == []


def test_callbacks_that_are_added_or_removed_in_mid_run_are_noticed_at_the_next_epoch():
    ends, brief = BatchEnds(), BatchEnds()

    class Changes(Noting):
        def on_train_batch_start(self, batch, batch_idx):
            if self.current_epoch == 0 and batch_idx == 1:
                self.trainer.callbacks.append(ends)
                self.trainer.callbacks.remove(brief)

    trained(Changes(), callbacks=[brief], max_epochs=2)
    assert [index for index, _ in ends.heard] == [0, 1, 2, 3]
    assert [index for index, _ in brief.heard] == [0, 1, 2, 3]


def test_a_hook_that_cannot_take_its_call_is_refused_before_training():
    class Wrong(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs):
            pass

    model = Noting()
    with pytest.raises(
        MisconfigurationError, match=r"on_train_batch_end\(trainer, pl_module, outputs, batch, batch_idx\)"
    ):
        trained(model, callbacks=[Wrong()])
    assert model.seen == []


# Steps in sight, and an end that is not meant.


class AsksForTheSteps(Noting):
    """Asks for the number of steps before the training loader is there."""

    def configure_optimizers(self):
        self.steps = self.trainer.estimated_stepping_batches
        return super().configure_optimizers()


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 3}, 12),
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, 6),
        ({"max_epochs": 3, "max_steps": 10}, 10),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, 6),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": -1, "callbacks": [stop_at(1)]}, math.inf),
    ],
)
def test_estimated_stepping_batches_is_known_in_configure_optimizers(options, steps):
    model = AsksForTheSteps()
    trainer = trained(model, **options)
    assert model.steps == steps
    if steps != math.inf:
        assert trainer.global_step == steps


def test_the_training_loader_is_asked_for_once_though_the_steps_are_counted_before():
    class Data(LightningDataModule):
        asked = 0

        def train_dataloader(self):
            self.asked += 1
            return ones(4)

    trained(AsksForTheSteps(), data := Data())
    assert data.asked == 1


def test_the_steps_of_a_loader_without_length_are_those_of_max_steps_or_refused():
    model = AsksForTheSteps()
    trained(model, stream(4), max_epochs=9, max_steps=3)
    assert model.steps == 3
    with pytest.raises(MisconfigurationError, match=r"has no length.*max_steps"):
        trained(AsksForTheSteps(), stream(4))


def test_ctrl_c_ends_the_run_after_everybody_has_tidied_up():
    heard = []

    class Hears(Callback):
        def on_exception(self, trainer, pl_module, exception):
            heard.append(("on_exception", type(exception), str(trainer.state.status)))

        def on_train_end(self, trainer, pl_module):
            heard.append("on_train_end")

        def teardown(self, trainer, pl_module, stage):
            heard.append(("teardown", stage))

    class Interrupted(Noting):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise KeyboardInterrupt
            return super().training_step(batch, batch_idx)

    finalized = []

    class Finalized(Memory):
        def finalize(self, status):
            finalized.append(status)

    trainer = bare(callbacks=[Hears()], logger=Finalized(), limit_val_batches=0)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(Interrupted(), ones(4))
    assert heard == [("on_exception", KeyboardInterrupt, "interrupted"), ("teardown", "fit")]
    assert finalized == ["failed"]
    assert trainer.interrupted
    assert not trainer.training
    assert (trainer.global_step, trainer.state.position.batch) == (2, 2)


def test_every_teardown_is_called_though_one_fails():
    torn_down = []

    class First(Callback):
        def teardown(self, trainer, pl_module, stage):
            raise RuntimeError("cannot tidy up")

    class Second(Callback):
        def teardown(self, trainer, pl_module, stage):
            torn_down.append(stage)

    with pytest.raises(RuntimeError, match="cannot tidy up"):
        trained(Noting(), callbacks=[First(), Second()])
    assert torn_down == ["fit"]
