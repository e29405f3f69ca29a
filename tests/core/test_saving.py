"""Saving under real faults: a full, small, read-only, deleted or replaced folder, on this and another file system."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from leyden.callbacks.model_checkpoint import ModelCheckpoint
from leyden.core.callback import Callback
from leyden.core.storage import check_folder, size_of_checkpoint
from leyden.fabric.async_checkpoint_io import AsyncCheckpointIO
from leyden.fabric.checkpoint_io import CheckpointIO
from leyden.trainer import Trainer
from leyden.utils.errors import CheckpointError, LeydenWarning
from models import TinyModel, tiny_loader
from scripted import files

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def fit(*callbacks: Callback, model: Any = None, **options: Any) -> Trainer:
    """Two steps an epoch."""
    trainer = Trainer(callbacks=list(callbacks), **QUIET | {"max_epochs": 4} | options)
    trainer.fit(model or TinyModel(), tiny_loader(2))
    return trainer


def step_of(path: str | Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 1 MiB of room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


class Faults:
    """Each makes writing into ``folder`` fail, and ends that again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def full(self) -> None:
        with (self.folder / "filler").open("wb", buffering=0) as filler:
            while True:
                try:
                    filler.write(bytes(4096))
                except OSError:
                    break

    def full_ends(self) -> None:
        (self.folder / "filler").unlink()

    def limit(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, self.before[1]))

    def limit_ends(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)

    def read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)

    def read_only_ends(self) -> None:
        subprocess.run(["mount", "-o", "remount,rw", self.folder], check=True)

    def replaced(self) -> None:
        (self.folder / "kept").rename(self.folder / "aside")
        (self.folder / "kept").write_text("a file")

    def replaced_ends(self) -> None:
        (self.folder / "kept").unlink()
        (self.folder / "aside").rename(self.folder / "kept")


class Strikes(Callback):
    """Has a fault begin with epoch ``first`` and end with epoch ``end``, or with the run."""

    def __init__(self, begin: Callable[[], None], finish: Callable[[], None], first: int, end: int | None = None):
        self.begin, self.finish, self.first, self.end = begin, finish, first, end
        self.on = False

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.first:
            self.begin()
            self.on = True
        if trainer.current_epoch == self.end:
            self.finish()
            self.on = False

    def teardown(self, trainer, pl_module, stage):
        if self.on:
            self.finish()


CELLS = [
    ("full", "other", "No space left on device"),
    ("limit", "same", "File too large"),
    ("limit", "other", "File too large"),
    ("read_only", "other", "Read-only file system"),
    ("replaced", "same", "exists|Not a directory"),
    ("replaced", "other", "exists|Not a directory"),
]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder on the file system of the tests, or on another."""
    return request.getfixturevalue("disk") if request.param == "other" else tmp_path


def strike(fault: str, place: Path, first: int, end: int | None = None) -> Strikes:
    faults = Faults(place)
    return Strikes(getattr(faults, fault), getattr(faults, f"{fault}_ends"), first, end)


def good_files(folder: Path) -> list[str]:
    """Names of all that looks like a checkpoint; every one of them must be readable."""
    for name in files(folder):
        step_of(folder / name)
    return files(folder)


@pytest.mark.parametrize(("fault", "place", "cause"), CELLS, indirect=["place"])
def test_a_fault_that_passes_costs_one_checkpoint(fault, place, cause):
    saver = ModelCheckpoint(place / "kept", "{epoch}", save_top_k=-1, save_last=True)
    written: list[str] = []

    class Looks(Callback):
        monitors = True

        def on_train_epoch_start(self, trainer, pl_module):
            written.append(os.path.basename(saver.best_model_path))

    with pytest.warns(LeydenWarning, match="LD226") as warned:
        fit(strike(fault, place, 1, 2), saver, Looks())
    (message,) = [str(each.message) for each in warned if "LD226" in str(each.message)]
    assert str(place / "kept" / "epoch=1.ckpt") in message
    assert re.search(cause, message)
    assert "MiB free" in message
    assert good_files(place / "kept") == ["epoch=0.ckpt", "epoch=2.ckpt", "epoch=3.ckpt", "last.ckpt"]
    assert written == ["", "epoch=0.ckpt", "epoch=0.ckpt", "epoch=2.ckpt"]
    assert step_of(saver.last_model_path) == 8


@pytest.mark.parametrize(("fault", "place", "cause"), CELLS, indirect=["place"])
def test_the_third_failure_in_a_row_ends_the_run_and_leaves_the_earlier_files(fault, place, cause):
    saver = ModelCheckpoint(place / "kept", "{epoch}", save_last=True)
    strikes = strike(fault, place, 1)
    with pytest.warns(LeydenWarning, match="LD226") as warned, pytest.raises(CheckpointError, match=cause) as raised:
        fit(strikes, saver, max_epochs=9)
    assert "epoch=3.ckpt" in str(raised.value)
    assert len([each for each in warned if "LD226" in str(each.message)]) == 2
    assert good_files(place / "kept") == ["epoch=0.ckpt", "last.ckpt"]
    assert step_of(saver.best_model_path) == step_of(saver.last_model_path) == 2


@pytest.mark.parametrize("place", ["same", "other"], indirect=True)
def test_the_last_save_of_a_run_must_not_fail(place):
    saver = ModelCheckpoint(place / "kept", "{epoch}")
    with (
        pytest.warns(LeydenWarning, match="LD226"),
        pytest.raises(CheckpointError, match=r"epoch=2\.ckpt: File too large"),
    ):
        fit(strike("limit", place, 1), saver, max_epochs=2)
    assert good_files(place / "kept") == ["epoch=0.ckpt"]
    assert saver.best_model_path.endswith("epoch=0.ckpt")


def test_what_has_failed_at_the_end_is_made_good_if_it_can_be():
    class Heals(Callback):
        def on_train_end(self, trainer, pl_module):
            faults.limit_ends()

    faults, saver = Faults(Path()), ModelCheckpoint("kept", "{epoch}")
    strikes = Strikes(faults.limit, lambda: None, 1)
    with pytest.warns(LeydenWarning, match="LD226"):
        fit(strikes, Heals(), saver, max_epochs=2)
    assert [step_of(f"kept/{name}") for name in files("kept")] == [4]
    assert step_of(saver.best_model_path) == 4


@pytest.mark.parametrize("place", ["same", "other"], indirect=True)
def test_a_folder_that_was_deleted_is_made_again(place):
    saver = ModelCheckpoint(place / "kept", "{epoch}", save_top_k=-1, save_last=True)
    fit(Strikes(lambda: shutil.rmtree(place / "kept"), lambda: None, 1), saver, max_epochs=3)
    assert good_files(place / "kept") == ["epoch=1.ckpt", "epoch=2.ckpt", "last.ckpt"]


def test_a_folder_for_temporary_files_is_not_needed(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/proc/none")
    fit(ModelCheckpoint("kept", "{epoch}"), max_epochs=1)
    assert good_files(Path("kept")) == ["epoch=0.ckpt"]


def test_a_failure_is_counted_in_a_row_only():
    class Every2nd(CheckpointIO):
        calls = 0

        def save_checkpoint(self, checkpoint, path, storage_options=None):
            self.calls += 1
            if self.calls % 2:
                raise OSError(5, "Input/output error")
            super().save_checkpoint(checkpoint, path, storage_options)

    saver = ModelCheckpoint("kept", "{epoch}", save_top_k=-1)
    with pytest.warns(LeydenWarning, match="LD226") as warned:
        fit(saver, plugins=[Every2nd()], max_epochs=8)
    messages = [str(each.message) for each in warned if "LD226" in str(each.message)]
    assert [re.findall(r"epoch=\d", message) for message in messages] == [[f"epoch={epoch}"] for epoch in (0, 2, 4, 6)]
    assert all("Input/output error. Training goes on" in message for message in messages)
    assert files("kept") == [f"epoch={epoch}.ckpt" for epoch in (1, 3, 5, 7)]


def test_what_is_wrong_with_the_checkpoint_itself_ends_the_run_at_once():
    class Odd(TinyModel):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["mine"] = lambda: None

    with pytest.raises(CheckpointError, match="mine"), pytest.warns(LeydenWarning, match="LD040"):
        fit(ModelCheckpoint("kept"), model=Odd())


def test_two_callbacks_fail_by_themselves():
    class NotThere(CheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            if "bad" in path and checkpoint["global_step"] == 4:
                raise OSError(5, "Input/output error")
            super().save_checkpoint(checkpoint, path, storage_options)

    bad = ModelCheckpoint("bad", "{epoch}", save_top_k=-1)
    good = ModelCheckpoint("good", "{step}", save_top_k=-1, every_n_train_steps=2)
    with pytest.warns(LeydenWarning, match="LD226"):
        fit(bad, good, plugins=[NotThere()], max_epochs=3)
    assert files("bad") == ["epoch=0.ckpt", "epoch=2.ckpt"]
    assert files("good") == ["step=2.ckpt", "step=4.ckpt", "step=6.ckpt"]
    for path in Path("good").iterdir():  # what they say of the other callback is true as well
        kept = torch.load(path, weights_only=True)["callbacks"][bad.state_key]["best_model_path"]
        assert not kept or os.path.exists(kept)


def test_who_asks_without_a_way_to_fail_ends_the_run():
    class Asks(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.request_checkpoint("/proc/none/x.ckpt")

    with pytest.raises(CheckpointError, match="/proc/none"):
        fit(Asks(), enable_checkpointing=False)


def test_a_superseded_file_that_cannot_be_deleted_does_not_end_the_run():
    class Keeps(CheckpointIO):
        def remove_checkpoint(self, path):
            raise PermissionError(1, "Operation not permitted", path)

    with pytest.warns(LeydenWarning, match=r"could not delete \S+epoch=0.ckpt, which is superseded.*LD227"):
        fit(ModelCheckpoint("kept", "{epoch}"), plugins=[Keeps()], max_epochs=2)
    assert files("kept") == ["epoch=0.ckpt", "epoch=1.ckpt"]


# Before the first step.


class Never(TinyModel):
    """Must not be trained."""

    def training_step(self, batch, batch_idx):
        raise AssertionError("the first step was taken")


def test_a_folder_below_a_file_is_refused_before_anything_begins():
    Path("file").write_text("x")
    with pytest.raises(
        CheckpointError, match=r"cannot be saved in \S+file/kept: (Not a directory|File exists).*dirpath="
    ):
        fit(ModelCheckpoint("file/kept"), model=Never())


def test_a_folder_that_cannot_be_made_is_refused():
    with pytest.raises(CheckpointError, match=r"cannot be saved in /proc/kept: "):
        fit(ModelCheckpoint("/proc/kept"), model=Never())


def test_a_read_only_folder_is_refused(disk):
    (disk / "kept").mkdir()
    Faults(disk).read_only()
    for folder in (disk / "kept", disk / "new"):
        with pytest.raises(CheckpointError, match=f"cannot be saved in {folder}: Read-only file system"):
            fit(ModelCheckpoint(folder), model=Never())


def test_a_folder_without_permission_is_refused():
    if os.geteuid() != 0:
        folder = Path("kept")
        folder.mkdir(mode=0o500)
        with pytest.raises(CheckpointError, match="Permission denied"):
            check_folder(str(folder.absolute()))
        return
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    try:
        os.seteuid(65534)  # for root nothing is forbidden
        with pytest.raises(CheckpointError, match=f"cannot be saved in {folder}: Permission denied"):
            check_folder(str(folder))
        with pytest.raises(CheckpointError, match=f"cannot be saved in {folder}/new: Permission denied"):
            check_folder(str(folder / "new"))
    finally:
        os.seteuid(0)
        folder.rmdir()


def test_a_full_disk_is_refused(disk):
    Faults(disk).full()
    with pytest.raises(CheckpointError, match=f"cannot be saved in {disk}.*: No space left on device"):
        fit(ModelCheckpoint(disk / "kept"), model=Never())


def test_the_trial_leaves_nothing_behind():
    Path("there").mkdir()
    check_folder(os.path.abspath("there"))
    check_folder(os.path.abspath("not/there/yet"))
    check_folder("memory://trial/run")
    assert [str(path) for path in Path().rglob("*")] == ["there"]


class Big(Never):
    """Of 400 kB, with an optimizer that keeps twice as much."""

    def __init__(self, optimizer: str = "adam") -> None:
        super().__init__(optimizer)
        self.big = torch.nn.Linear(1000, 100)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), lr=0.1)


def test_too_little_space_is_refused_with_the_numbers(disk):
    with pytest.raises(CheckpointError) as raised:
        fit(ModelCheckpoint(disk / "kept"), model=Big())
    message = str(raised.value)
    size, needed, free = (int(number.replace(",", "")) for number in re.findall(r"(\d[\d,]{4,})(?= )", message))
    weights = 4 * sum(p.numel() for p in Big().parameters())
    assert str(disk / "kept") in message
    assert size == 3 * weights
    assert needed == pytest.approx(2.2 * size, abs=1)
    assert 900_000 < free <= 2**20
    assert files(disk) == []


@pytest.mark.parametrize(("optimizer", "weights_only"), [("sgd", False), ("adam", True)])
def test_enough_space_is_enough(disk, optimizer, weights_only):
    class Small(Big):
        def training_step(self, batch, batch_idx):
            return self.loss(batch) + self.big(torch.ones(1000)).sum()

    fit(ModelCheckpoint(disk / "kept", save_weights_only=weights_only), model=Small(optimizer), max_epochs=1)
    assert len(files(disk / "kept")) == 1


@pytest.mark.parametrize(
    ("make", "copies"),
    [
        (lambda p: torch.optim.SGD(p, 0.1), 1),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), 2),
        (lambda p: torch.optim.Adam(p), 3),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), 4),
        (lambda p: torch.optim.NAdam(p), 3),
        (lambda p: torch.optim.RMSprop(p), 2),
        (lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True), 4),
        (lambda p: torch.optim.Adagrad(p), 2),
        (lambda p: torch.optim.Adadelta(p), 3),
    ],
)
def test_the_estimate_is_what_the_file_takes(make, copies):
    class Model(TinyModel):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(32, 2000), torch.nn.ReLU(), torch.nn.Linear(2000, 10))

        def configure_optimizers(self):
            return make(self.parameters())

    sizes = []

    class Looks(Callback):
        def on_train_start(self, trainer, pl_module):
            sizes.append(size_of_checkpoint(trainer._run))

    trainer = fit(Looks(), model=Model(), max_epochs=1, enable_checkpointing=False)
    weights = 4 * sum(p.numel() for p in Model().parameters())
    assert sizes[0] == pytest.approx(copies * weights, rel=0.001)
    trainer.save_checkpoint("x.ckpt")
    assert os.path.getsize("x.ckpt") == pytest.approx(sizes[0], rel=0.1)


# State that could not be read back.


class Cfg:
    """A class of the user's."""


class Odd(Callback):
    def state_dict(self):
        return {"cfg": Cfg()}


def test_state_that_could_not_be_read_back_is_refused_before_the_first_step():
    message = r"callbacks\['Odd'\]\['cfg'\]: \S*test_saving.Cfg.*add_safe_globals.*'LD040': 'ignore'"
    with pytest.raises(CheckpointError, match=message):
        fit(Odd(), ModelCheckpoint("kept"), model=Never())


def test_so_is_that_of_module_and_datamodule():
    class Extra(Never):
        def get_extra_state(self):
            return Cfg()

        def set_extra_state(self, state):
            pass

    with pytest.raises(CheckpointError, match=r"state_dict\['_extra_state'\]: \S*test_saving.Cfg"):
        fit(ModelCheckpoint("kept"), model=Extra())


def test_a_class_that_was_let_in_is_fine():
    with torch.serialization.safe_globals([Cfg]):
        fit(Odd(), ModelCheckpoint("kept"), max_epochs=1)
        torch.load("kept/epoch=0-step=2.ckpt", weights_only=True)


def test_who_says_so_may_save_it_all_the_same():
    fit(Odd(), ModelCheckpoint("kept"), max_epochs=1, warnings={"LD040": "ignore"})
    assert files("kept") == ["epoch=0-step=2.ckpt"]


def test_weights_alone_leave_that_state_out():
    fit(Odd(), ModelCheckpoint("kept", save_weights_only=True), max_epochs=1)
    with pytest.raises(CheckpointError, match="Cfg"):
        fit(Odd(), ModelCheckpoint("a", save_weights_only=True), ModelCheckpoint("b", every_n_epochs=2), model=Never())


def test_without_checkpoints_nothing_is_refused():
    fit(Odd(), enable_checkpointing=False, max_epochs=1)
    fit(Odd(), fast_dev_run=True)


def test_state_that_appears_later_is_warned_of():
    class Later(Callback):
        state: Any = None

        def on_train_epoch_end(self, trainer, pl_module):
            self.state = Cfg()

        def state_dict(self):
            return {"state": self.state}

    with pytest.warns(LeydenWarning, match=r"Later'\]\['state'\]: \S*test_saving.Cfg.*LD040"):
        fit(Later(), ModelCheckpoint("kept"), max_epochs=1)


def test_the_users_save_hooks_are_called_for_saves_alone():
    calls: list[int] = []

    class Hooked(TinyModel):
        def on_save_checkpoint(self, checkpoint):
            calls.append(checkpoint["global_step"])

    fit(ModelCheckpoint("kept"), model=Hooked(), max_epochs=2)
    assert calls == [2, 4]


# In the background.


class Held(CheckpointIO):
    """Begins to write a file, but for the first, only when it is told; or gives up, as if nobody would ever tell."""

    def __init__(self, held: bool = True) -> None:
        self.go, self.calls, self.held = threading.Semaphore(0), 0, held

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        self.calls += 1
        if self.held and self.calls > 1 and not self.go.acquire(timeout=20):
            raise AssertionError("training waits for the file, and the file for training")
        super().save_checkpoint(checkpoint, path, storage_options)


class Tells(Callback):
    """In mid-epoch: notes which files there are and which one the callback names, then lets the next be written."""

    def __init__(self, io: Held, saver: ModelCheckpoint) -> None:
        self.io, self.saver, self.seen = io, saver, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step in (5, 7):
            self.seen.append((files("kept"), os.path.basename(self.saver.best_model_path)))
            self.io.go.release()

    def on_train_end(self, trainer, pl_module):
        self.io.go.release()


BACKGROUND = {
    "async_save": lambda io: (ModelCheckpoint("kept", "{epoch}", async_save=True), io),
    "plugin": lambda io: (ModelCheckpoint("kept", "{epoch}"), AsyncCheckpointIO(io)),
    "both": lambda io: (ModelCheckpoint("kept", "{epoch}", async_save=True), AsyncCheckpointIO(io)),
}


@pytest.mark.parametrize("way", BACKGROUND)
def test_training_goes_on_while_a_file_is_written_and_the_old_one_stays_until_then(way):
    io = Held()
    saver, plugin = BACKGROUND[way](io)
    tells = Tells(io, saver)
    fit(tells, saver, plugins=[plugin])
    assert tells.seen == [(["epoch=0.ckpt"], "epoch=0.ckpt"), (["epoch=1.ckpt"], "epoch=1.ckpt")]
    assert files("kept") == ["epoch=3.ckpt"]
    assert step_of(saver.best_model_path) == 8


def test_a_callback_alone_may_save_in_the_background():
    io = Held()
    saver, plugin = BACKGROUND["async_save"](io)
    at_once = ModelCheckpoint("at_once", "{step}", every_n_train_steps=1, save_top_k=-1)
    io.held = False
    fit(saver, at_once, plugins=[plugin])
    assert files("at_once") == [f"step={step}.ckpt" for step in range(1, 9)]
    assert step_of(saver.best_model_path) == 8


def test_what_is_written_in_the_background_is_the_state_at_the_time_of_asking():
    for folder, in_background in (("later", True), ("at_once", False)):
        torch.manual_seed(0)
        saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, async_save=in_background)
        fit(saver, model=TinyModel("adam"), max_epochs=2)
    assert files("later") == files("at_once")
    for name in files("later"):
        one, other = (torch.load(f"{folder}/{name}", weights_only=True) for folder in ("later", "at_once"))
        for key in ("state_dict", "optimizer_states"):
            torch.testing.assert_close(one[key], other[key], rtol=0, atol=0)


def test_a_file_under_way_is_finished_when_training_breaks_off():
    class Breaks(TinyModel):
        def training_step(self, batch, batch_idx):
            if self.global_step == 3:
                threading.Timer(0.2, io.go.release).start()
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    io = Held()
    io.calls = 1
    saver, plugin = BACKGROUND["async_save"](io)
    with pytest.raises(RuntimeError, match="broken"):
        fit(saver, model=Breaks(), plugins=[plugin])
    assert [step_of(f"kept/{name}") for name in files("kept")] == [2]
    assert os.path.basename(saver.best_model_path) == "epoch=0.ckpt"


def test_a_failure_in_the_background_is_warned_of_and_tried_again(tmp_path):
    saver = ModelCheckpoint("kept", "{epoch}", save_top_k=-1, save_last=True, async_save=True)
    with pytest.warns(LeydenWarning, match=r"kept/epoch=1.ckpt: File too large.*MiB free.*LD226"):
        fit(strike_late(tmp_path), saver)
    assert good_files(Path("kept")) == ["epoch=0.ckpt", "epoch=2.ckpt", "epoch=3.ckpt", "last.ckpt"]
    assert step_of(saver.last_model_path) == 8


def strike_late(folder: Path) -> Strikes:
    """A limit from the epoch 1 on, until what it has asked for has failed."""
    faults = Faults(folder)

    class Late(Strikes):
        monitors = True

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 5 and self.on:
                self.on = False
                await_thread()
                self.finish()

    return Late(begin_later(faults), faults.limit_ends, 1)


def begin_later(faults: Faults) -> Callable[[], None]:
    """The limit, when the file under way is written."""

    def begin() -> None:
        await_thread()
        faults.limit()

    return begin


def await_thread() -> None:
    """Wait until the thread has done its work."""
    for thread in threading.enumerate():
        if thread.name == "leyden-checkpoint":
            thread.join()


def test_a_failure_in_the_background_of_the_last_save_raises(tmp_path):
    saver = ModelCheckpoint("kept", "{epoch}", async_save=True)
    faults = Faults(tmp_path)
    strikes = Strikes(begin_later(faults), faults.limit_ends, 1)
    with pytest.warns(LeydenWarning, match="LD226"), pytest.raises(CheckpointError, match="File too large"):
        fit(strikes, saver, max_epochs=2)
    assert good_files(Path("kept")) == ["epoch=0.ckpt"]
    assert os.path.basename(saver.best_model_path) == "epoch=0.ckpt"


def test_saving_at_once_waits_outside_of_a_run():
    trainer = fit(enable_checkpointing=False, max_epochs=1, plugins=[AsyncCheckpointIO()])
    trainer.save_checkpoint("x.ckpt")
    assert step_of("x.ckpt") == 2


def test_a_plugin_that_has_no_files_gets_the_last_checkpoint_once_more():
    class Elsewhere(CheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            saved.append(os.path.basename(path))

    saved: list[str] = []
    saver = ModelCheckpoint("kept", "{epoch}", save_last=True)
    fit(saver, plugins=[Elsewhere()], max_epochs=2)
    assert saved == ["epoch=0.ckpt", "last.ckpt", "epoch=1.ckpt", "last.ckpt"]
    assert os.path.basename(saver.last_model_path) == "last.ckpt"
