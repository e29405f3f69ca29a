"""ProgressBar: what a run shows, and what showing it costs."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from torch.utils.data import IterableDataset

from leyden.callbacks import progress
from leyden.callbacks.progress import ProgressBar
from leyden.trainer import Trainer
from models import TinyModel, tiny_data, tiny_loader
from terminal import Terminal, cursor_is_visible, run_in_terminal, screen, screens


class Clock:
    """Stands in for ``perf_counter`` and moves only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "perf_counter", clock)
    return clock


class Model(TinyModel):
    """Logs ``train``, whose mean over an epoch of four batches is 1.5. A training batch takes a second of ``clock``."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__()
        self.clock = clock or Clock()

    def training_step(self, batch, batch_idx):
        self.clock.now += 1
        self.log("train", float(batch_idx), on_step=False, on_epoch=True, prog_bar=True)
        return self.loss(batch)


class Validated(Model):
    """Logs ``val``, the number of the epoch; a batch of validation, test and prediction takes two seconds."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.clock.now += 2
        self.log("val", float(self.current_epoch), prog_bar=True, add_dataloader_idx=False)

    def test_step(self, batch, batch_idx):
        self.clock.now += 2

    def predict_step(self, batch, batch_idx):
        self.clock.now += 2


def trainer_with(bar: ProgressBar, **options) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", devices=1, callbacks=[bar], **quiet | {"max_epochs": 2} | options)


def fit(model: TinyModel, bar: ProgressBar, *loaders, **options) -> Trainer:
    trainer = trainer_with(bar, **options)
    trainer.fit(model, *(loaders or (tiny_loader(4), tiny_loader(2))[: 1 + isinstance(model, Validated)]))
    return trainer


# Lines.


def test_every_epoch_leaves_one_line_with_its_own_means(clock, capsys):
    fit(Validated(clock), ProgressBar())
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2   4/4 batches    8.0s    1.00 it/s   train 1.5000   val 0.0000",
        "epoch 2/2   4/4 batches    8.0s    1.00 it/s   train 1.5000   val 1.0000",
    ]


def test_a_long_epoch_gets_a_line_every_so_often(clock, capsys):
    fit(Model(clock), ProgressBar(line_every=2.0), tiny_loader(7), max_epochs=1)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/1   2/7 batches    2.0s    1.00 it/s",
        "epoch 1/1   4/7 batches    4.0s    1.00 it/s",
        "epoch 1/1   6/7 batches    6.0s    1.00 it/s",
        "epoch 1/1   7/7 batches    7.0s    1.00 it/s   train 3.0000",
    ]


def test_a_long_validation_gets_lines_of_its_own(clock, capsys):
    validation = [tiny_loader(3), tiny_loader(1)]
    fit(Validated(clock), ProgressBar(line_every=5.0), tiny_loader(4), validation, max_epochs=1)
    assert capsys.readouterr().out.splitlines() == [
        "validate   3/4 batches    6.0s    2.00 s/it",
        "epoch 1/1   4/4 batches   12.0s    1.00 it/s   train 1.5000   val 0.0000",
    ]


def test_no_line_is_due_in_between_when_the_time_is_infinite(clock, capsys):
    fit(Validated(clock), ProgressBar(line_every=float("inf")))
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_speed_is_that_of_late_while_the_epoch_runs(clock, capsys):
    class SlowAtFirst(Model):
        def training_step(self, batch, batch_idx):
            self.clock.now += 99 if batch_idx == 0 else 0
            return super().training_step(batch, batch_idx)

    fit(SlowAtFirst(clock), ProgressBar(line_every=0.0), tiny_loader(150), max_epochs=1)
    lines = capsys.readouterr().out.splitlines()
    assert [re.search(r"\S+ (?:it/s|s/it)", lines[batches - 1])[0] for batches in (1, 2, 149, 150)] == [
        "100.0 s/it",
        "50.5 s/it",
        "1.00 it/s",
        "1.66 s/it",
    ]


def test_what_an_earlier_epoch_validated_is_not_repeated(clock, capsys):
    fit(Validated(clock), ProgressBar(), max_epochs=3, check_val_every_n_epoch=2)
    assert [line.partition("it/s")[2].split() for line in capsys.readouterr().out.splitlines()] == [
        ["train", "1.5000"],
        ["train", "1.5000", "val", "1.0000"],
        ["train", "1.5000"],
    ]


def test_validation_inside_the_epoch_shows_in_the_next_line(clock, capsys):
    fit(Validated(clock), ProgressBar(line_every=5.0), max_epochs=1, val_check_interval=2)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/1   3/4 batches    7.0s    1.00 it/s   val 0.0000",
        "epoch 1/1   4/4 batches   12.0s    1.00 it/s   val 0.0000   train 1.5000",
    ]


def test_the_sanity_check_says_nothing(capsys):
    class Watching(ProgressBar):
        def on_train_start(self, trainer, pl_module):
            assert capsys.readouterr().out == ""

    fit(Validated(), Watching(line_every=0.0), num_sanity_val_steps=-1)


def test_steps_stand_in_the_line_when_they_are_limited(clock, capsys):
    fit(Model(clock), ProgressBar(), max_epochs=-1, max_steps=6)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1    4/4 batches   step 4/6    4.0s    1.00 it/s   train 1.5000",
        "epoch 2    2/4 batches   step 6/6    2.0s    1.00 it/s   train 0.5000",
    ]


def test_a_loader_of_unknown_length_is_counted(clock, capsys):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(tiny_data(64))

    loader = tiny_loader(4)
    unsized = type(loader)(Stream(), batch_size=16)
    fit(Model(clock), ProgressBar(), unsized, max_epochs=1)
    assert capsys.readouterr().out.splitlines() == ["epoch 1/1   4 batches    4.0s    1.00 it/s   train 1.5000"]


def test_a_run_that_goes_on_within_an_epoch_counts_from_there(clock, capsys, tmp_path):
    first = fit(Model(clock), ProgressBar(), max_steps=3)
    first.save_checkpoint(tmp_path / "third.ckpt")
    capsys.readouterr()
    trainer_with(ProgressBar()).fit(Model(clock), tiny_loader(4), ckpt_path=tmp_path / "third.ckpt")
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2   4/4 batches    1.0s    1.00 it/s   train 1.5000",
        "epoch 2/2   4/4 batches    4.0s    1.00 it/s   train 1.5000",
    ]


@pytest.mark.parametrize(("method", "label"), [("validate", "validate"), ("test", "test    "), ("predict", "predict ")])
def test_validation_test_and_prediction_alone_leave_a_line(clock, capsys, method, label):
    getattr(trainer_with(ProgressBar(line_every=5.0)), method)(Validated(clock), tiny_loader(4))
    assert capsys.readouterr().out.splitlines()[:2] == [
        f"{label}   3/4 batches    6.0s    2.00 s/it",
        f"{label}   4/4 batches    8.0s    2.00 s/it",
    ]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_is_broken_off_leaves_a_line_that_says_where(clock, capsys, error):
    class Failing(Validated):
        def training_step(self, batch, batch_idx):
            if (self.current_epoch, batch_idx) == (1, 2):
                raise error
            return super().training_step(batch, batch_idx)

    with pytest.raises(error):
        fit(Failing(clock), ProgressBar())
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2   4/4 batches    8.0s    1.00 it/s   train 1.5000   val 0.0000",
        "epoch 2/2   2/4 batches    2.0s    1.00 it/s   train 1.5000",
    ]


def test_a_second_run_begins_anew(clock, capsys):
    model = Validated(clock)
    trainer = fit(model, ProgressBar(), max_epochs=1)
    capsys.readouterr()
    trainer.predict(model, tiny_loader(4))
    assert capsys.readouterr().out == "predict    4/4 batches    8.0s    2.00 s/it\n"


# What it shows, and to whom.


def test_other_values_can_be_shown(clock, capsys):
    class Own(ProgressBar):
        def get_metrics(self, trainer, pl_module):
            return super().get_metrics(trainer, pl_module) | {"phase": "warm-up"}

    fit(Validated(clock), Own(), max_epochs=1)
    assert capsys.readouterr().out.rstrip().endswith("train 1.5000   phase warm-up   val 0.0000")


def test_the_version_of_the_logger_is_left_out(clock, capsys):
    class Numbered(Model):
        def on_train_epoch_end(self):
            self.log("v_num", 7, prog_bar=True)

    fit(Numbered(clock), ProgressBar(), max_epochs=1)
    assert capsys.readouterr().out.rstrip().endswith("train 1.5000")


def test_a_bar_that_is_disabled_shows_nothing_until_it_is_enabled(capsys):
    bar = ProgressBar()
    bar.disable()
    fit(Model(), bar)
    assert capsys.readouterr().out == ""
    bar.enable()
    fit(Model(), bar)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_it_can_be_turned_off_and_on_while_it_runs(clock, capsys):
    class Switching(Model):
        def on_train_batch_start(self, batch, batch_idx):
            bar = self.trainer.progress_bar_callback
            (bar.enable if batch_idx == 2 else bar.disable)()

    fit(Switching(clock), ProgressBar(line_every=0.0), max_epochs=1)
    assert capsys.readouterr().out == "epoch 1/1   3/4 batches    3.0s    1.00 it/s\n"


def test_only_rank_zero_shows_anything(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    fit(Validated(), ProgressBar(line_every=0.0))
    assert capsys.readouterr().out == ""


def test_it_prints_as_print_does(capsys):
    ProgressBar().print("a", 1, sep="-", end="!\n")
    assert capsys.readouterr().out == "a-1!\n"


def test_it_can_be_copied_while_it_shows_a_bar(clock):
    class Copying(Model):
        def on_train_batch_start(self, batch, batch_idx):
            self.copy = copy.deepcopy(self.trainer.progress_bar_callback)

    with Terminal() as terminal:
        fit(model := Copying(clock), ProgressBar(refresh_every=0.25), max_epochs=1)
        fit(Model(clock), model.copy, max_epochs=1)
    assert model.copy.refresh_every == 0.25
    assert screen(terminal.written).splitlines() == ["epoch 1/1  4/4 batches   4.0s   1.00 it/s  train 1.5000"] * 2


@pytest.mark.parametrize("argument", ["refresh_every", "line_every"])
@pytest.mark.parametrize("seconds", [-1, float("nan"), "1", None, True])
def test_a_time_that_is_none_is_refused(argument, seconds):
    with pytest.raises(ValueError, match=rf"ProgressBar\({argument}={re.escape(repr(seconds))}\)"):
        ProgressBar(**{argument: seconds})


# What it costs.


def test_values_are_read_only_when_they_are_shown(clock, capsys):
    class Counting(ProgressBar):
        read_at = []

        def get_metrics(self, trainer, pl_module):
            self.read_at.append(clock.now - 100)
            return super().get_metrics(trainer, pl_module)

    fit(Model(clock), Counting(line_every=5.0), tiny_loader(8))
    assert Counting.read_at == [5, 8, 13, 16]


def test_a_batch_costs_one_call_of_python(clock):
    bar, trainer = ProgressBar(), SimpleNamespace(sanity_checking=False, num_val_batches=[9], max_steps=-1)
    bar.setup(trainer, None, stage="validate")
    bar.on_validation_start(trainer, None)
    calls = []
    sys.setprofile(lambda frame, event, argument: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        bar.on_train_batch_end(trainer, None, None, None, 0)
        bar.on_validation_batch_end(trainer, None, None, None, 1)
    finally:
        sys.setprofile(None)
    assert [name for name in calls if name != "__call__"] == ["on_train_batch_end", "on_validation_batch_end"]


# A terminal.


def test_on_a_terminal_bars_come_and_go_and_lines_stay(clock):
    class Printing(Validated):
        def on_train_epoch_end(self):
            self.print(f"epoch {self.current_epoch} is over")

    with Terminal() as terminal:
        fit(Printing(clock), ProgressBar(refresh_every=0.0))
        assert sys.stdout is terminal.stdout
    lines = [
        "epoch 0 is over",
        "epoch 1/2  4/4 batches   8.0s   1.00 it/s  train 1.5000  val 0.0000",
        "epoch 1 is over",
        "epoch 2/2  4/4 batches   8.0s   1.00 it/s  train 1.5000  val 1.0000",
    ]
    assert screen(terminal.written).splitlines() == lines
    assert cursor_is_visible(terminal.written)
    bar, seen = "━" * 40, screens(terminal.written)
    assert f"sanity check  {bar}  1/2  0:00:02 < 0:00:02   2.00 s/it" in seen
    assert f"epoch 1/2  {bar}  3/4  0:00:03 < 0:00:01   1.00 it/s" in seen
    assert (
        "\n".join(lines[:2])
        + f"\nepoch 2/2  {bar}  4/4  0:00:06 < 0:00:00   1.00 it/s  train 1.5000"
        + f"\nvalidate   {bar}  1/2  0:00:02 < 0:00:02   2.00 s/it"
    ) in seen


def test_a_failure_leaves_the_terminal_clean(clock):
    class Failing(Validated):
        def validation_step(self, batch, batch_idx):
            if not self.trainer.sanity_checking:
                self.clock.now += 2
                raise RuntimeError("it failed")

    with Terminal() as terminal:
        with pytest.raises(RuntimeError, match="it failed"):
            fit(Failing(clock), ProgressBar(refresh_every=0.0))
        assert sys.stdout is terminal.stdout
    assert screen(terminal.written) == "epoch 1/2  4/4 batches   6.0s   1.00 it/s"
    assert cursor_is_visible(terminal.written)


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(clock, monkeypatch):
    with Terminal() as terminal:
        monkeypatch.setenv("TERM", "dumb")
        fit(Model(clock), ProgressBar())
    assert "\x1b" not in terminal.written
    assert len(terminal.written.splitlines()) == 2


def test_on_a_terminal_it_can_be_turned_off_and_on_while_it_runs(clock):
    class Switching(Model):
        def on_train_batch_start(self, batch, batch_idx):
            bar = self.trainer.progress_bar_callback
            bar.disable() if batch_idx == 2 else bar.enable()

    with Terminal() as terminal:
        fit(Switching(clock), ProgressBar(refresh_every=0.0), max_epochs=1)
        assert sys.stdout is terminal.stdout
    bar, seen = "━" * 40, screens(terminal.written)
    assert [f"epoch 1/1  {bar}  {done}/4" in "\n".join(seen) for done in (1, 2, 3, 4)] == [True, True, False, True]
    assert screen(terminal.written).splitlines() == ["epoch 1/1  4/4 batches   4.0s   1.00 it/s  train 1.5000"]


def test_the_place_can_be_overruled(clock, capsys):
    with Terminal() as terminal:
        fit(Validated(clock), ProgressBar(live=False))
    assert "\x1b" not in terminal.written
    fit(Validated(clock), ProgressBar(live=True))
    assert "\x1b[2K" in capsys.readouterr().out


# Whole processes.

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from leyden.trainer import Trainer
from models import ValidatedModel, tiny_loader

class Model(ValidatedModel):
    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True, on_epoch=True)
        return loss

trainer = Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(Model(), tiny_loader(20), tiny_loader(4))
trainer.test(Model(), tiny_loader(4))
"""
EPOCH = r"epoch {}/3 +20/20 batches +\d+\.\ds +[\d.]+ it/s +train_loss_step \d\.\d{{4}} +train_loss_epoch \d\.\d{{4}}"


@pytest.fixture
def command(request: pytest.FixtureRequest) -> list[str]:
    return [sys.executable, "-c", SCRIPT.format(tests=str(request.config.rootpath / "tests"))]


def test_a_pipe_gets_one_line_an_epoch_and_no_control_characters(command):
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)
    lines = [line for line in done.stdout.decode().splitlines() if line.startswith("epoch")]
    assert [re.fullmatch(EPOCH.format(epoch), line) is not None for epoch, line in enumerate(lines, 1)] == [True] * 3


def test_a_terminal_keeps_one_line_an_epoch(command):
    status, written = run_in_terminal(command)
    assert status == 0
    assert cursor_is_visible(written)
    lines = [line for line in screen(written).splitlines() if line.startswith("epoch")]
    assert [re.fullmatch(EPOCH.format(epoch), line) is not None for epoch, line in enumerate(lines, 1)] == [True] * 3
    assert "━" not in screen(written)
