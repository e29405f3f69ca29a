"""The order in which callback, module and datamodule hear of things, written out; the loops' pseudocode against it.

The lists are what Lightning 2.6.6 does, except where a test says otherwise. ``C`` is a callback's hook, ``M`` the
module's, ``D`` the datamodule's, and the numbers are the indices that the hook is given. The hooks of a batch of
validation, test or prediction are always given ``dataloader_idx``; Lightning leaves it out where there is one loader.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler

from leyden.callbacks import EarlyStopping, ModelCheckpoint
from leyden.core import evaluate, fit
from leyden.core.callback import Callback
from leyden.core.hooks import HOOKS
from leyden.loggers.logger import Logger
from recording import Manual, Plain, bare, record, written_out

# Module and datamodule record the same hooks, those that do part of the work too.
pytestmark = pytest.mark.filterwarnings("ignore:.* both have .*LD289", "ignore:.*LD29[01]")

TRANSFER = """
    D on_before_batch_transfer 0
    D transfer_batch_to_device 0
    D on_after_batch_transfer 0
"""
BEFORE_FIT = """
    D M prepare_data
    D C M setup fit
    M configure_model
    M configure_optimizers
    C M on_fit_start
"""
VALIDATION = f"""
    M on_validation_model_eval
    C M on_validation_start
    C M on_validation_epoch_start
    {TRANSFER}
    C M on_validation_batch_start 0 0
    M validation_step 0
    C M on_validation_batch_end 0 0
    C M on_validation_epoch_end
    C M on_validation_end
    M on_validation_model_train
"""
AFTER_FIT = """
    C M on_train_end
    C M on_fit_end
    D C M teardown fit
"""


def batch(index: int, *, epoch: int = 0, last: bool = False) -> str:
    """A batch after which the optimizer steps; the ``last`` of an epoch steps the scheduler by epoch too."""
    return f"""
        {TRANSFER}
        C M on_train_batch_start {index}
        M optimizer_step {epoch} {index}
        M training_step {index}
        C M on_before_zero_grad
        M optimizer_zero_grad {epoch} {index}
        C M on_before_backward
        M backward
        C M on_after_backward
        C M on_before_optimizer_step
        M configure_gradient_clipping
        M clip_gradients
        M lr_scheduler_step
        {"M lr_scheduler_step" if last else ""}
        C M on_train_batch_end {index}
    """


def test_fit_of_two_epochs():
    assert record(max_epochs=2) == written_out(
        """
        D M prepare_data
        D C M setup fit
        M configure_model
        M configure_optimizers
        C M on_fit_start
        D train_dataloader
        D val_dataloader
        C M on_train_start
        C M on_train_epoch_start
        D on_before_batch_transfer 0
        D transfer_batch_to_device 0
        D on_after_batch_transfer 0
        C M on_train_batch_start 0
        M optimizer_step 0 0
        M training_step 0
        C M on_before_zero_grad
        M optimizer_zero_grad 0 0
        C M on_before_backward
        M backward
        C M on_after_backward
        C M on_before_optimizer_step
        M configure_gradient_clipping
        M clip_gradients
        M lr_scheduler_step
        C M on_train_batch_end 0
        D on_before_batch_transfer 0
        D transfer_batch_to_device 0
        D on_after_batch_transfer 0
        C M on_train_batch_start 1
        M optimizer_step 0 1
        M training_step 1
        C M on_before_zero_grad
        M optimizer_zero_grad 0 1
        C M on_before_backward
        M backward
        C M on_after_backward
        C M on_before_optimizer_step
        M configure_gradient_clipping
        M clip_gradients
        M lr_scheduler_step
        M lr_scheduler_step
        C M on_train_batch_end 1
        M on_validation_model_zero_grad
        M on_validation_model_eval
        C M on_validation_start
        C M on_validation_epoch_start
        D on_before_batch_transfer 0
        D transfer_batch_to_device 0
        D on_after_batch_transfer 0
        C M on_validation_batch_start 0 0
        M validation_step 0
        C M on_validation_batch_end 0 0
        C M on_validation_epoch_end
        C M on_validation_end
        M on_validation_model_train
        C M on_train_epoch_end
        C M on_train_epoch_start
        """,
        batch(0, epoch=1),
        batch(1, epoch=1, last=True),
        "M on_validation_model_zero_grad",
        VALIDATION,
        """
        C M on_train_epoch_end
        C M on_train_end
        C M on_fit_end
        D C M teardown fit
        """,
    )


def test_accumulation_steps_after_every_window_and_after_the_last_batch():
    accumulating = f"""
        {TRANSFER}
        C M on_train_batch_start 0
        M training_step 0
        C M on_before_zero_grad
        M optimizer_zero_grad 0 0
        C M on_before_backward
        M backward
        C M on_after_backward
        C M on_train_batch_end 0
    """
    filling = f"""
        {TRANSFER}
        C M on_train_batch_start 1
        M optimizer_step 0 1
        M training_step 1
        C M on_before_backward
        M backward
        C M on_after_backward
        C M on_before_optimizer_step
        M configure_gradient_clipping
        M clip_gradients
        M lr_scheduler_step
        C M on_train_batch_end 1
    """
    assert record(batches=3, accumulate_grad_batches=2, limit_val_batches=0) == written_out(
        BEFORE_FIT,
        "D train_dataloader",
        "C M on_train_start",
        "C M on_train_epoch_start",
        accumulating,
        filling,
        batch(2, last=True),
        "C M on_train_epoch_end",
        AFTER_FIT,
    )


def test_validation_in_mid_epoch_comes_before_the_next_batch():
    assert record(val_check_interval=0.5) == written_out(
        BEFORE_FIT,
        "D train_dataloader",
        "D val_dataloader",
        "C M on_train_start",
        "C M on_train_epoch_start",
        batch(0),
        "M on_validation_model_zero_grad",
        VALIDATION,
        batch(1, last=True),
        "M on_validation_model_zero_grad",
        VALIDATION,
        "C M on_train_epoch_end",
        AFTER_FIT,
    )


def test_gradients_are_not_cleared_before_a_validation_in_mid_window():
    events = record(val_check_interval=0.5, accumulate_grad_batches=2)
    assert events.count("M on_validation_start") == 2
    assert events.count("M on_validation_model_zero_grad") == 1


def test_the_sanity_check_comes_before_the_training_loader_is_asked_for():
    assert record(num_sanity_val_steps=1, batches=1) == written_out(
        BEFORE_FIT,
        "C on_sanity_check_start",
        "D val_dataloader",
        VALIDATION,
        "C on_sanity_check_end",
        "D train_dataloader",
        "C M on_train_start",
        "C M on_train_epoch_start",
        batch(0, last=True),
        "M on_validation_model_zero_grad",
        VALIDATION,
        "C M on_train_epoch_end",
        AFTER_FIT,
    )


def test_validate():
    assert record("validate") == written_out(
        """
        D M prepare_data
        D C M setup validate
        M configure_model
        D val_dataloader
        """,
        VALIDATION,
        "D C M teardown validate",
    )


def test_test():
    assert record("test") == written_out(
        f"""
        D M prepare_data
        D C M setup test
        M configure_model
        D test_dataloader
        M on_test_model_eval
        C M on_test_start
        C M on_test_epoch_start
        {TRANSFER}
        C M on_test_batch_start 0 0
        M test_step 0
        C M on_test_batch_end 0 0
        C M on_test_epoch_end
        C M on_test_end
        M on_test_model_train
        D C M teardown test
        """
    )


def test_predict():
    assert record("predict") == written_out(
        f"""
        D M prepare_data
        D C M setup predict
        M configure_model
        D predict_dataloader
        M on_predict_model_eval
        C M on_predict_start
        C M on_predict_epoch_start
        {TRANSFER}
        C M on_predict_batch_start 0 0
        M predict_step 0
        C M on_predict_batch_end 0 0
        C M on_predict_epoch_end
        C M on_predict_end
        D C M teardown predict
        """
    )


def test_several_validation_loaders_come_one_after_the_other():
    def transfer(loader: int) -> str:
        return f"""
            D on_before_batch_transfer {loader}
            D transfer_batch_to_device {loader}
            D on_after_batch_transfer {loader}
        """

    assert record("validate", validation=(1, 2)) == written_out(
        f"""
        D M prepare_data
        D C M setup validate
        M configure_model
        D val_dataloader
        M on_validation_model_eval
        C M on_validation_start
        C M on_validation_epoch_start
        {transfer(0)}
        C M on_validation_batch_start 0 0
        M validation_step 0 0
        C M on_validation_batch_end 0 0
        {transfer(1)}
        C M on_validation_batch_start 0 1
        M validation_step 0 1
        C M on_validation_batch_end 0 1
        {transfer(1)}
        C M on_validation_batch_start 1 1
        M validation_step 1 1
        C M on_validation_batch_end 1 1
        C M on_validation_epoch_end
        C M on_validation_end
        M on_validation_model_train
        D C M teardown validate
        """
    )


class SkipsFromTheSecondBatch(Plain):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 1 else None


def test_minus_one_from_on_train_batch_start_ends_the_epoch_and_steps_the_scheduler_by_epoch_alone():
    def epoch(number: int) -> str:  # Lightning steps the scheduler by step too, though the optimizer did not step
        return f"""
            C M on_train_epoch_start
            {batch(0, epoch=number)}
            {TRANSFER}
            C M on_train_batch_start 1
            M lr_scheduler_step
            C M on_train_epoch_end
        """

    assert record(model=SkipsFromTheSecondBatch, batches=3, max_epochs=2) == written_out(
        BEFORE_FIT,
        "D train_dataloader",
        "D val_dataloader",
        "C M on_train_start",
        epoch(0),
        epoch(1),
        AFTER_FIT,
    )


class Fails(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise ArithmeticError("on purpose")


class IsInterrupted(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise KeyboardInterrupt


@pytest.mark.parametrize(("model", "error"), [(Fails, ArithmeticError), (IsInterrupted, KeyboardInterrupt)])
def test_after_an_exception_teardown_is_called_too(model, error):  # in Lightning it is not
    assert record(model=model, raises=error) == written_out(
        BEFORE_FIT,
        "D train_dataloader",
        "D val_dataloader",
        f"""
        C M on_train_start
        C M on_train_epoch_start
        {TRANSFER}
        C M on_train_batch_start 0
        M optimizer_step 0 0
        M training_step 0
        C D on_exception
        D C M teardown fit
        raises {error.__name__}
        """,
    )


def test_manual_optimization_leaves_clearing_clipping_and_schedulers_to_the_step():
    assert record(model=Manual, batches=1, limit_val_batches=0) == written_out(
        BEFORE_FIT,
        f"""
        D train_dataloader
        C M on_train_start
        C M on_train_epoch_start
        {TRANSFER}
        C M on_train_batch_start 0
        M training_step 0
        C M on_before_backward
        M backward
        C M on_after_backward
        C M on_before_optimizer_step
        C M on_train_batch_end 0
        C M on_train_epoch_end
        """,
        AFTER_FIT,
    )


class StopsAfterEveryBatch(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = True


def test_a_stop_in_mid_epoch_is_followed_by_a_last_validation():
    assert record(batches=3, max_epochs=3, callbacks=[StopsAfterEveryBatch()]) == written_out(
        BEFORE_FIT,
        "D train_dataloader",
        "D val_dataloader",
        "C M on_train_start",
        "C M on_train_epoch_start",
        batch(0),
        "M on_validation_model_zero_grad",
        VALIDATION,
        "C M on_train_epoch_end",
        AFTER_FIT,
    )


def test_max_steps_in_mid_epoch_ends_the_epoch_without_validation():
    assert record(batches=3, max_steps=1) == written_out(
        BEFORE_FIT,
        "D train_dataloader",
        "D val_dataloader",
        "C M on_train_start",
        "C M on_train_epoch_start",
        batch(0),
        "C M on_train_epoch_end",
        AFTER_FIT,
    )


class SkipsItsLoss(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        return None


@pytest.mark.filterwarnings("ignore:training_step returned None", "ignore:Detected call of `lr_scheduler.step")
def test_a_step_without_a_loss_clears_the_gradients_and_takes_no_part_in_the_rest():
    events = record(model=SkipsItsLoss, batches=1, limit_val_batches=0)
    first, last = events.index("C on_train_batch_start 0"), events.index("M on_train_batch_end 0")
    # Lightning fires the hooks of clipping and the optimizer's step too, and steps the scheduler by step.
    assert events[first : last + 1] == written_out(
        """
        C M on_train_batch_start 0
        M optimizer_step 0 0
        M training_step 0
        C M on_before_zero_grad
        M optimizer_zero_grad 0 0
        M lr_scheduler_step
        C M on_train_batch_end 0
        """
    )


def test_hooks_that_do_part_of_the_work_change_no_order():
    def told(events: list[str]) -> list[str]:
        return [event for event in events if re.match(r"[CMD] (on_|\w+_step|\w+loader)", event)]

    options: dict[str, Any] = {"batches": 3, "accumulate_grad_batches": 2, "num_sanity_val_steps": 1}
    without = [
        event
        for event in told(record(**options))
        if not re.match(r"M (optimizer_step|lr_scheduler_step|on_before_batch|on_after_batch)", event)
    ]
    assert told(record(only_events=True, **options)) == without


def test_a_monitoring_callback_hears_of_the_epochs_end_after_the_module():
    class Monitors(EarlyStopping):
        def on_train_epoch_end(self, trainer, pl_module):
            events.append("monitor on_train_epoch_end")

    events: list[str] = []
    record(callbacks=[Monitors("nothing", strict=False)], events=events)
    assert [event for event in events if event.endswith("on_train_epoch_end")] == written_out(
        "C M on_train_epoch_end", "monitor on_train_epoch_end"
    )


# Lightning writes in the midst of the hooks, where the callback that saves has its place among them.
SAVED = """
    D C state_dict
    C M on_save_checkpoint
"""


def test_a_checkpoint_of_a_step_is_written_after_the_hooks_of_its_batch_and_after_validation(tmp_path):
    events = record(
        val_check_interval=0.5,
        enable_checkpointing=True,
        callbacks=[ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)],
    )
    first, last = events.index("C on_train_batch_end 0"), events.index("C on_train_batch_start 1")
    assert events[first:last] == written_out(
        "C M on_train_batch_end 0",
        "M on_validation_model_zero_grad",
        VALIDATION,
        SAVED,
        TRANSFER,
    )


def test_a_checkpoint_of_an_epoch_is_written_after_the_hooks_of_its_end(tmp_path):
    events = record(enable_checkpointing=True, callbacks=[ModelCheckpoint(tmp_path)])
    assert events[events.index("C on_train_epoch_end") :] == written_out("C M on_train_epoch_end", SAVED, AFTER_FIT)


class SavesAtTheEnd(Callback):
    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint("end.ckpt")


def test_a_resumed_fit_loads_the_model_before_the_optimizers_and_makes_no_sanity_check():
    record(callbacks=[SavesAtTheEnd()])
    events = record(ckpt_path="end.ckpt", max_epochs=2, num_sanity_val_steps=1)
    assert events == written_out(
        """
        D M prepare_data
        D C M setup fit
        M configure_model
        M on_load_checkpoint
        M load_state_dict
        C on_load_checkpoint
        M configure_optimizers
        C M on_fit_start
        D train_dataloader
        D val_dataloader
        C M on_train_start
        C M on_train_epoch_start
        """,
        batch(0, epoch=1),
        batch(1, epoch=1, last=True),
        "M on_validation_model_zero_grad",
        VALIDATION,
        "C M on_train_epoch_end",
        AFTER_FIT,
    )


def test_loaders_made_anew_are_asked_for_before_their_epoch_and_before_their_validation():
    validation = ["M on_validation_model_zero_grad", VALIDATION, "C M on_train_epoch_end"]
    assert record(batches=1, max_epochs=2, reload_dataloaders_every_n_epochs=1) == written_out(
        BEFORE_FIT,
        "D train_dataloader",
        "D val_dataloader",
        "C M on_train_start",
        "C M on_train_epoch_start",
        batch(0, last=True),
        *validation,
        "D train_dataloader",
        "C M on_train_epoch_start",
        batch(0, epoch=1, last=True),
        validation[0],
        "D val_dataloader",
        *validation[1:],
        AFTER_FIT,
    )


@pytest.mark.parametrize(
    ("minimum", "rest"),
    [
        ({"min_epochs": 1}, [batch(1, last=True), "M on_validation_model_zero_grad", VALIDATION]),
        ({"min_steps": 2}, [batch(1, last=True), "M on_validation_model_zero_grad", VALIDATION]),
        (
            {"min_steps": 3},
            [
                *(batch(1, last=True), "M on_validation_model_zero_grad", VALIDATION),
                *("C M on_train_epoch_end", "C M on_train_epoch_start", batch(0, epoch=1)),
                *("M on_validation_model_zero_grad", VALIDATION),
            ],
        ),
    ],
)
def test_a_stop_that_is_asked_for_early_waits_for_the_minimum(minimum, rest):
    assert record(max_epochs=3, callbacks=[StopsAfterEveryBatch()], **minimum) == written_out(
        BEFORE_FIT,
        "D train_dataloader",
        "D val_dataloader",
        "C M on_train_start",
        "C M on_train_epoch_start",
        batch(0),
        *rest,
        "C M on_train_epoch_end",
        AFTER_FIT,
    )


@pytest.mark.parametrize("nothing", [{"max_epochs": 0}, {"max_steps": 0}, {"limit_train_batches": 0}])
def test_a_fit_without_anything_to_train_sets_up_checks_and_tears_down(nothing):
    # Where it is an epoch or a step that is missing, Lightning asks for the training loader all the same.
    assert record(num_sanity_val_steps=1, **nothing) == written_out(
        BEFORE_FIT,
        "C on_sanity_check_start",
        "D val_dataloader",
        VALIDATION,
        "C on_sanity_check_end",
        "C M on_fit_end",
        "D C M teardown fit",
    )


def test_several_loaders_within_fit_are_sanity_checked_and_validated_one_after_the_other():
    steps = [e for e in record(num_sanity_val_steps=1, batches=1, validation=(1, 2)) if e.startswith("M validation_s")]
    check, validation = [(0, 0), (0, 1)], [(0, 0), (0, 1), (1, 1)]
    assert steps == [f"M validation_step {index} {loader}" for index, loader in [*check, *validation]]


@pytest.mark.parametrize("method", ["test", "predict"])
def test_several_loaders_are_tested_and_predicted_one_after_the_other(method):
    batches = ""
    for index, loader in ((0, 0), (0, 1), (1, 1)):
        batches += f"""
            D on_before_batch_transfer {loader}
            D transfer_batch_to_device {loader}
            D on_after_batch_transfer {loader}
            C M on_{method}_batch_start {index} {loader}
            M {method}_step {index} {loader}
            C M on_{method}_batch_end {index} {loader}
        """
    events = record(method, validation=(1, 2))
    first, last = events.index(f"M on_{method}_epoch_start"), events.index(f"C on_{method}_epoch_end")
    assert events[first + 1 : last] == written_out(batches)


def failing_in(method: str) -> type[Plain]:
    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        raise ArithmeticError("on purpose")

    return type("FailsEarlyOrLate", (Plain,), {method: fail})


@pytest.mark.parametrize(
    "method",
    [
        *("prepare_data", "setup", "configure_model", "configure_optimizers", "on_fit_start", "validation_step"),
        *("on_train_start", "backward", "on_train_batch_end", "on_train_epoch_end", "on_fit_end"),
    ],
)
def test_wherever_a_run_fails_everybody_hears_of_it_and_is_torn_down(method):
    events = record(model=failing_in(method), num_sanity_val_steps=1, raises=ArithmeticError)
    told = written_out("C D on_exception", "D C M teardown fit", "raises ArithmeticError")
    assert events[-len(told) :] == told
    assert events[-len(told) - 1].startswith(f"M {method}")


class Watched(Plain):
    """Has a scheduler that watches ``v``, which validation logs."""

    interval = "epoch"

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("v", 1.0)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return optimizer, {"scheduler": scheduler, "monitor": "v", "interval": self.interval}


class WatchedByStep(Watched):
    interval = "step"


class MonitorsToo(EarlyStopping):
    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.events.append("monitor on_train_epoch_end")


@pytest.mark.parametrize("model", [Watched, WatchedByStep])
def test_a_scheduler_that_watches_a_metric_steps_after_validation_or_after_the_monitors(model):
    events: list[str] = []
    known = type("Recorded", (model,), {"events": events})
    record(model=known, callbacks=[MonitorsToo("v")], events=events, batches=1)
    told = ("on_train_batch_end 0", "on_validation_end", "lr_scheduler_step", "on_train_epoch_end", "on_train_end")
    by_step = ["M lr_scheduler_step"] if model is WatchedByStep else []
    by_epoch = ["M lr_scheduler_step"] if model is Watched else []
    assert [event for event in events if event.endswith(told)] == [
        *written_out("C M on_train_batch_end 0", "C M on_validation_end", *by_step, "C M on_train_epoch_end"),
        *("monitor on_train_epoch_end", *by_epoch, "C on_train_end", "M on_train_end"),
    ]


class RecordingLogger(Logger):
    """Records that it is sent something."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.events.append("L sent")


class HearingLogger(RecordingLogger):
    """Records too that it gets the hyper-parameters and the graph."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.events.append("L hyper-parameters")

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        self.events.append("L graph")

    def finalize(self, status: str) -> None:
        self.events.append(f"L {status}")


class Saves(Plain):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_loggers_get_hyperparameters_and_graph_when_fit_has_started_and_hear_of_its_end_last():
    events: list[str] = []
    record(model=Saves, events=events, logger=HearingLogger(events), num_sanity_val_steps=1)
    start = events.index("M on_fit_start")
    assert events[start + 1 : start + 4] == ["L hyper-parameters", "L graph", "C on_sanity_check_start"]
    assert events[-2:] == ["M teardown fit", "L success"]


def test_samplers_hear_of_the_epoch_before_anybody_else_and_are_read_when_all_have_heard():
    events: list[str] = []

    class Tells(SequentialSampler):
        def set_epoch(self, epoch: int) -> None:
            events.append(f"S set_epoch {epoch}")

        def __iter__(self) -> Any:
            events.append("S begins")
            return super().__iter__()

    class Hears(Callback):
        def on_train_start(self, trainer, pl_module):
            events.append("on_train_start")

        def on_train_epoch_start(self, trainer, pl_module):
            events.append("on_train_epoch_start")

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            events.append("on_train_batch_start")

    data = torch.ones(2, 4)
    loader = DataLoader(data, batch_size=2, sampler=Tells(data))
    bare(callbacks=[Hears()], max_epochs=2, limit_val_batches=0).fit(Plain(), loader)
    assert [event for event, _ in itertools.groupby(events)] == [
        "on_train_start",
        *("S set_epoch 0", "on_train_epoch_start", "S begins", "on_train_batch_start"),
        *("S set_epoch 1", "on_train_epoch_start", "S begins", "on_train_batch_start"),
    ]


def test_every_hook_of_the_table_is_fired_somewhere():
    events = {*record(num_sanity_val_steps=1), *record("test"), *record("predict")}
    fired = {event.split()[1] for event in events}
    assert set(HOOKS) - fired == set()


# The pseudocode in the docstrings of fit.py and evaluate.py is a grammar of events: what is in brackets may be missing,
# and what is below a line that ends in a colon happens any number of times. What it says in words stands for these
# events; capitals stand for an expression.
WORDS = {
    "[sanity check only: ": "[",
    "sanity check": "EVALUATION",
    "the gradients are cleared": "optimizer_zero_grad",
    "clipping": "configure_gradient_clipping",
    "the optimizer steps": "steps",
    "schedulers by step; on the epoch's last batch, schedulers by epoch": "lr_scheduler_step",
    "step values go to the loggers": "sent",
    "epoch values go to the loggers": "SENT",
    "validation, when due": "EVALUATION",
    "checkpoints that were asked for are written": "on_save_checkpoint",
    "checkpoints are written": "SAVED",
    "the epoch's values are reduced and go to the loggers": "SENT",
}
LINE = re.compile(r"(?P<indent> *)(?P<bracket>\[?)(?P<names>\w+(?:, \w+)*)\]?(?:    .*)?")


def grammar(module: Any, **expressions: str) -> str:
    """The regular expression that the docstring of ``module`` is; it matches events with a space behind each."""
    pseudocode = module.__doc__.partition("\n")[2]
    for stage, name in (("{validation,test,predict}", "STAGE"), ("{...}", "STAGE"), *WORDS.items()):
        pseudocode = pseudocode.replace(stage, name)
    expressions = {"SENT": "(sent )?", "SAVED": "(on_save_checkpoint )?", **expressions}
    expression, loops = "", 0
    for line in pseudocode.strip().splitlines():
        indent = (len(line) - len(line.lstrip())) // 4
        expression += ")*" * (loops - indent)
        loops = indent
        if line.endswith(":"):
            expression, loops = expression + "(", loops + 1
            continue
        found = LINE.fullmatch(line)
        assert found, f"The pseudocode says {line!r}, which this test cannot read: put its words into WORDS."
        names = [name.replace("STAGE", expressions.get("STAGE", "")) for name in found["names"].split(", ")]
        events = "".join(expressions.get(name, f"{name} ") for name in names)
        expression += f"({events})?" if found["bracket"] else events
    return expression + ")*" * loops


def recorded_in_words(method: str, expression: str, events: list[str], model: type[Plain], **options: Any) -> str:
    """What a run records of the events that ``expression`` knows, one after the other without repetitions."""
    vocabulary = set(re.findall(r"\w+", expression))
    record(method, model=model, events=events, logger=RecordingLogger(events), log_every_n_steps=1, **options)
    names = [name for event in events if (name := event.split()[1]) in vocabulary]
    assert set(names) == vocabulary, f"The run never came to {vocabulary - set(names)}."
    return "".join(f"{name} " for name, _ in itertools.groupby(names))


def logging_model(events: list[str]) -> type[Plain]:
    """A class of modules that log in every step, with an optimizer that records when it steps."""

    class Logs(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss, on_step=True, on_epoch=True)
            return loss

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("val_loss", 1.0)

        def test_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("test_loss", 1.0)

        def configure_optimizers(self):
            [optimizer], schedulers = super().configure_optimizers()
            optimizer.register_step_post_hook(lambda *_: events.append("O steps"))
            return [optimizer], schedulers

    return Logs


def test_the_pseudocode_of_the_training_loop_is_the_order_of_events(tmp_path):
    expression = grammar(fit, EVALUATION=grammar(evaluate, STAGE="validation"))
    seen = recorded_in_words(
        "fit",
        expression,
        events := [],
        logging_model(events),
        batches=5,
        max_epochs=2,
        accumulate_grad_batches=2,
        val_check_interval=3,
        num_sanity_val_steps=1,
        enable_checkpointing=True,
        callbacks=[
            ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1),
            ModelCheckpoint(tmp_path / "epoch"),
        ],
    )
    assert re.fullmatch(expression, seen)
    names = seen.split()
    swapped = [[*names[:i], names[i + 1], names[i], *names[i + 2 :]] for i in range(len(names) - 1)]
    allowed = {(a[i], a[i + 1]) for i, a in enumerate(swapped) if re.fullmatch(expression, " ".join([*a, ""]))}
    assert allowed == set()


@pytest.mark.parametrize(("method", "stage"), [("validate", "validation"), ("test", "test"), ("predict", "predict")])
def test_the_pseudocode_of_evaluation_is_the_order_of_events(method, stage):
    expression = grammar(evaluate, STAGE=stage)
    alone = re.sub(r"\(on_sanity_check_\w+ \)\?", "", expression)
    if stage == "predict":  # nothing can be logged there
        alone = alone.replace("(sent )?", "")
    seen = recorded_in_words(method, alone, events := [], logging_model(events), validation=(2, 3))
    assert re.fullmatch(expression, seen)
