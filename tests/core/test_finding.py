"""Which file ckpt_path stands for, in this run and the next, when files are damaged, old or of weights alone."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from leyden.callbacks.model_checkpoint import ModelCheckpoint
from leyden.core.callback import Callback
from leyden.core.finding import find_checkpoint
from leyden.loggers.csv import CSVLogger
from leyden.trainer import Trainer
from leyden.utils.errors import CheckpointError, LeydenWarning, MisconfigurationError, NotBuiltError
from models import TinyModel, ValidatedModel, tiny_loader
from scripted import Scripted, files

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
# Of folders that several runs share.
pytestmark = [pytest.mark.filterwarnings(f"ignore:.*{identity}") for identity in ("LD041", "LD131", "LD135")]


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(callbacks=list(callbacks), **QUIET | {"max_epochs": 2} | options)


def fit(*callbacks: Callback, path: Any = None, model: Any = None, **options: Any) -> Trainer:
    made = trainer(*callbacks, **options)
    made.fit(model or TinyModel(), tiny_loader(4), ckpt_path=path)
    return made


def every_epoch(**options: Any) -> ModelCheckpoint:
    """Keeps all, as epoch=0.ckpt and so on."""
    return ModelCheckpoint("kept", "{epoch}", **{"save_top_k": -1} | options)


def age(*paths: str | Path) -> None:
    """Make the files the oldest to the newest, a minute apart, all of them in the past."""
    for minute, path in enumerate(paths):
        os.utime(path, (1e9 + 60 * minute,) * 2)


def damage(path: str | Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2] ^= 1
    when = os.stat(path).st_mtime
    Path(path).write_bytes(content)
    os.utime(path, (when, when))


class Starts(Callback):
    """Notes where training starts."""

    step: int | None = None

    def on_train_start(self, trainer, pl_module):
        self.step = trainer.global_step


def started_at(*callbacks: Callback, path: Any = "auto", **options: Any) -> int | None:
    starts = Starts()
    fit(*callbacks, starts, path=path, **{"max_epochs": 3} | options)
    return starts.step


# "auto"


def test_with_nothing_to_resume_the_run_starts_afresh_and_one_line_says_so(capsys):
    assert started_at(every_epoch()) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "auto" in line]
    assert said == ["trainer.fit(ckpt_path='auto') finds no checkpoint, so the run starts afresh."]


def test_the_newest_file_is_resumed_and_one_line_says_which(capsys):
    fit(every_epoch())
    age("kept/epoch=0.ckpt", "kept/epoch=1.ckpt")
    capsys.readouterr()
    assert started_at(every_epoch()) == 8
    said = [line for line in capsys.readouterr().err.splitlines() if "auto" in line]
    assert said == ["trainer.fit(ckpt_path='auto') goes on from kept/epoch=1.ckpt."]


def test_newest_is_by_the_time_of_writing_and_not_by_the_step():
    fit(every_epoch())
    age("kept/epoch=1.ckpt", "kept/epoch=0.ckpt")
    assert started_at(every_epoch()) == 4


def test_of_files_of_one_time_the_last_by_name_is_taken():
    fit(every_epoch())
    for name in files("kept"):
        os.utime(Path("kept", name), (1e9, 1e9))
    assert started_at(every_epoch()) == 8


def test_damaged_files_are_passed_over_and_named_in_one_warning():
    fit(every_epoch(), max_epochs=3)
    age(*(f"kept/epoch={epoch}.ckpt" for epoch in range(3)))
    damage("kept/epoch=2.ckpt")
    os.truncate("kept/epoch=1.ckpt", 1000)
    age(*(f"kept/epoch={epoch}.ckpt" for epoch in range(3)))
    starts = Starts()
    message = r"(?s)'auto'\) takes \S+epoch=0.ckpt, passing over.*epoch=2.ckpt.*damaged.*epoch=1.ckpt.*LD225"
    with pytest.warns(LeydenWarning, match=message) as warned:
        fit(every_epoch(), starts, path="auto", max_epochs=3)
    assert starts.step == 4
    assert len([each for each in warned if "LD225" in str(each.message)]) == 1


def test_weights_alone_are_passed_over():
    fit(every_epoch(), ModelCheckpoint("kept", "w", monitor=None, save_weights_only=True, every_n_train_steps=8))
    age("kept/epoch=0.ckpt", "kept/epoch=1.ckpt", "kept/w.ckpt")
    starts = Starts()
    with pytest.warns(LeydenWarning, match=r"w.ckpt: it holds weights alone.*LD225"):
        fit(every_epoch(), starts, path="auto", max_epochs=3)
    assert starts.step == 8


def test_when_all_are_damaged_the_run_starts_afresh_and_they_are_named():
    fit(every_epoch(), max_epochs=1)
    damage("kept/epoch=0.ckpt")
    starts = Starts()
    with pytest.warns(LeydenWarning, match=r"'auto'\) begins afresh, passing over.*epoch=0.ckpt.*LD225"):
        fit(every_epoch(), starts, path="auto")
    assert starts.step == 0


def test_files_of_signals_and_exceptions_are_resumed_too():
    fit(every_epoch(), max_epochs=1)
    shutil.copy("kept/epoch=0.ckpt", "kept/preempt.ckpt")
    age("kept/epoch=0.ckpt", "kept/preempt.ckpt")
    assert find_checkpoint(trainer(every_epoch()), "auto", "fit") == os.path.abspath("kept/preempt.ckpt")

    class Breaks(TinyModel):
        def training_step(self, batch, batch_idx):
            if self.global_step == 6:
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="broken"):
        fit(every_epoch(save_on_exception=True), path="auto", model=Breaks())
    assert started_at(every_epoch()) == 6


def test_files_in_folders_that_metrics_name_are_found():
    fit(ModelCheckpoint("kept", "epoch/{epoch}", auto_insert_metric_name=False), max_epochs=1)
    assert files("kept") == ["epoch/0.ckpt"]
    assert started_at(ModelCheckpoint("kept", "epoch/{epoch}", auto_insert_metric_name=False)) == 4
    assert started_at(every_epoch()) == 0  # whose files lie in no such folder


def test_other_files_in_the_folder_are_left_alone():
    fit(every_epoch(), max_epochs=1)
    Path("kept/notes.txt").write_text("x")
    Path("kept/.epoch=9.ckpt.tmp-host-1-00000000").write_bytes(b"half")
    assert started_at(every_epoch()) == 4


def test_a_remote_folder_is_searched_too():
    folder = "memory://auto/run"
    fit(ModelCheckpoint(folder, "{epoch}", save_top_k=-1))
    found = find_checkpoint(trainer(ModelCheckpoint(folder)), "auto", "fit")
    assert found == f"{folder}/epoch=1.ckpt"


def test_without_dirpath_the_earlier_versions_of_the_logger_are_searched():
    for _ in range(2):
        fit(ModelCheckpoint(), logger=CSVLogger("logs"), max_epochs=1)
    first, second = (f"logs/lightning_logs/version_{v}/checkpoints/epoch=0-step=4.ckpt" for v in (0, 1))
    age(first, second)
    again = trainer(ModelCheckpoint(), logger=CSVLogger("logs"))
    assert find_checkpoint(again, "auto", "fit") == os.path.abspath(second)
    age(second, first)
    assert find_checkpoint(again, "auto", "fit") == os.path.abspath(first)
    assert started_at(ModelCheckpoint(), logger=CSVLogger("logs")) == 4
    assert files("logs/lightning_logs/version_2/checkpoints") == ["epoch=2-step=12.ckpt"]


def test_a_logger_that_was_told_its_version_keeps_to_it():
    fit(ModelCheckpoint(), logger=CSVLogger("logs", version="one"), max_epochs=1)
    assert find_checkpoint(trainer(ModelCheckpoint(), logger=CSVLogger("logs", version="two")), "auto", "fit") is None
    found = find_checkpoint(trainer(ModelCheckpoint(), logger=CSVLogger("logs", version="one")), "auto", "fit")
    assert found == os.path.abspath("logs/lightning_logs/one/checkpoints/epoch=0-step=4.ckpt")


def test_without_a_logger_the_default_folder_is_searched():
    fit(ModelCheckpoint(), default_root_dir="root", max_epochs=1)
    assert started_at(ModelCheckpoint(), default_root_dir="root") == 4


def test_looking_makes_no_folder():
    assert find_checkpoint(trainer(ModelCheckpoint(), logger=CSVLogger("logs")), "auto", "fit") is None
    assert os.listdir() == []


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_auto_is_for_fit(method):
    with pytest.raises(
        MisconfigurationError, match=rf"{method}\(ckpt_path='auto'\).*it is for fit. Give 'best', 'last'"
    ):
        getattr(trainer(), method)(ValidatedModel(), tiny_loader(1), ckpt_path="auto")


# "last"


def test_last_is_the_newest_last_file_that_is_good():
    fit(every_epoch(save_last=True), max_epochs=1)
    fit(every_epoch(save_last=True), max_epochs=2)
    assert {"last.ckpt", "last-v1.ckpt"} <= set(files("kept"))
    age("kept/last.ckpt", "kept/last-v1.ckpt")
    assert started_at(every_epoch(), path="last") == 8
    damage("kept/last-v1.ckpt")
    starts = Starts()
    with pytest.warns(LeydenWarning, match=r"'last'\) takes \S+last.ckpt, passing over.*last-v1.ckpt.*LD225"):
        fit(every_epoch(), starts, path="last", max_epochs=3)
    assert starts.step == 4


def test_last_falls_back_to_the_newest_good_checkpoint_and_says_so(capsys):
    fit(every_epoch())
    assert started_at(every_epoch(), path="last") == 8
    assert "finds no last checkpoint, and takes the newest, kept/epoch=1.ckpt" in capsys.readouterr().err
    Path("kept/last.ckpt").write_bytes(b"cut short")
    starts = Starts()
    with pytest.warns(LeydenWarning, match=r"'last'\) takes \S+epoch=2.ckpt, passing over.*kept/last.ckpt.*LD225"):
        fit(every_epoch(), starts, path="last", max_epochs=4)
    assert starts.step == 12


def test_last_looks_into_earlier_versions():
    fit(ModelCheckpoint(save_last=True), logger=CSVLogger("logs"), max_epochs=1)
    found = find_checkpoint(trainer(ModelCheckpoint(), logger=CSVLogger("logs")), "last", "fit")
    assert found == os.path.abspath("logs/lightning_logs/version_0/checkpoints/last.ckpt")


def test_last_may_have_another_name():
    class Mine(ModelCheckpoint):
        CHECKPOINT_NAME_LAST = "{epoch}-final"

    fit(Mine("kept", "{epoch}", save_top_k=-1, save_last=True))
    age("kept/epoch=1-final.ckpt", "kept/epoch=0.ckpt")
    assert find_checkpoint(trainer(Mine("kept")), "last", "fit") == os.path.abspath("kept/epoch=1-final.ckpt")


def test_when_every_file_is_damaged_there_is_nothing_to_evaluate():
    fit(every_epoch(), max_epochs=1)
    damage("kept/epoch=0.ckpt")
    with pytest.raises(CheckpointError, match=r"validate\(ckpt_path='last'\) finds no good file.*epoch=0.ckpt"):
        trainer(every_epoch()).validate(ValidatedModel(), tiny_loader(1), ckpt_path="last")


# "best"


def test_a_damaged_best_gives_way_to_the_next_best():
    model, best = Scripted(0.5, 0.25, 0.375), every_epoch(monitor="v")
    made = trainer(best, max_epochs=3)
    made.fit(model, tiny_loader(4), tiny_loader(1))
    assert find_checkpoint(made, "best", "test") == os.path.abspath("kept/epoch=1.ckpt")
    damage("kept/epoch=1.ckpt")
    with pytest.warns(LeydenWarning, match=r"'best'\) takes \S+epoch=2.ckpt, passing over.*epoch=1.ckpt.*LD225"):
        assert find_checkpoint(made, "best", "test") == os.path.abspath("kept/epoch=2.ckpt")


def test_when_no_best_is_good_the_newest_good_one_is_named():
    best, others = ModelCheckpoint("kept", "best", monitor="v"), ModelCheckpoint("others", "{epoch}")
    made = trainer(best, others, max_epochs=1)
    made.fit(Scripted(0.5), tiny_loader(4), tiny_loader(1))
    damage("kept/best.ckpt")
    with pytest.raises(CheckpointError, match=r"best.ckpt.*The newest good checkpoint is \S+others/epoch=0.ckpt"):
        made.validate(ckpt_path="best", dataloaders=tiny_loader(1))
    os.remove("others/epoch=0.ckpt")
    with pytest.raises(CheckpointError, match="Nor is there another good checkpoint"):
        find_checkpoint(made, "best", "fit")


# "hpc", "registry" and paths


def test_hpc_is_lightnings_file_with_the_highest_number():
    fit(every_epoch())
    for number, epoch in ((2, 0), (10, 1)):
        shutil.copy(f"kept/epoch={epoch}.ckpt", f"hpc_ckpt_{number}.ckpt")
    assert started_at(every_epoch(), path="hpc") == 8
    damage("hpc_ckpt_10.ckpt")
    with pytest.warns(LeydenWarning, match=r"'hpc'\) takes \S+hpc_ckpt_2.ckpt, passing over.*hpc_ckpt_10.*LD225"):
        find_checkpoint(trainer(), "hpc", "fit")


def test_without_such_a_file_hpc_is_an_error():
    with pytest.raises(MisconfigurationError, match=r"fit\(ckpt_path='hpc'\) finds no hpc_ckpt_N.ckpt in"):
        fit(path="hpc")


@pytest.mark.parametrize("path", ["registry", "registry:model:version:3"])
def test_a_registry_is_not_built(path):
    with pytest.raises(NotBuiltError, match="registry"):
        fit(path=path)


@pytest.mark.parametrize("path", [3, True, ["a.ckpt"]])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(TypeError, match="is not a path"):
        fit(path=path)


def test_a_path_is_taken_as_it_is():
    assert find_checkpoint(trainer(), Path("x.ckpt"), "fit") == "x.ckpt"
    assert find_checkpoint(trainer(), None, "fit") is None


def test_a_file_with_objects_is_not_passed_over_in_silence():
    class Odd(TinyModel):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["where"] = Path("x")

    with pytest.warns(LeydenWarning, match="LD040"):
        fit(every_epoch(), model=Odd(), max_epochs=1)
    with pytest.raises(CheckpointError, match="weights_only=False"):
        fit(every_epoch(), path="auto", model=Odd())
    made, starts = trainer(every_epoch(), warnings={"LD040": "ignore"}), Starts()
    made.callbacks.insert(0, starts)
    made.fit(Odd(), tiny_loader(4), ckpt_path="auto", weights_only=False)
    assert starts.step == 4
    assert torch.load("kept/epoch=1.ckpt", weights_only=False)["where"] == Path("x")


def test_by_rule_too_a_damaged_best_gives_way():
    model, best = ValidatedModel(), every_epoch(monitor="val_loss")
    made = trainer(best)
    made.fit(model, tiny_loader(4), tiny_loader(1))
    other = next(path for path in best.best_k_models if path != best.best_model_path)
    damage(best.best_model_path)
    with pytest.warns(LeydenWarning, match=r"test\(ckpt_path='best'\) takes .*LD225"):
        made.test(model, tiny_loader(1), verbose=False)
    assert made.ckpt_path == other


def test_a_trial_run_starts_afresh():
    fit(every_epoch(), max_epochs=1)
    assert started_at(every_epoch(), fast_dev_run=True) == 0


def test_what_a_killed_save_has_left_is_removed_where_the_run_goes_on_from():
    fit(ModelCheckpoint(), logger=CSVLogger("logs"), max_epochs=1)
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = re.sub(r"[^\w.-]", "_", socket.gethostname())
    left = Path(f"logs/lightning_logs/version_0/checkpoints/.x.ckpt.tmp-{host}-{dead.pid}-0123abcd")
    left.write_bytes(b"half")
    assert started_at(ModelCheckpoint(), logger=CSVLogger("logs")) == 4
    assert not left.exists()
