"""ModelCheckpoint: when it saves, under which names, what it keeps, and what it never touches."""

from __future__ import annotations

import math
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import tensor

from leyden.callbacks.model_checkpoint import ModelCheckpoint
from leyden.core.callback import Callback
from leyden.fabric.checkpoint_io import CheckpointIO
from leyden.loggers.csv import CSVLogger
from leyden.utils.errors import CheckpointError, LeydenWarning, MisconfigurationError
from models import TinyModel
from scripted import Computed, Scripted, files, fit

pytestmark = pytest.mark.filterwarnings("ignore:.*LD292")  # a metric that is NaN is spoken of

NAN = math.nan
VALUES = (0.5, 0.375, 0.625, 0.25, 0.25, NAN, 0.125, 0.75)


def saved(*values: float, trainer: dict | None = None, **options: Any) -> tuple[list[str], ModelCheckpoint]:
    """The files after a fit in which validation gave ``values``, and the callback."""
    checkpoint = ModelCheckpoint(**options)
    fit(Scripted(*values), checkpoint, **trainer or {})
    return files() if Path("checkpoints").exists() else [], checkpoint


def load(path: str | Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


# What is kept.


def test_without_a_metric_the_latest_is_kept():
    names, checkpoint = saved(1.0, 2.0, 3.0)
    assert names == ["epoch=2-step=12.ckpt"]
    assert checkpoint.best_model_path == str(Path("checkpoints/epoch=2-step=12.ckpt").resolve())
    assert (checkpoint.best_model_score, checkpoint.last_model_path, checkpoint.best_k_models) == (None, "", {})


def test_the_best_by_a_metric_is_kept():
    names, checkpoint = saved(*VALUES, monitor="v")
    assert names == ["epoch=6-step=28.ckpt"]
    assert checkpoint.best_model_score == 0.125
    assert checkpoint.current_score == 0.125
    assert checkpoint.best_k_models == {checkpoint.best_model_path: tensor(0.125)}


def test_the_best_two_are_kept_and_the_worse_of_them_is_known():
    names, checkpoint = saved(*VALUES, monitor="v", mode="max", save_top_k=2, filename="b-{epoch}-{v:.2f}")
    assert names == ["b-epoch=2-v=0.62.ckpt", "b-epoch=7-v=0.75.ckpt"]
    assert os.path.basename(checkpoint.best_model_path) == names[1]
    assert os.path.basename(checkpoint.kth_best_model_path) == names[0]
    assert (checkpoint.best_model_score, checkpoint.kth_value) == (0.75, 0.625)


def test_all_are_kept_and_nan_counts_as_worst():
    names, checkpoint = saved(*VALUES, monitor="v", save_top_k=-1, filename="{v:.3f}", auto_insert_metric_name=False)
    assert names == sorted(
        [
            "0.500.ckpt",
            "0.375.ckpt",
            "0.625.ckpt",
            "0.250.ckpt",
            "0.250-v1.ckpt",
            "nan.ckpt",
            "0.125.ckpt",
            "0.750.ckpt",
        ]
    )
    assert os.path.basename(checkpoint.best_model_path) == "0.125.ckpt"
    assert os.path.basename(checkpoint.kth_best_model_path) == "nan.ckpt"
    assert checkpoint.kth_value == math.inf


@pytest.mark.parametrize(("mode", "infinite"), [("min", -math.inf), ("max", math.inf)])
def test_an_infinite_value_never_replaces_a_finite_one(mode, infinite):
    names, checkpoint = saved(0.5, infinite, monitor="v", mode=mode)
    assert names == ["epoch=0-step=4.ckpt"]
    assert checkpoint.best_model_score == 0.5


def test_a_finite_value_replaces_nan():
    assert saved(NAN, 0.5, monitor="v")[0] == ["epoch=1-step=8.ckpt"]


def test_none_are_kept():
    names, checkpoint = saved(1.0, 2.0, save_top_k=0)
    assert names == []
    assert checkpoint.best_model_path == ""


# last.ckpt


def test_last_is_a_copy_of_what_was_saved_last():
    names, checkpoint = saved(*VALUES, monitor="v", save_last=True)
    assert names == ["epoch=6-step=28.ckpt", "last.ckpt"]
    assert load(checkpoint.last_model_path)["global_step"] == 28
    assert os.path.basename(checkpoint.last_model_path) == "last.ckpt"


def test_last_is_a_second_name_of_the_file_and_stays_when_the_other_goes():
    _, checkpoint = saved(1.0, 0.5, monitor="v", save_last=True)
    assert os.path.samefile(checkpoint.best_model_path, checkpoint.last_model_path)
    assert not os.path.islink(checkpoint.last_model_path)
    os.remove(checkpoint.best_model_path)
    assert load(checkpoint.last_model_path)["global_step"] == 8


def test_last_is_never_missing():
    class Looks(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step > 1:
                there.append(load("checkpoints/last.ckpt")["global_step"])

    there: list[int] = []
    fit(Scripted(1.0, 0.5), Looks(), ModelCheckpoint(every_n_train_steps=1, save_last=True))
    assert there == list(range(1, 8))


def test_last_alone_is_the_end_of_training():
    names, checkpoint = saved(*[1.0] * 5, save_top_k=0, save_last=True, every_n_epochs=3)
    assert names == ["last.ckpt"]
    assert load(checkpoint.last_model_path)["global_step"] == 20


def test_last_as_a_link_takes_no_room():
    names, checkpoint = saved(*VALUES, monitor="v", save_last="link")
    assert names == ["epoch=6-step=28.ckpt", "last.ckpt"]
    assert os.path.samefile(checkpoint.best_model_path, checkpoint.last_model_path)


def test_without_hard_links_last_is_a_symbolic_link(monkeypatch):
    def refuse(*args: Any) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    _, checkpoint = saved(1.0, 0.5, monitor="v", save_last="link")
    assert os.readlink(checkpoint.last_model_path) == "epoch=1-step=8.ckpt"


def test_last_may_have_another_name_and_its_predecessor_goes():
    class Mine(ModelCheckpoint):
        CHECKPOINT_NAME_LAST = "{epoch}-last"

    fit(Scripted(3.0, 2.0, 1.0), Mine(monitor="v", save_last=True))
    assert files() == ["epoch=2-last.ckpt", "epoch=2-step=12.ckpt"]


# When.


@pytest.mark.parametrize(
    ("options", "trainer", "steps"),
    [
        ({"every_n_epochs": 2}, {"max_epochs": 5}, [8, 16]),
        ({"every_n_epochs": 0}, {}, []),
        ({"every_n_train_steps": 3}, {}, [3, 6, 9, 12]),
        ({"every_n_train_steps": 4}, {}, [4, 8, 12]),
        ({"every_n_train_steps": 3, "save_on_train_epoch_end": False}, {}, [3, 6, 9, 12]),
        ({"every_n_train_steps": 2}, {"accumulate_grad_batches": 3}, [2, 4, 6]),
        ({"every_n_train_steps": 4}, {"max_steps": 6}, [4]),
        ({}, {"max_steps": 6}, [4, 6]),
        ({}, {"val_check_interval": 0.5}, [2, 4, 6, 8, 10, 12]),
        ({"save_on_train_epoch_end": True}, {"val_check_interval": 0.5}, [4, 8, 12]),
        ({}, {"check_val_every_n_epoch": 2, "max_epochs": 4}, [8, 16]),
        ({"every_n_epochs": 3}, {"check_val_every_n_epoch": 2, "max_epochs": 6}, [24]),
        ({}, {"check_val_every_n_epoch": None, "val_check_interval": 3}, [3, 6, 9, 12]),
        ({"train_time_interval": timedelta(0)}, {}, list(range(1, 13))),
        ({"train_time_interval": "01:00:00:00"}, {}, []),
        ({}, {"limit_val_batches": 0}, [4, 8, 12]),
        ({}, {"fast_dev_run": True}, []),
    ],
)
def test_when_it_saves(options, trainer, steps):
    names, _ = saved(trainer={"max_epochs": 3} | trainer, save_top_k=-1, filename="{step:02d}", **options)
    assert names == [f"step={step:02d}.ckpt" for step in steps]


def test_a_training_metric_is_taken_at_its_step():
    checkpoint = ModelCheckpoint(monitor="t", every_n_train_steps=2, save_top_k=2, filename="{step}-{t:.0f}")
    fit(Scripted(train_values=(9.0, 5.0, 0.0, 7.0, 0.0, 3.0, 0.0, 4.0)), checkpoint, max_epochs=2)
    assert files() == ["step=6-t=3.ckpt", "step=8-t=4.ckpt"]


@pytest.mark.parametrize(
    ("every", "names"),
    [
        (2, ["step=12-v=0.625.ckpt", "step=4-v=0.500.ckpt", "step=8-v=0.375.ckpt"]),
        (3, ["step=12-v=0.625.ckpt", "step=4-v=0.500.ckpt", "step=8-v=0.375.ckpt"]),
        (5, ["step=12-v=0.625.ckpt", "step=8-v=0.375.ckpt"]),
    ],
)
def test_a_step_waits_for_the_validation_that_gives_its_score(every, names):
    options = {"monitor": "v", "every_n_train_steps": every, "save_top_k": -1, "filename": "{step}-{v:.3f}"}
    assert saved(*VALUES[:3], **options)[0] == names


def test_a_step_waits_for_the_training_epochs_own_metric():
    class Model(Scripted):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("epoch_loss", loss, on_step=False, on_epoch=True)
            return loss

    fit(Model(1.0), ModelCheckpoint(monitor="epoch_loss", every_n_train_steps=3))
    assert files() == ["epoch=0-step=4.ckpt"]


def test_what_the_module_logs_at_the_end_of_the_epoch_is_seen():
    class Model(Scripted):
        def on_train_epoch_end(self):
            self.log("e", float(self.current_epoch % 2))

    fit(Model(), ModelCheckpoint(monitor="e", mode="max"), max_epochs=3)
    assert files() == ["epoch=1-step=8.ckpt"]


@pytest.mark.filterwarnings("ignore:.*LD280")  # not all parameters are trained
def test_several_optimizers_do_not_jump_over_the_step():
    class Model(TinyModel):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(self.loss(batch))
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD([parameter], 0.1) for parameter in list(self.parameters())[:2]]

    fit(Model(), ModelCheckpoint(every_n_train_steps=3, save_top_k=-1, filename="{step}"), max_epochs=1, validate=False)
    assert files() == ["step=4.ckpt", "step=6.ckpt"]


# A metric that is not there.


@pytest.mark.parametrize("trigger", [{}, {"every_n_train_steps": 2}, {"save_on_train_epoch_end": False}])
def test_a_metric_that_validation_did_not_log_is_an_error_with_the_nearest_name(trigger):
    message = (
        r"ModelCheckpoint\(monitor='val_los'\) matches nothing logged. Logged so far: val_loss. Did you .*'val_loss'"
    )
    with pytest.raises(MisconfigurationError, match=message):
        fit(Computed(1.0), ModelCheckpoint(monitor="val_los", **trigger))


class LogsInTheEnd(Scripted):
    """Logs ``val_loss`` at the end of the second training epoch."""

    def on_train_epoch_end(self):
        if self.current_epoch == 1:
            self.log("val_loss", 1.0)


def test_before_validation_it_is_a_warning():
    with pytest.warns(LeydenWarning, match=r"monitor='val_loss'\) matches nothing logged.*LD133"):
        fit(LogsInTheEnd(), ModelCheckpoint(monitor="val_loss"), validate=False, max_epochs=2)
    assert files() == ["epoch=1-step=8.ckpt"]


# Names.

METRICS = {"epoch": 3, "step": 400, "val_acc": tensor(0.9123), "val/loss": tensor(0.25), "n": 2.0}


@pytest.mark.parametrize(
    ("pattern", "name", "bare"),
    [
        (None, "epoch=3-step=400", "3-400"),
        ("best-{epoch}-{val_acc:.2f}", "best-epoch=3-val_acc=0.91", "best-3-0.91"),
        ("{epoch:02d}-{step:06d}", "epoch=03-step=000400", "03-000400"),
        ("{val/loss:.3f}", "val/loss=0.250", "0.250"),
        ("run/{epoch}", "run/epoch=3", "run/3"),
        ("best-checkpoint", "best-checkpoint", "best-checkpoint"),
        ("{epoch}{step}", "epoch=3step=400", "3400"),
        ("{n}", "n=2.0", "2.0"),
        ("{val_acc}", "val_acc=0.9122999906539917", "0.9122999906539917"),
    ],
)
def test_names_are_filled_in(pattern, name, bare):
    assert ModelCheckpoint(filename=pattern).format_checkpoint_name(METRICS) == f"{name}.ckpt"
    without = ModelCheckpoint(filename=pattern, auto_insert_metric_name=False)
    assert without.format_checkpoint_name(METRICS, ver=2, prefix="p") == f"p-{bare}-v2.ckpt"


def test_the_folder_is_part_of_the_name(tmp_path):
    checkpoint = ModelCheckpoint(dirpath="here", filename="{epoch}")
    assert checkpoint.format_checkpoint_name(METRICS) == str(tmp_path / "here" / "epoch=3.ckpt")
    assert checkpoint.format_checkpoint_name(METRICS, filename="{step}") == str(tmp_path / "here" / "step=400.ckpt")


def test_an_unknown_metric_becomes_0_with_one_warning():
    checkpoint = ModelCheckpoint(filename="{val_ac:.2f}")
    with pytest.warns(LeydenWarning, match=r"\{val_ac\}.*Did you mean 'val_acc'\?.*LD134"):
        assert checkpoint.format_checkpoint_name(METRICS) == "val_ac=0.00.ckpt"
    assert checkpoint.format_checkpoint_name(METRICS) == "val_ac=0.00.ckpt"


def test_a_metric_with_a_slash_makes_a_folder():
    class Model(Scripted):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", 0.25)

    fit(Model(1.0), ModelCheckpoint(monitor="val/loss", filename="{val/loss:.2f}"))
    assert files() == [os.path.join("val", "loss=0.25.ckpt")]


def test_a_subclass_may_change_the_characters():
    class Mine(ModelCheckpoint):
        CHECKPOINT_JOIN_CHAR = "_"
        CHECKPOINT_EQUALS_CHAR = ":"
        FILE_EXTENSION = ".pt"

    assert Mine().format_checkpoint_name(METRICS, ver=1) == "epoch:3_step:400_v1.pt"


# The folder.


def test_checkpoints_lie_beside_the_first_loggers_files():
    checkpoint = ModelCheckpoint()
    fit(Scripted(1.0), checkpoint, logger=CSVLogger("logs", name="mine"))
    assert checkpoint.dirpath == os.path.abspath("logs/mine/version_0/checkpoints")
    assert files(checkpoint.dirpath) == ["epoch=0-step=4.ckpt"]


def test_without_a_logger_they_lie_in_the_default_folder():
    checkpoint = ModelCheckpoint()
    fit(Scripted(1.0), checkpoint, default_root_dir="root")
    assert checkpoint.dirpath == os.path.abspath("root/checkpoints")


def test_a_given_folder_is_used_and_made(tmp_path):
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "a" / "b")
    fit(Scripted(1.0), checkpoint)
    assert files(tmp_path / "a" / "b") == ["epoch=0-step=4.ckpt"]


# Files of others, and of before.


def test_another_runs_files_are_neither_overwritten_nor_deleted():
    saved(1.0, 0.5, monitor="v", filename="x", save_last=True)
    first = {name: Path("checkpoints", name).read_bytes() for name in files()}
    with pytest.warns(LeydenWarning, match=r"already holds checkpoints of another run: last.ckpt, x.ckpt.*LD131"):
        names, checkpoint = saved(0.5, 0.25, monitor="v", filename="x", save_last=True)
    assert names == ["last-v1.ckpt", "last.ckpt", "x-v1.ckpt", "x.ckpt"]
    assert {name: Path("checkpoints", name).read_bytes() for name in first} == first
    assert os.path.basename(checkpoint.last_model_path) == "last-v1.ckpt"


def test_without_the_version_counter_names_are_used_again():
    saved(1.0, monitor="v", filename="x")
    with pytest.warns(LeydenWarning, match="LD131"):
        names, _ = saved(0.5, monitor="v", filename="x", enable_version_counter=False)
    assert names == ["x.ckpt"]


def test_a_fixed_name_holds_the_best_at_any_time():
    names, checkpoint = saved(*VALUES, monitor="v", filename="best-checkpoint")
    assert names == ["best-checkpoint.ckpt"]
    assert load(checkpoint.best_model_path)["global_step"] == 28


def test_a_fixed_name_is_counted_up_where_several_are_kept():
    names, checkpoint = saved(*VALUES, monitor="v", filename="x", save_top_k=2)
    assert names == ["x-v1.ckpt", "x.ckpt"]
    assert {load(path)["global_step"] for path in checkpoint.best_k_models} == {20, 28}


def test_two_in_one_folder_do_not_take_each_others_files():
    lowest, highest = ModelCheckpoint(monitor="v"), ModelCheckpoint(monitor="v", mode="max")
    fit(Scripted(*VALUES), lowest, highest)
    assert load(lowest.best_model_path)["global_step"] == 28
    assert load(highest.best_model_path)["global_step"] == 32
    assert len(files()) == 2


def test_a_second_fit_of_the_same_trainer_goes_on_with_the_ranking():
    checkpoint = ModelCheckpoint(monitor="v", filename="x")
    for value in (0.5, 0.25):
        fit(Scripted(value), checkpoint)
    assert files() == ["x.ckpt"]
    assert checkpoint.best_model_score == 0.25


# What the file knows, and resuming.


def test_the_file_knows_itself_in_plain_types():
    _, checkpoint = saved(1.0, 0.5, monitor="v", save_last=True)
    for path in (checkpoint.best_model_path, checkpoint.last_model_path):
        state = load(path)["callbacks"][checkpoint.state_key]
        assert state == {
            "monitor": "v",
            "dirpath": os.path.abspath("checkpoints"),
            "best_model_score": tensor(0.5),
            "best_model_path": checkpoint.best_model_path,
            "current_score": tensor(0.5),
            "best_k_models": {checkpoint.best_model_path: tensor(0.5)},
            "kth_best_model_path": checkpoint.best_model_path,
            "kth_value": tensor(0.5),
            "last_model_path": checkpoint.last_model_path,
            "last_global_step_saved": 8,
        }


def test_a_resumed_run_goes_on_with_the_ranking_and_deletes_what_it_supersedes():
    _, before = saved(0.5, 0.375, 0.625, monitor="v", save_top_k=2, save_last=True)
    after = ModelCheckpoint(monitor="v", save_top_k=2, save_last=True)
    fit(Scripted(0.25, 0.25, NAN, 0.125), after, ckpt_path=before.last_model_path, max_epochs=6)
    assert files() == ["epoch=3-step=16.ckpt", "epoch=5-step=24.ckpt", "last.ckpt"]
    assert after.best_model_score == 0.125
    assert load("checkpoints/last.ckpt")["global_step"] == 24


def test_the_file_resumed_from_is_not_deleted():
    _, before = saved(0.5, 0.25)
    after = ModelCheckpoint()
    fit(Scripted(1.0, 1.0), after, ckpt_path=before.best_model_path, max_epochs=4)
    assert files() == ["epoch=1-step=8.ckpt", "epoch=3-step=16.ckpt"]


def test_in_another_folder_the_earlier_files_stay():
    _, before = saved(0.5, 0.25, monitor="v", save_top_k=2)
    after = ModelCheckpoint(dirpath="other", monitor="v", save_top_k=1)
    with pytest.warns(LeydenWarning, match=r"begins a new ranking.*LD135"):
        fit(Scripted(1.0, 0.75), after, ckpt_path=before.best_model_path, max_epochs=4)
    assert files() == ["epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt"]
    assert files("other") == ["epoch=3-step=16.ckpt"]
    assert after.best_model_score == 0.75


def test_fewer_may_be_kept_after_a_resume():
    _, before = saved(0.5, 0.375, 0.625, monitor="v", save_top_k=3, save_last=True)
    after = ModelCheckpoint(monitor="v", save_top_k=1, save_last=True)
    fit(Scripted(0.25), after, ckpt_path=before.last_model_path, max_epochs=4)
    assert files() == ["epoch=3-step=16.ckpt", "last.ckpt"]


def test_a_resumed_run_that_does_nothing_saves_nothing():
    _, before = saved(0.5, 0.25, save_last=True)
    after = ModelCheckpoint(save_last=True, save_on_exception=True)
    when = {path: os.stat(path).st_mtime_ns for path in (before.best_model_path, before.last_model_path)}
    with pytest.warns(LeydenWarning, match="max_epochs=2 reached, so fit has nothing to do"):
        fit(Scripted(), after, ckpt_path=before.best_model_path, max_epochs=2)
    assert {path: os.stat(path).st_mtime_ns for path in when} == when
    with pytest.raises(RuntimeError, match="broken"):
        fit(Breaks(0.5, at=8), ModelCheckpoint(save_on_exception=True), ckpt_path=before.best_model_path, max_epochs=4)
    assert files() == ["epoch=1-step=8.ckpt", "last.ckpt"]


def test_weights_alone_can_be_saved():
    _, checkpoint = saved(0.5, save_weights_only=True)
    assert "optimizer_states" not in load(checkpoint.best_model_path)


# Failures.


class FullDisk(CheckpointIO):
    """Writes nothing more after ``room`` files."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        if self.room == 0:
            raise CheckpointError(f"Could not save the checkpoint {path}: No space left on device.")
        self.room -= 1
        super().save_checkpoint(checkpoint, path, storage_options)


@pytest.mark.parametrize("save_last", [False, True])
def test_a_failed_write_leaves_the_older_file_and_the_attributes_that_name_it(save_last):
    checkpoint = ModelCheckpoint(monitor="v", save_last=save_last)
    with pytest.raises(CheckpointError, match="No space left"), pytest.warns(LeydenWarning, match="LD226"):
        fit(Scripted(0.5, 0.25), checkpoint, plugins=[FullDisk(1)])
    assert files() == ["epoch=0-step=4.ckpt", "last.ckpt"][: 1 + save_last]
    assert load(checkpoint.best_model_path)["global_step"] == 4
    assert checkpoint.best_model_score == 0.5
    assert list(checkpoint.best_k_models) == [checkpoint.best_model_path]
    assert os.path.basename(checkpoint.last_model_path) == ("last.ckpt" if save_last else "")


def test_a_hook_that_fails_before_the_write_leaves_no_name_without_a_file():
    class Breaks(Scripted):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.trainer.global_step == 2:
                raise RuntimeError("broken")

    checkpoint = ModelCheckpoint(every_n_train_steps=2)
    with pytest.raises(RuntimeError, match="broken"):
        fit(Breaks(), checkpoint, max_epochs=1)
    assert checkpoint.best_model_path == ""
    assert not Path("checkpoints").exists()


class Breaks(Scripted):
    """Fails in the batch after step ``at``."""

    def __init__(self, *values: float, at: int, error: type[BaseException] = RuntimeError) -> None:
        super().__init__(*values)
        self.at, self.error = at, error

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == self.at:
            raise self.error("broken")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_can_be_a_reason_to_save(error):
    checkpoint = ModelCheckpoint(monitor="v", save_on_exception=True)
    with pytest.raises((error, SystemExit)):
        fit(Breaks(0.5, 0.25, at=6, error=error), checkpoint)
    assert files() == ["epoch=0-step=4.ckpt", "epoch=1-step=6.ckpt"]
    assert load("checkpoints/epoch=1-step=6.ckpt")["global_step"] == 6
    assert os.path.basename(checkpoint.best_model_path) == "epoch=0-step=4.ckpt"


@pytest.mark.parametrize("step", [0, 4])
def test_nothing_new_is_not_saved_again_at_an_exception(step):
    with pytest.raises(RuntimeError, match="broken"):
        fit(Breaks(0.5, 0.25, at=step), ModelCheckpoint(save_on_exception=True))
    assert (files() if step else Path("checkpoints").exists()) == (["epoch=0-step=4.ckpt"] if step else False)


def test_what_ended_training_is_not_hidden_by_a_save_that_fails():
    checkpoint = ModelCheckpoint(save_on_exception=True)
    with pytest.raises(RuntimeError, match="broken"), pytest.warns(LeydenWarning, match="No space left.*LD132"):
        fit(Breaks(0.5, at=2), checkpoint, plugins=[FullDisk(0)])


# The rest.


def test_loggers_hear_of_every_file():
    class Hears(CSVLogger):
        def after_save_checkpoint(self, checkpoint_callback):
            heard.append(os.path.basename(checkpoint_callback.best_model_path))

    heard: list[str] = []
    fit(Scripted(0.5, 0.25), ModelCheckpoint(monitor="v"), logger=Hears("logs"))
    assert heard == ["epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt"]


def test_the_new_file_is_there_before_the_old_one_goes():
    class Looks(CheckpointIO):
        def remove_checkpoint(self, path):
            there.append(files())
            super().remove_checkpoint(path)

    there: list[list[str]] = []
    fit(Scripted(0.5, 0.25), ModelCheckpoint(monitor="v", save_last=True), plugins=[Looks()])
    assert there == [["epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt", "last.ckpt"]]


def test_verbose_says_what_is_saved_and_what_is_not(capsys):
    _, checkpoint = saved(0.5, 0.75, monitor="v", verbose=True)
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("ModelCheckpoint")] == [
        f"ModelCheckpoint: epoch 0, step 4: v = 0.50000, saving {checkpoint.best_model_path}",
        "ModelCheckpoint: epoch 1, step 8: v = 0.75000 is not among the best 1",
    ]


def test_the_ranking_can_be_written_as_yaml():
    _, checkpoint = saved(0.5, 0.25, monitor="v", save_top_k=2)
    checkpoint.to_yaml()
    written = yaml.safe_load(Path("checkpoints/best_k_models.yaml").read_text())
    assert written == {path: score.item() for path, score in checkpoint.best_k_models.items()}
    checkpoint.to_yaml("elsewhere.yaml")
    assert Path("elsewhere.yaml").exists()


def test_it_runs_after_the_other_callbacks():
    class Counts(Callback):
        count = 0

        def on_train_epoch_end(self, trainer, pl_module):
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

    checkpoint = ModelCheckpoint()
    fit(Scripted(1.0), checkpoint, Counts())
    assert load(checkpoint.best_model_path)["callbacks"]["test_it_runs_after_the_other_callbacks.<locals>.Counts"] == {
        "count": 1
    }


def test_the_state_key_names_what_tells_instances_apart():
    key = ModelCheckpoint(monitor="v", every_n_train_steps=3).state_key
    assert key == (
        "ModelCheckpoint{'monitor': 'v', 'mode': 'min', 'every_n_train_steps': 3, 'every_n_epochs': 0, "
        "'train_time_interval': None}"
    )
    assert "'every_n_epochs': 1" in ModelCheckpoint().state_key


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_top_k": -2}, "save_top_k=-2"),
        ({"save_top_k": 1.5}, "save_top_k=1.5"),
        ({"save_top_k": 2}, r"save_top_k=2\) needs a metric"),
        ({"mode": "maximum", "monitor": "v"}, r"mode='maximum'.*Choose 'min'"),
        ({"monitor": ""}, "monitor=''"),
        ({"every_n_epochs": -1}, "every_n_epochs=-1"),
        ({"every_n_train_steps": 2.5}, "every_n_train_steps=2.5"),
        ({"every_n_epochs": 1, "every_n_train_steps": 2}, "every_n_train_steps=2, every_n_epochs=1.*only one"),
        ({"every_n_epochs": 1, "train_time_interval": {"hours": 1}}, "every_n_epochs=1, train_time_interval=1:00:00"),
        ({"train_time_interval": 5}, "train_time_interval=5.*DD:HH:MM:SS"),
        ({"save_last": "copy"}, "save_last='copy'"),
        ({"filename": "{val_acc:d}"}, r"'d' cannot format 'val_acc'.*\{val_acc:.2f\}"),
        ({"filename": 3}, "filename=3"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options, message):
    with pytest.raises(MisconfigurationError, match=message):
        ModelCheckpoint(**options)


def test_an_epochs_trigger_that_steps_make_void_is_warned_of():
    with pytest.warns(LeydenWarning, match=r"save_on_train_epoch_end=True\) is ignored.*LD136"):
        ModelCheckpoint(every_n_train_steps=3, save_on_train_epoch_end=True)


def test_links_in_a_remote_folder_are_refused():
    with pytest.raises(MisconfigurationError, match=r"save_last='link'\) cannot make links in 'memory://"):
        fit(Scripted(1.0), ModelCheckpoint(dirpath="memory://bucket/run", save_last="link"))


def test_a_remote_folder_works():
    checkpoint = ModelCheckpoint(dirpath="memory://bucket/remote", monitor="v", save_last=True)
    fit(Scripted(1.0, 0.5), checkpoint)
    import fsspec

    names = sorted(os.path.basename(path) for path in fsspec.filesystem("memory").ls("/bucket/remote", detail=False))
    assert names == ["epoch=1-step=8.ckpt", "epoch=1-step=8.ckpt.sha256", "last.ckpt", "last.ckpt.sha256"]
    assert checkpoint.best_model_path == "memory://bucket/remote/epoch=1-step=8.ckpt"
