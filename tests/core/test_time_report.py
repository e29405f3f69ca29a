"""trainer.time_report: where the time of a fit went, and what to change."""

from __future__ import annotations

import copy
import itertools
import sys
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, StackDataset, Subset, TensorDataset

from leyden.callbacks.model_checkpoint import ModelCheckpoint
from leyden.core import times
from leyden.core.callback import Callback
from leyden.core.combined import CombinedLoader
from leyden.core.time_report import TimeReport, Waiting, advice_on_waiting, on_computing, on_data
from leyden.core.times import Times
from leyden.fabric.checkpoint_io import TorchCheckpointIO
from leyden.loggers.logger import Logger
from leyden.loggers.media import Image
from leyden.trainer import Trainer
from leyden.utils.errors import LeydenWarning
from leyden.utils.rank import log
from models import TinyModel, ValidatedModel, tiny_data, tiny_loader

NAMES = ["waiting for data", "steps", "validation", "logging", "checkpoints", "the rest"]
BARE = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(autouse=True, scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is imported by the first fit of a process would be the longest row of a test."""
    folder = tmp_path_factory.mktemp("warm")
    saving = {**BARE, "enable_checkpointing": True, "callbacks": [ModelCheckpoint(folder)]}
    Trainer(max_epochs=1, accelerator="cpu", **saving).fit(HeavyValidation(), tiny_loader(1), tiny_loader(1))


class Samples(Dataset[Any]):
    """``tiny_data``, each sample of which takes ``seconds``: asleep, or at work."""

    def __init__(self, samples: int, seconds: float = 0.0, works: bool = False) -> None:
        self.data, self.seconds, self.works = tiny_data(samples), seconds, works

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        until = time.perf_counter() + self.seconds
        while self.works and time.perf_counter() < until:
            pass
        time.sleep(max(0.0, until - time.perf_counter()))
        return self.data[index]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


class HeavyModel(TinyModel):
    """Its step takes so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        time.sleep(self.seconds)
        return super().training_step(batch, batch_idx)


class LoggingModel(TinyModel):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss


class HeavyValidation(TinyModel):
    """Its validation step takes so many seconds, and logs one value."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        time.sleep(self.seconds)
        self.log("val_loss", self.loss(batch))


class SlowLogger(Logger):
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        time.sleep(0.02)

    def log_media(self, name: str, media: Any, step: int | None = None) -> None:
        time.sleep(0.02)

    def log_hyperparams(self, params: Any, *args: Any) -> None:
        pass

    @property
    def name(self) -> str:
        return "slow"

    @property
    def version(self) -> str:
        return "0"


class SlowCheckpointIO(TorchCheckpointIO):
    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        time.sleep(0.1)
        super().save_checkpoint(checkpoint, path, storage_options)


def fitted(model: TinyModel, train: Any, val: Any = None, **options: Any) -> Trainer:
    trainer = Trainer(**{"max_epochs": 1, "accelerator": "cpu", "num_sanity_val_steps": 0, **BARE, **options})
    trainer.fit(model, train, val)
    return trainer


def report_of(*args: Any, **options: Any) -> TimeReport:
    report = fitted(*args, **options).time_report
    assert report is not None
    assert [row.name for row in report.rows] == NAMES
    assert sum(row.share for row in report.rows) == pytest.approx(1)
    assert all(row.seconds >= 0 for row in report.rows)
    return report


def row(report: TimeReport | None, name: str) -> Any:
    assert report is not None
    return next(row for row in report.rows if row.name == name)


# Where the time went.


def test_before_the_first_fit_there_is_no_report():
    assert Trainer(accelerator="cpu", **BARE).time_report is None


def test_a_dataset_that_sleeps_is_waiting_for_data():
    report = report_of(TinyModel(), DataLoader(Samples(320, seconds=0.001), batch_size=16))
    found = row(report, "waiting for data")
    assert found.share == max(row.share for row in report.rows) > 0.3
    assert found.seconds >= 0.32
    assert found.times == 20
    (advice,) = report.advice
    assert "waiting for data" in advice
    assert "num_workers=0" in advice


def test_a_heavy_step_is_steps_and_gives_no_advice():
    report = report_of(HeavyModel(0.01), tiny_loader(30))
    assert row(report, "steps").share == max(row.share for row in report.rows)
    assert row(report, "steps").seconds >= 0.3
    assert row(report, "steps").times == 30
    assert report.advice == []


def test_a_slow_validation_names_the_options_that_make_it_rarer():
    report = report_of(HeavyValidation(0.02), tiny_loader(4), tiny_loader(4), max_epochs=3)
    found = row(report, "validation")
    assert found.share == max(row.share for row in report.rows) > 0.3
    assert found.seconds >= 0.24
    assert found.times == 3
    (advice,) = report.advice
    assert "check_val_every_n_epoch=" in advice
    assert "limit_val_batches=0." in advice


def test_where_validation_runs_within_epochs_its_interval_is_named():
    report = report_of(HeavyValidation(0.02), tiny_loader(4), tiny_loader(4), val_check_interval=2)
    assert "val_check_interval so many times as large (it is 2)" in report.advice[0]
    report = report_of(HeavyValidation(0.05), tiny_loader(4), tiny_loader(8), limit_val_batches=8)
    assert row(report, "validation").times == 1
    assert "Take 1/" in report.advice[0]
    assert "limit_val_batches=1." in report.advice[0]


def test_a_slow_logger_names_log_every_n_steps():
    report = report_of(LoggingModel(), tiny_loader(20), logger=SlowLogger(), log_every_n_steps=1)
    found = row(report, "logging")
    assert found.share == max(row.share for row in report.rows) > 0.3
    assert found.times == 20
    (advice,) = report.advice
    assert "SlowLogger, 20 times" in advice
    assert "log_every_n_steps=" in advice


def test_images_count_as_logging():
    class Draws(TinyModel):
        def on_train_epoch_end(self) -> None:
            self.log("one", Image(torch.zeros(3, 2, 2)))
            self.log("two", Image(torch.zeros(3, 2, 2)))

    found = row(report_of(Draws(), tiny_loader(2), logger=SlowLogger()), "logging")
    assert found.times == 2
    assert found.seconds >= 0.04


def test_what_is_logged_inside_of_validation_counts_as_logging_alone():
    report = report_of(HeavyValidation(), tiny_loader(2), tiny_loader(2), logger=SlowLogger(), max_epochs=3)
    assert row(report, "logging").seconds >= 0.06
    assert row(report, "validation").seconds < 0.06


def test_a_slow_checkpoint_names_writing_in_the_background(tmp_path: Path):
    saving = {"callbacks": [ModelCheckpoint(tmp_path, save_top_k=-1)], "enable_checkpointing": True}
    report = report_of(TinyModel(), tiny_loader(4), max_epochs=3, plugins=[SlowCheckpointIO()], **saving)
    found = row(report, "checkpoints")
    assert found.share == max(row.share for row in report.rows) > 0.3
    assert found.times == 3
    (advice,) = report.advice
    assert "ModelCheckpoint(async_save=True)" in advice
    assert "every_n_train_steps" in advice


def test_a_checkpoint_that_a_hook_saves_counts_and_one_behind_the_fit_does_not(tmp_path: Path):
    class Saves(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / "in.ckpt")

    trainer = fitted(TinyModel(), tiny_loader(2), callbacks=[Saves()])
    assert row(trainer.time_report, "checkpoints").times == 2
    before = trainer.time_report
    trainer.save_checkpoint(tmp_path / "behind.ckpt")
    assert trainer.time_report == before


def test_waiting_for_what_is_written_in_the_background_counts(tmp_path: Path):
    class Asks(Callback):
        def on_train_end(self, trainer: Any, module: Any) -> None:
            trainer.request_checkpoint(str(tmp_path / "last.ckpt"), in_background=True)

    found = row(report_of(TinyModel(), tiny_loader(2), callbacks=[Asks()], plugins=[SlowCheckpointIO()]), "checkpoints")
    assert found.seconds >= 0.09
    assert found.times == 1


def test_set_up_and_hooks_of_epochs_are_the_rest():
    class Slow(TinyModel):
        def setup(self, stage: str) -> None:
            time.sleep(0.1)

        def on_train_epoch_end(self) -> None:
            time.sleep(0.1)

    report = report_of(Slow(), tiny_loader(4))
    assert row(report, "the rest").seconds >= 0.2
    assert row(report, "steps").seconds < 0.1


def test_the_report_can_be_read_while_the_fit_goes_on():
    class Reads(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, output: Any, batch: Any, index: int) -> None:
            found.append(row(trainer.time_report, "steps"))

    found: list[Any] = []
    fitted(HeavyModel(0.01), tiny_loader(3), callbacks=[Reads()])
    assert [one.times for one in found] == [1, 2, 3]
    assert found[0].seconds >= 0.01
    assert found[2].seconds >= 0.03


def test_a_fit_that_fails_has_its_report():
    class Fails(HeavyModel):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if batch_idx == 3:
                raise RuntimeError("enough")
            return super().training_step(batch, batch_idx)

    trainer = Trainer(max_epochs=1, accelerator="cpu", **BARE)
    with pytest.raises(RuntimeError, match="enough"):
        trainer.fit(Fails(0.01), tiny_loader(4))
    first = trainer.time_report
    assert row(first, "steps").seconds >= 0.03
    assert row(first, "steps").times == 3
    assert trainer.time_report == first  # its clock stands still


def test_evaluation_behind_a_fit_leaves_its_report():
    trainer = fitted(ValidatedModel(), tiny_loader(4), tiny_loader(4))
    before = trainer.time_report
    trainer.validate(dataloaders=tiny_loader(4), verbose=False)
    assert trainer.time_report == before


def test_a_second_fit_has_a_report_of_its_own():
    trainer = fitted(TinyModel(), tiny_loader(4), max_steps=4, max_epochs=-1)
    trainer.options = replace(trainer.options, max_steps=6)
    trainer.fit(TinyModel(), tiny_loader(4))
    assert row(trainer.time_report, "steps").times == 2


def test_a_resumed_fit_counts_its_own_batches(tmp_path: Path):
    first = fitted(TinyModel(), tiny_loader(4), max_steps=3, max_epochs=-1)
    first.save_checkpoint(tmp_path / "a.ckpt")
    second = Trainer(max_epochs=1, accelerator="cpu", **BARE)
    second.fit(TinyModel(), tiny_loader(4), ckpt_path=tmp_path / "a.ckpt")
    assert row(second.time_report, "steps").times == 1


def test_a_trainer_that_has_run_can_still_be_copied():
    trainer = fitted(TinyModel(), tiny_loader(4))
    assert copy.deepcopy(trainer).time_report == trainer.time_report


def test_printed_it_is_a_table_with_advice():
    lines = str(report_of(TinyModel(), DataLoader(Samples(320, seconds=0.001), batch_size=16))).splitlines()
    assert [line.split("│")[1].strip() for line in lines if "│" in line] == ["time went into", *NAMES, "the fit"]
    assert "of the time went into waiting for data" in lines[-1]


# What it costs.


def test_batches_that_are_ready_are_timed_rarely_and_all_are_handed_out():
    """Calls of functions of times.py for 1,000 batches, counted."""

    def count(frame: Any, event: str, argument: object) -> None:
        if event == "call" and frame.f_globals.get("__name__") == times.__name__:
            calls[frame.f_code.co_name] += 1

    for loader in (list(tiny_loader(1000)), tiny_loader(1000)):
        calls: Counter[str] = Counter()
        sys.setprofile(count)
        try:
            trainer = fitted(TinyModel(), loader)
        finally:
            sys.setprofile(None)
        assert trainer.global_step == 1000
        assert calls["_portion"] < 60, calls
        assert sum(calls.values()) < 150, calls
        assert "41 of 1000 were timed" in trainer.time_report.notes[0]
        assert row(trainer.time_report, "waiting for data").times == 1000


def test_timing_a_batch_leaves_order_and_weights_as_they_are():
    def weights(**options: Any) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model = TinyModel()
        data = DataLoader(Samples(700), batch_size=1, shuffle=True, **options)
        fitted(model, data)
        return [parameter.detach().clone() for parameter in model.parameters()]

    timed = weights()
    off = Times.timed
    try:
        Times.timed = lambda self, batches, loader, began: batches  # type: ignore[method-assign]
        assert all(map(torch.equal, timed, weights()))
    finally:
        Times.timed = off  # type: ignore[method-assign]


# The early warning, and the last words.


def test_a_loader_that_starves_the_step_is_warned_of_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(times, "_WARN_AFTER", 0.2)
    loader = DataLoader(Samples(130, seconds=0.004), batch_size=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fitted(TinyModel(), loader)
    (message,) = [str(one.message) for one in caught if issubclass(one.category, LeydenWarning)]
    assert "num_workers=0" in message
    assert message.endswith("[LD300]")
    assert trainer.global_step == 130


@pytest.mark.parametrize(
    ("samples", "step", "after"),
    [(40, 0.0, 0.1), (60, 0.007, 0.1), (60, 0.0, 5.0)],
    ids=["too few batches", "the step is longer", "too early"],
)
def test_there_is_no_warning_too_early_or_without_need(samples, step, after, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(times, "_WARN_AFTER", after)
    fitted(HeavyModel(step), DataLoader(Samples(samples, seconds=0.004), batch_size=1))  # a warning would raise


def test_the_warning_can_be_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(times, "_WARN_AFTER", 0.1)
    loader = DataLoader(Samples(90, seconds=0.003), batch_size=1)
    with pytest.raises(LeydenWarning, match="LD300"):
        fitted(TinyModel(), loader, warnings={"LD300": "error"})


def test_a_long_fit_that_starved_ends_with_advice(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(times, "_TELL_AFTER", 0.1)
    caplog.set_level("INFO", logger=log.name)
    log.propagate = True

    def lines(samples: Samples) -> list[str]:
        caplog.clear()
        trainer = Trainer(max_epochs=1, accelerator="cpu", **BARE)
        log.propagate = True
        trainer.fit(TinyModel(), DataLoader(samples, batch_size=16))
        return [record.message for record in caplog.records if "time" in record.message]

    assert len(found := lines(Samples(320, seconds=0.001))) == 1
    assert "num_workers=" in found[0]
    monkeypatch.setattr(times, "_TELL_AFTER", 30.0)
    assert lines(Samples(320, seconds=0.001)) == []


def test_the_limits_are_as_documented():
    assert (times._WARN_AFTER, times._WARN_BATCHES, times._WARN_ABOVE) == (10, 50, 0.5)
    assert (times._TELL_AFTER, times._TELL_ABOVE) == (30, 0.3)


# What is advised, from given figures.

IDLE = Waiting(
    share=0.6, in_starts=0.0, start=0.0, epochs=1, fetch=0.03, step=0.01, computing=0.0, cores=8
)  # waits for a disk


def of_workers(number: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(Samples(8), num_workers=number, **options)


def advice(waiting: Waiting, loader: Any = None, **options: Any) -> str:
    return " ".join(advice_on_waiting(waiting, of_workers(0) if loader is None else loader, **options))


def test_as_many_workers_are_advised_as_hide_the_reading():
    assert advice(IDLE) == (
        "60% of the time went into waiting for data: 30 ms a batch, beside 10 ms for its step, with num_workers=0. "
        "DataLoader(num_workers=3) reads beside the step: at best 10.3 ms a batch in place of 40 ms."
    )


def test_workers_are_no_more_than_cores_and_leave_one_to_the_step_where_they_compute():
    assert "num_workers=8)" in advice(replace(IDLE, fetch=0.3))
    assert "num_workers=7)" in advice(replace(IDLE, fetch=0.3, computing=1.0))
    assert "num_workers=3)" in advice(replace(IDLE, computing=1.0))


def test_on_two_cores_a_worker_takes_one_from_the_step():
    two = replace(IDLE, fetch=0.012, computing=1.0, cores=2)
    assert advice(two).endswith(
        "DataLoader(num_workers=1) reads beside the step: at best 12 ms a batch in place of 22 ms. With 2 cores it "
        "takes one from the step."
    )
    far_too_slow = replace(IDLE, fetch=0.3, computing=1.0, cores=2)
    assert "Workers would not shorten that much, on 2 cores: make samples cheaper" in advice(far_too_slow)


def test_on_one_core_workers_help_only_where_reading_waits():
    assert "there is 1 core, which workers would share: make" in advice(replace(IDLE, computing=1.0, cores=1))
    assert "num_workers=1)" in advice(replace(IDLE, fetch=0.01, cores=1))


def test_batches_that_are_quicker_than_a_worker_hands_them_over_get_no_workers():
    assert "Workers would not shorten that much" in advice(replace(IDLE, fetch=2e-4, step=1e-4))


def test_workers_that_do_not_keep_up_need_more_of_them():
    assert "num_workers=2. DataLoader(num_workers=8) reads" in advice(IDLE, of_workers(2))
    assert "There are no more than 2 cores" in advice(replace(IDLE, cores=2), of_workers(2))


def test_pinned_memory_is_advised_on_a_gpu_only():
    assert "pin_memory" not in advice(IDLE)
    assert "num_workers=3, pin_memory=True)" in advice(replace(IDLE, gpu=True))


def test_workers_that_start_anew_in_every_epoch_are_to_be_kept():
    starts = replace(IDLE, share=0.5, in_starts=0.9, start=0.8, epochs=10)
    assert advice(starts, of_workers(2)) == (
        "45% of the time went into waiting for the first batch of each epoch, 800 ms in 10 epochs, while workers "
        "start. DataLoader(persistent_workers=True) keeps them."
    )
    assert "Fewer, longer epochs" in advice(starts, of_workers(2, persistent_workers=True))
    assert "its sampler, or __iter__" in advice(starts)
    assert advice(replace(starts, epochs=1), of_workers(2)) == ""
    assert advice(replace(starts, start=0.009), of_workers(2)) == ""


def test_what_keeps_tensors_from_being_gathered_is_named():
    assert "but not with num_workers=2: leave that out." in advice(IDLE, tiny_loader(4, num_workers=2))
    collated = advice(IDLE, tiny_loader(4, collate_fn=list))
    assert "but not with a collate_fn: leave that out, and do to the whole batch" in collated
    x = torch.zeros(4, 2)
    rows = ConcatDataset([Subset(StackDataset(a=x, b=TensorDataset(x)), [0, 1])])
    assert "gathered" in advice(IDLE, DataLoader(rows, num_workers=2))
    assert "gathered" not in advice(IDLE, of_workers(2))
    assert "gathered" not in advice(IDLE, tiny_loader(4, num_workers=2), fast_paths=False)
    assert "gathered" not in advice(IDLE, tiny_loader(4))


def test_a_stream_must_share_its_samples_among_workers():
    assert "torch.utils.data.get_worker_info()" in advice(IDLE, DataLoader(Stream()))


def test_an_iterable_of_ones_own_could_be_a_dataloader():
    assert "A DataLoader(num_workers=3) in place of count reads" in advice(IDLE, itertools.count())


def test_several_loaders_count_together():
    both = CombinedLoader({"a": of_workers(1), "b": of_workers(1)})
    assert "num_workers=2. DataLoader(num_workers=8)" in advice(IDLE, both)
    assert "That is the sum over all loaders." in advice(IDLE, both)


def test_real_workers_that_start_in_every_epoch_are_seen():
    report = report_of(TinyModel(), DataLoader(Samples(16), batch_size=16, num_workers=1), max_epochs=4)
    assert "persistent_workers=True" in report.advice[0]
    assert "in 4 epochs" in report.advice[0]


def test_reading_that_computes_is_told_from_reading_that_waits():
    def computing(works: bool) -> float:
        run = fitted(TinyModel(), DataLoader(Samples(70, seconds=0.003, works=works), batch_size=1))._fit_run
        assert run is not None
        return run.times.computed / run.times.looked

    assert computing(works=True) > 2 * computing(works=False)  # and not 1, where others use the core too
    assert computing(works=False) < 0.4


@pytest.mark.parametrize(
    ("share", "capability", "precision", "advised"),
    [
        (0.9, (8, 0), "32-true", True),
        (0.9, (9, 0), "bf16-mixed", False),
        (0.9, (7, 5), "32-true", False),
        (0.4, (9, 0), "32-true", False),
    ],
)
def test_bfloat16_is_advised_where_steps_take_the_time_and_the_gpu_has_it(share, capability, precision, advised):
    found = on_computing(share, capability, precision, TinyModel())
    assert [("bf16-mixed" in text) for text in found] == [True] * advised


def test_channels_last_is_advised_for_convolutions_that_are_not():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    (found,) = on_computing(0.9, (9, 0), "bf16-mixed", model)
    assert found.startswith("2 of 2 convolutions")
    assert "channels_last" in found
    assert on_computing(0.9, (9, 0), "bf16-mixed", model.to(memory_format=torch.channels_last)) == []


def test_a_gpu_that_is_still_at_work_when_batches_come_misses_nothing():
    run = fitted(TinyModel(), DataLoader(Samples(160, seconds=0.001), batch_size=8))._fit_run
    assert run is not None
    run.strategy = SimpleNamespace(device=torch.device("cuda"))  # its answers are what is counted in idle
    assert run.times.looks == 2
    run.times.idle = 1
    assert on_data(run, 0.6) == []
    run.times.idle = 2
    assert "waiting for data" in on_data(run, 0.6)[0]


@pytest.mark.gpu
def test_on_a_gpu_the_table_says_whose_times_these_are_and_bfloat16_is_advised():
    class Wide(TinyModel):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(8)))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.wide(torch.ones(4096, 4096, device=self.device)).mean() + super().training_step(
                batch, batch_idx
            )

    trainer = fitted(Wide(), list(tiny_loader(60)), accelerator="gpu", devices=1)
    report = trainer.time_report
    assert report is not None
    assert any("hands its work to the device" in note for note in report.notes)
    assert any("nothing left to do" in note for note in report.notes)
    if torch.cuda.get_device_capability() >= (8, 0):
        assert any("bf16-mixed" in text for text in report.advice)


@pytest.mark.gpu
def test_a_gpu_that_runs_dry_is_seen():
    loader = DataLoader(Samples(800, seconds=0.001), batch_size=16)
    trainer = fitted(TinyModel(), loader, accelerator="gpu", devices=1)
    run = trainer._fit_run
    assert run is not None
    assert run.times.idle == run.times.looks > 0
    assert any("pin_memory=True" in text or "cores" in text for text in trainer.time_report.advice)
